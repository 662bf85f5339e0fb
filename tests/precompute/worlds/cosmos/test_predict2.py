"""What the engine promises beyond parity with the stock pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.miniatures.world_model import mini_transformer, mini_vae, save_mini_world
from theworld.pipeline.errors import ConfigError, LatentShapeError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.tensors import draw_posterior, standardise
from theworld.precompute.rollout.chunks import roll_out_in_chunks
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.cosmos.solvers import euler, sigma_schedule, spread_kept, two_step

KEYS = [key_of_bytes(bytes([i])) for i in range(6)]


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4}
    return Recipe(**(fields | changes))


@pytest.fixture(scope="module")
def world() -> CosmosWorld:
    return CosmosWorld(mini_vae(), mini_transformer())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_no_steps_is_the_encoding_and_equals_frame_zero_of_a_rollout(world: CosmosWorld, images: torch.Tensor) -> None:
    encoded = world.encode(images)
    assert encoded.shape == (6, 16, 1, 4, 6)
    assert torch.equal(world.rollout(images, KEYS, recipe(rollout_steps=0)), encoded)
    assert torch.equal(world.rollout(images, KEYS, recipe())[:, :, :1], encoded)


def test_one_frame_encodes_to_the_bits_of_a_clip_s_first_frame(images: torch.Tensor) -> None:
    vae = mini_vae()
    with torch.inference_mode():
        clip = images[:1].unsqueeze(2).repeat(1, 1, 17, 1, 1)
        alone = vae.encode(images[:1].unsqueeze(2)).latent_dist.mode()
        assert torch.equal(vae.encode(clip).latent_dist.mode()[:, :, :1], alone)


def test_a_video_encodes_to_what_the_stock_vae_gives_and_begins_with_its_first_frame(world: CosmosWorld) -> None:
    videos = torch.rand(2, 3, 17, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    encoded = world.encode_video(videos)
    assert encoded.shape == (2, 16, 5, 4, 6)
    assert encoded.dtype == torch.float32
    with torch.inference_mode():
        stock = standardise(mini_vae().encode(videos).latent_dist.mode(), world.spec)
    assert torch.equal(encoded, stock)
    assert torch.equal(encoded[:, :, :1], world.encode(videos[:, :, 0]))
    assert torch.equal(encoded[:, :, :3], world.encode_video(videos[:, :, :9]))  # causal: the rest comes after


def test_a_clip_whose_last_frames_the_vae_would_drop_is_refused(world: CosmosWorld) -> None:
    with pytest.raises(LatentShapeError, match="1 \\+ a multiple of 4"):
        world.encode_video(torch.zeros(1, 3, 16, 32, 48))


def test_real_frames_are_never_made_up_by_a_rollout(world: CosmosWorld, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="frames"):
        world.rollout(images, KEYS, Recipe(world="sha256:x", height=32, width=48, kind="frames"))


def test_a_latent_does_not_depend_on_its_place_in_the_batch(world: CosmosWorld, images: torch.Tensor) -> None:
    order = [3, 0, 5, 1, 4, 2]
    straight = world.rollout(images, KEYS, recipe())
    permuted = world.rollout(images[order], [KEYS[i] for i in order], recipe())
    assert torch.equal(permuted, straight[order])


def test_a_latent_does_not_depend_on_the_size_of_the_batch(world: CosmosWorld, images: torch.Tensor) -> None:
    together = world.rollout(images, KEYS, recipe())
    alone = torch.cat([world.rollout(images[i : i + 1], [KEYS[i]], recipe()) for i in range(6)])
    assert (together - alone).abs().max().item() <= 1e-5


def test_noise_follows_the_key_the_seed_and_the_draw(world: CosmosWorld, images: torch.Tensor) -> None:
    same = images[:1].expand(2, -1, -1, -1)
    a, b = world.rollout(same, KEYS[:2], recipe())
    assert not torch.equal(a[:, 1:], b[:, 1:])
    for changes in ({"seed": 1}, {"draw": 1}):
        assert not torch.equal(world.rollout(same[:1], KEYS[:1], recipe(**changes))[0, :, 1:], a[:, 1:])


def test_stride_keeps_every_nth_frame_of_the_longer_clip(world: CosmosWorld, images: torch.Tensor) -> None:
    long = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=4))
    kept = world.rollout(images[:1], KEYS[:1], recipe(rollout_steps=2, stride=2))
    assert torch.equal(kept, long[:, :, ::2])


def test_a_prompt_without_its_embeddings_is_refused(world: CosmosWorld, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="prompt"):
        world.rollout(images[:1], KEYS[:1], recipe(prompt="a ball"))


def test_decoding_gives_four_frames_for_each_latent_after_the_first(world: CosmosWorld, images: torch.Tensor) -> None:
    video = world.decode(world.rollout(images[:2], KEYS[:2], recipe()))
    assert video.shape == (2, 3, 9, 32, 48)
    assert video.abs().max() <= 1


def test_the_stock_folder_layout_round_trips(tmp_path: Path, world: CosmosWorld, images: torch.Tensor) -> None:
    loaded = CosmosWorld.load(save_mini_world(tmp_path / "w"))
    assert loaded.spec == world.spec
    assert torch.equal(loaded.rollout(images, KEYS, recipe()), world.rollout(images, KEYS, recipe()))


def test_bfloat16_touches_the_transformer_alone(tmp_path: Path, world: CosmosWorld, images: torch.Tensor) -> None:
    half = CosmosWorld.load(save_mini_world(tmp_path / "w"), compute_dtype="bfloat16")
    exact = world.rollout(images, KEYS, recipe())
    rounded = half.rollout(images, KEYS, recipe(compute_dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    save_mini_world(tmp_path / "w")
    (tmp_path / "w" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WorldModelError, match="cannot be loaded"):
        CosmosWorld.load(tmp_path / "w")


def test_the_second_order_solver_keeps_the_spread_that_euler_loses() -> None:
    def error(solver: Callable[..., torch.Tensor], levels: int) -> float:
        """Of the standard deviation of unit Gaussian data, whose exact estimate is x / (1 + sigma^2)."""
        start = torch.full((1, 1, 1, 1, 1), 80.0, dtype=torch.float64)
        sigmas = sigma_schedule(levels)[:-1].double()
        return abs(solver(lambda x, sigma: x / (1 + sigma**2), start, sigmas).item() - 1)

    assert error(euler, 10) == pytest.approx(0.25, abs=0.005)
    assert [round(spread_kept("2ab", levels), 2) for levels in (10, 20, 35)] == [1.34, 1.06, 1.02]
    for levels in (20, 35, 70):
        assert error(two_step, levels) < 0.52 * error(euler, levels)
    # twice the levels: half the error in first order, a quarter in second
    assert error(euler, 140) / error(euler, 70) == pytest.approx(1 / 2, abs=0.05)
    assert error(two_step, 140) / error(two_step, 70) == pytest.approx(1 / 4, abs=0.05)


def test_the_two_step_update_is_the_exponential_integrator_of_its_source() -> None:
    # cosmos-predict2's own form: b1 and b2 from the phi functions of the step in -log sigma
    def phi1(t: torch.Tensor) -> torch.Tensor:
        return torch.expm1(t) / t

    def phi2(t: torch.Tensor) -> torch.Tensor:
        return (phi1(t) - 1) / t

    sigmas = torch.tensor([9.0, 4.0, 1.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, x0_first, x0_second, end = torch.randn(4, 1, 1, 2, 3, 3, generator=generator, dtype=torch.float64)
    estimates = iter([x0_first, x0_second, end])
    seen: list[torch.Tensor] = []

    def estimate(latents: torch.Tensor, _sigma: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        return next(estimates)

    assert torch.equal(two_step(estimate, x, sigmas), end)
    middle = x0_first + (x - x0_first) * sigmas[1] / sigmas[0]
    torch.testing.assert_close(seen[1], middle)
    before, now, then = -torch.log(sigmas)
    step, c2 = then - now, (before - now) / (then - now)
    b1, b2 = phi1(-step) - phi2(-step) / c2, phi2(-step) / c2
    torch.testing.assert_close(seen[2], torch.exp(-step) * middle + step * (b1 * x0_second + b2 * x0_first))


def test_a_solver_runs_as_many_forwards_as_it_says(world: CosmosWorld, images: torch.Tensor) -> None:
    for solver, forwards in (("euler", 3), ("2ab", 4)):
        calls: list[int] = []
        hook = world.transformer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        world.rollout(images[:1], KEYS[:1], recipe(solver=solver, denoise_steps=4))
        hook.remove()
        assert len(calls) == forwards


def test_what_is_seen_of_a_video_is_encoded_and_the_rest_is_predicted(world: CosmosWorld) -> None:
    videos = torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    other = videos[:, :, :5].clone()
    other[:, :, 1:] = -other[:, :, 1:]  # the same first frame
    for solver in ("euler", "2ab"):
        seen = recipe(kind="continuation", observed_frames=5, rollout_steps=3, solver=solver)
        going_on = world.rollout(videos[:, :, :5], KEYS[:2], seen)
        assert torch.equal(going_on[:, :, :2], world.encode_video(videos[:, :, :5]))
        assert not torch.equal(world.rollout(other, KEYS[:2], seen)[:, :, 2:], going_on[:, :, 2:])
    # one frame of a video is an image
    alone = world.rollout(videos[:, :, :1], KEYS[:2], recipe(rollout_steps=3))
    assert torch.equal(alone, world.rollout(videos[:, :, 0], KEYS[:2], recipe(rollout_steps=3)))


def test_a_posterior_is_the_encoder_s_mean_and_log_variance_in_standard_units(
    world: CosmosWorld, images: torch.Tensor
) -> None:
    moments = world.posterior(images)
    assert torch.equal(moments[:, :, :1], world.encode(images))
    with torch.inference_mode():
        stock = mini_vae().encode(images.unsqueeze(2)).latent_dist
        draws = torch.stack([stock.sample(torch.Generator().manual_seed(seed)) for seed in range(200)])
    expected = torch.stack([standardise(draw, world.spec) for draw in draws]).std(0)
    ours = torch.stack([draw_posterior(moments, torch.Generator().manual_seed(seed)) for seed in range(200)])
    torch.testing.assert_close(torch.exp(0.5 * moments[:, :, 1:]).mean(), expected.mean(), rtol=0.01, atol=0)
    torch.testing.assert_close(ours.std(0).mean(), expected.mean(), rtol=0.01, atol=0)
    assert ((ours.mean(0) - world.encode(images)).abs() / expected).max() < 0.4  # of 200 draws; 0.07 is usual


def test_latents_of_several_diffusions_are_not_one_rollout(world: CosmosWorld, images: torch.Tensor) -> None:
    for several in (recipe(kind="samples", draws=2), recipe(kind="frames", denoise_steps=10), recipe(**CHUNKS)):
        with pytest.raises(ConfigError, match="not one joint diffusion"):
            world.rollout(images, KEYS, several)


CHUNKS = {"chunk_frames": 3, "chunk_context": 5}


def test_chunks_hand_over_decoded_frames_and_a_longer_clip_begins_with_a_shorter_one(
    world: CosmosWorld, images: torch.Tensor
) -> None:
    long = roll_out_in_chunks(world, images[:2], KEYS[:2], recipe(**CHUNKS, rollout_steps=4))
    assert long.shape[2] == 5
    first = world.rollout(images[:2], KEYS[:2], recipe(rollout_steps=2))
    assert torch.equal(long[:, :, :3], first)
    for number in (1, 2):  # each adds one frame to the two latents it begins with
        end = world.decode(first)[:, :, -5:]
        first = world.rollout(end, [f"{key} chunk {number}" for key in KEYS[:2]], recipe(rollout_steps=2))
        assert torch.equal(long[:, :, 2 + number : 3 + number], first[:, :, 2:])
    shorter = roll_out_in_chunks(world, images[:2], KEYS[:2], recipe(**CHUNKS, rollout_steps=3))
    assert torch.equal(shorter, long[:, :, :4])
    strided = roll_out_in_chunks(world, images[:2], KEYS[:2], recipe(**CHUNKS, rollout_steps=2, stride=2))
    assert torch.equal(strided, long[:, :, ::2])


def test_what_is_no_joint_diffusion_is_named_as_it_is(world: CosmosWorld, images: torch.Tensor) -> None:
    frames = Recipe(world="sha256:x", height=32, width=48, kind="frames")
    for made, words in ((frames, "of kind frames is not"), (recipe(**CHUNKS), "of kind rollout in chunks is not")):
        with pytest.raises(ConfigError, match=words):
            world.rollout(images[:1], KEYS[:1], made)

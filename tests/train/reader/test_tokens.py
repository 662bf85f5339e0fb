"""Latents become world tokens: which, how many, in which order, and of which size."""

import pytest
import torch

from theworld.pipeline.errors import ConfigError, LatentShapeError
from theworld.train.reader.tokens import Projector, TokenLayout, WorldReader, cut

SPATIAL, PATCH = TokenLayout(name="spatial"), TokenLayout(name="patch", patch=2)


def reader(*, layout: TokenLayout = PATCH, hidden_size: int = 32, max_world_steps: int = 4) -> WorldReader:
    torch.manual_seed(0)
    return WorldReader(
        latent_shape=(16, 4, 6),
        hidden_size=hidden_size,
        embedding_rms=3.0,
        layout=layout,
        max_world_steps=max_world_steps,
    )


def test_the_seeds_example_224_pixels_4_steps_becomes_3920_tokens_of_width_2304() -> None:
    seeds = WorldReader(latent_shape=(16, 28, 28), hidden_size=2304, embedding_rms=1.0, layout=SPATIAL)
    latents = torch.randn(1, 16, 5, 28, 28)
    assert seeds.arrange(latents).shape == (1, 3920, 16)
    assert seeds(latents).shape == (1, 3920, 2304)
    assert SPATIAL.count(5, 28, 28, channels=16) == 3920


def test_spatial_tokens_run_through_time_then_rows_then_columns() -> None:
    frames = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4, 1)
    assert torch.equal(cut(SPATIAL, frames), torch.arange(24.0).view(1, 24, 1))


def test_a_patch_holds_its_cells_row_by_row_and_no_value_is_lost() -> None:
    frames = torch.arange(2 * 4 * 6 * 3.0).view(1, 2, 4, 6, 3)
    tokens = cut(PATCH, frames)
    assert tokens.shape == (1, 2 * 2 * 3, 12)
    assert torch.equal(tokens[0, 0], torch.cat([frames[0, 0, y, x] for y in (0, 1) for x in (0, 1)]))
    assert torch.equal(tokens[0, 6 + 1 * 3 + 2], torch.cat([frames[0, 1, y, x] for y in (2, 3) for x in (4, 5)]))
    assert torch.equal(tokens.flatten().sort().values, frames.flatten())


def test_patches_that_do_not_tile_the_frame_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"5x6 cells.*2x2.*spatial"):
        PATCH.grid(5, 6)
    with pytest.raises(ConfigError, match="at least 1"):
        TokenLayout(name="patch", patch=0)


def test_each_frame_gets_its_own_temporal_embedding_and_nothing_else() -> None:
    spatial = reader(layout=SPATIAL)
    added = spatial.arrange(torch.zeros(2, 16, 3, 4, 6)).view(2, 3, 24, 16)
    for frame in range(3):
        assert torch.equal(added[:, frame], spatial.temporal_embedding.weight[frame].expand(2, 24, 16))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 50.0])
def test_world_tokens_start_at_the_size_of_the_models_own_embeddings(scale: float) -> None:
    tokens = reader()(torch.randn(2, 16, 3, 4, 6) * scale)
    torch.testing.assert_close(tokens.square().mean(-1).sqrt(), torch.full((2, 18), 3.0), rtol=0.01, atol=0)


def test_the_same_cell_elsewhere_in_the_frame_is_another_token() -> None:
    torch.manual_seed(0)
    tokens = Projector(4, 8, grid=(2, 3), gain=1.0)(torch.ones(1, 6, 4))
    assert len({tuple(token) for token in tokens[0].tolist()}) == 6


def test_the_future_does_not_change_the_tokens_of_the_present() -> None:
    latents = torch.randn(1, 16, 4, 4, 6)
    assert torch.equal(reader()(latents)[:, :6], reader()(latents[:, :, :1]))


def test_latents_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(LatentShapeError, match=r"\(16, 4, 6\).*\(16, 4, 4\)"):
        reader()(torch.zeros(1, 16, 2, 4, 4))
    with pytest.raises(LatentShapeError, match=r"6 latent frames.*max_world_steps is 4"):
        reader()(torch.zeros(1, 16, 6, 4, 6))


def test_half_precision_latents_are_widened_before_anything_is_added() -> None:
    latents = torch.randn(1, 16, 2, 4, 6).half()
    assert torch.equal(reader()(latents), reader()(latents.float()))


def test_a_reader_of_some_frames_gives_the_tokens_these_frames_have_among_all() -> None:
    latents = torch.randn(2, 16, 4, 4, 6)
    every, some = reader(), reader()
    some.frames = (0, 3)
    assert (every.count(4, 4, 6), some.count(4, 4, 6), some.count(2, 4, 6)) == (24, 12, 6)
    tokens = every(latents)
    assert torch.allclose(some(latents), tokens[:, [*range(6), *range(18, 24)]])
    assert torch.allclose(some(latents[:, :, :2]), tokens[:, :6])


def test_a_reader_written_when_its_gain_was_a_scalar_still_loads() -> None:
    new, old = (Projector(4, 8, grid=(1, 2), gain=gain) for gain in (1.0, 3.0))
    weights = old.state_dict()
    assert weights["gain"].shape == (1,)
    new.load_state_dict({**weights, "gain": weights["gain"][0]})
    assert torch.equal(new.gain, old.gain)

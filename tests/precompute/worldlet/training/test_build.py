"""The worldlet's world model: equal to the stock code where it is leaner, and worth its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image

import theworld.precompute.worldlet
from theworld.pipeline.errors import ConfigError
from theworld.precompute.worldlet.training.build import build_world, write_card
from theworld.precompute.worldlet.training.clips import Chunk, Clips, clips_of, draw_scenes, load_chunk
from theworld.precompute.worldlet.training.dynamics import lean_forward, network_input, new_transformer
from theworld.precompute.worldlet.training.encode import encode_chunk, forget_latents_of_another
from theworld.precompute.worldlet.training.figures import first_frames, measure_world
from theworld.precompute.worldlet.training.figures import main as print_figures
from theworld.precompute.worldlet.training.optim import Average, save_training
from theworld.precompute.worldlet.training.vae import decode_whole, encode_whole, new_vae
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.source import resolve_world

WEIGHTS = Path(theworld.precompute.worldlet.__file__).parent / "weights"


@pytest.fixture(scope="module")
def unseen() -> Clips:
    return clips_of(draw_scenes("validation", 8))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with no weight left at zero, so that every path counts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_the_whole_sequence_forward_of_the_vae_equals_the_stock_chunks(frames: int) -> None:
    vae = shaken(new_vae(base_dim=4))
    video = torch.rand(2, 3, frames, 32, 32) * 2 - 1
    moments = vae._encode(video)
    torch.testing.assert_close(encode_whole(vae, video), moments, atol=2e-5, rtol=1e-4)
    latents = moments[:, :16]
    ours = decode_whole(vae, latents).clamp(-1, 1)
    torch.testing.assert_close(ours, vae.decode(latents).sample, atol=5e-5, rtol=1e-3)


@torch.no_grad()
def test_the_lean_forward_equals_the_stock_one_with_zero_text() -> None:
    model = shaken(new_transformer(layers=2, heads=2))
    clean = torch.randn(2, 16, 3, 8, 8)
    x, t = network_input(torch.randn_like(clean), clean, torch.rand(2))
    stock = model(
        hidden_states=x[:, :16],
        timestep=t[:, None, :, None, None],
        encoder_hidden_states=torch.zeros(2, 512, 32),
        condition_mask=x[:, 16:],
        return_dict=False,
    )[0]
    torch.testing.assert_close(lean_forward(model, x, t), stock, atol=1e-5, rtol=1e-4)


def test_clips_are_made_once(tmp_path: Path) -> None:
    chunk = Chunk(split="video", number=0, size=4)
    first = load_chunk(tmp_path, chunk)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = load_chunk(tmp_path, chunk)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.array_equal(first.frames, again.frames)


def test_files_of_a_chunk_keep_the_names_that_half_finished_builds_have() -> None:
    assert Chunk(split="video", number=7).name == "video-0-00007-240"
    assert Chunk(split="train", number=0, seed=1, size=8, families=["push", "race"]).name == "train-1-00000-8-push-race"


def test_latents_of_an_autoencoder_that_was_trained_on_are_made_again(tmp_path: Path) -> None:
    vae, chunk = shaken(new_vae(base_dim=4)), Chunk(split="video", number=0, size=2)
    assert isinstance(vae, AutoencoderKLWan)
    folders = tmp_path / "clips", tmp_path / "latents"

    def latents() -> tuple[int, np.ndarray]:
        removed = forget_latents_of_another(folders[1], vae)
        return removed, np.load(encode_chunk(vae, *folders, chunk))

    (_, first), (none, same) = latents(), latents()
    assert none == 0
    assert np.array_equal(first, same)
    shaken(vae)
    removed, after = latents()
    assert removed == 1
    assert not np.array_equal(first, after)
    assert latents()[0] == 0, "they are this one's now"


def test_a_training_that_is_killed_while_it_saves_goes_on_from_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 2)
    save_training(tmp_path, model, Average(model, 0.9), step=1, elapsed_s=1.0)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("theworld.pipeline.files.atomic.os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_training(tmp_path, model, Average(model, 0.9), step=2, elapsed_s=2.0)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_figures_of_a_world_are_of_the_families_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_figures([str(WEIGHTS), "--families", "push", "--scenes", "2", "--evaluations", "1"])
    found = json.loads(capsys.readouterr().out)
    assert found["test"]["evaluations"]["1"]["outcome"].keys() == {"push", "all"}
    with pytest.raises(ConfigError, match="no family shove"):
        print_figures([str(WEIGHTS), "--families", "shove"])


def test_the_shipped_world_is_small_and_says_what_it_is() -> None:
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size <= 8 * 2**20
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert resolve_world(None).card.window == 9
    assert resolve_world(None).card.denoise_steps == card["defaults"]["denoise_steps"] == 2
    one, nine = (card["figures"]["test"]["evaluations"][count]["outcome"]["all"] for count in ("1", "9"))
    assert one >= nine, "more denoising than the default shows more scenes' ends"
    figures = card["figures"]["test"]
    assert figures["evaluations"]["9"]["outcome"]["all"] >= 0.78
    for family, share in figures["evaluations"]["9"]["outcome"].items():
        assert share > figures["copy_frame_0"]["outcome"][family]
    config = json.loads((WEIGHTS / "vae" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 16


def test_the_page_of_a_world_says_what_its_card_says_at_its_own_number_of_evaluations(tmp_path: Path) -> None:
    write_card(tmp_path, json.loads((WEIGHTS / "card.json").read_text()))
    for name in ("card.json", "README.md"):
        assert (tmp_path / name).read_text() == (WEIGHTS / name).read_text()


def test_the_shipped_world_predicts_better_than_a_copy_of_frame_0(unseen: Clips) -> None:
    figures = measure_world(CosmosWorld.load(WEIGHTS), unseen)
    rollout, copied = figures["evaluations"]["9"], figures["copy_frame_0"]
    assert rollout["latent_mse"] < 0.7 * copied["latent_mse"]
    assert min(rollout["skill_by_frame"]) > 0
    assert rollout["outcome"]["all"] > copied["outcome"]["all"]
    assert figures["vae"]["outcome"]["all"] >= 0.9
    assert figures["vae"]["color_class_kept"] >= 0.95
    assert set(figures["parser_on_true_frames"].values()) == {1.0}


@torch.no_grad()
def test_the_stock_pipeline_runs_the_shipped_world_as_our_figures_do(
    unseen: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import Cosmos2VideoToWorldPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # The stock pipeline conditions on a draw from the posterior; the product, and so we, on its mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _generator=None: self.mode())

    class Unchecked:
        """Nothing is decoded, so there is nothing to check."""

        def to(self, _device: object) -> None: ...

    vae = AutoencoderKLWan.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32)
    transformer = CosmosTransformer3DModel.from_pretrained(WEIGHTS / "transformer", torch_dtype=torch.float32)
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(WEIGHTS / "scheduler"),
        safety_checker=Unchecked(),
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    stock = pipeline(
        image=Image.fromarray(unseen.frames[0, 0]),
        height=64,
        width=64,
        num_frames=33,
        num_inference_steps=10,
        guidance_scale=1.0,
        fps=None,
        latents=noise,
        prompt_embeds=torch.zeros(1, 512, 32),
        negative_prompt_embeds=torch.zeros(1, 512, 32),
        output_type="latent",
    ).frames
    world = CosmosWorld.load(WEIGHTS)
    first = world.encode(first_frames(unseen)[0][:1])
    ours = world.denoise(first, noise, denoise_steps=10)
    torch.testing.assert_close(stock, ours, atol=1e-5, rtol=1e-5)


def test_a_regression_keeps_the_autoencoder_and_predicts_in_one_evaluation(tmp_path: Path) -> None:
    sizes = {"minutes": 0.02, "train_clips": 8, "test_scenes": 4, "batch": 2}
    card = build_world(tmp_path / "mean", regression=True, **sizes)  # type: ignore[arg-type]
    vae, transformer = (
        Path("vae/diffusion_pytorch_model.safetensors"),
        "transformer/diffusion_pytorch_model.safetensors",
    )
    assert (tmp_path / "mean" / vae).read_bytes() == (WEIGHTS / vae).read_bytes()
    assert (tmp_path / "mean" / transformer).read_bytes() != (WEIGHTS / transformer).read_bytes()
    configs = [json.loads((folder / "vae" / "config.json").read_text()) for folder in (tmp_path / "mean", WEIGHTS)]
    assert configs[0]["latents_mean"] == configs[1]["latents_mean"]
    figures = card["figures"]["test"]
    assert figures["evaluations"]["1"]["latent_mse"] < figures["copy_frame_0"]["latent_mse"]
    assert resolve_world(str(tmp_path / "mean")).card.denoise_steps == 2


def test_a_world_of_an_open_family_is_built_over_the_same_autoencoder_and_its_draws_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside the rollout of 9 evaluations, which is always measured.
    monkeypatch.setattr("theworld.precompute.worldlet.training.build.EVALUATIONS", ())
    monkeypatch.setattr("theworld.precompute.worldlet.training.build.CHUNK_SIZE", 2)
    sizes = {"minutes": 0.02, "train_clips": 8, "test_scenes": 2, "batch": 2}
    out = tmp_path / "open"
    card = build_world(out, families=["push"], keep_vae=True, **sizes)  # type: ignore[arg-type]
    vae = Path("vae/diffusion_pytorch_model.safetensors")
    assert (out / vae).read_bytes() == (WEIGHTS / vae).read_bytes()
    assert card["data"]["families"] == ["push"]
    assert "(scenes version 2) of push." in (out / "README.md").read_text()
    assert card["figures"]["test"]["evaluations"]["9"]["outcome"].keys() == {"push", "all"}
    assert card["draws"]["push"]["scenes"] == 2
    assert "denoise steps is 10: 9 evaluations" in (out / "README.md").read_text()
    assert resolve_world(str(out)).card.denoise_steps == 10, "one evaluation would show the mean of what may happen"
    # the clips of other families beside them are of other names
    latents = {path.name for path in (tmp_path / "open.scratch" / "latents").glob("*.npy")}
    seen = {f"video-0-0000{number}-2-push.npy" for number in range(3)}
    assert latents == {*seen, "train-1-00000-2-push.npy"}, "the scenes that readers train on have the seed 0"
    with pytest.raises(ConfigError, match=r"other settings: families \['push'\] \(now \['buckets'\]\)"):
        build_world(out, families=["buckets"], keep_vae=True, **sizes)  # type: ignore[arg-type]
    note = tmp_path / "open.scratch" / "build.json"
    for damaged in ("{", "[]"):
        note.write_text(damaged)
        with pytest.raises(ConfigError, match=r"build\.json is damaged"):
            build_world(out, families=["push"], keep_vae=True, **sizes)  # type: ignore[arg-type]
    note.unlink()
    with pytest.raises(ConfigError, match="trainings of an earlier version"):
        build_world(out, families=["push"], keep_vae=True, **sizes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no family shove: families are buckets, race, tower, contact, push"):
        build_world(out, families=["shove"], keep_vae=True, **sizes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_tiny_world_is_built_saved_and_better_than_a_copy_of_frame_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside the rollout of 9 evaluations, which is always measured. All six take longer than the trainings.
    monkeypatch.setattr("theworld.precompute.worldlet.training.build.EVALUATIONS", (1,))

    def build() -> dict[str, Any]:
        return build_world(
            tmp_path / "tiny",
            minutes=0.4,
            train_clips=48,
            test_scenes=4,
            vae_share=0.5,  # in the latents of one trained for 8 s or less, a copy of frame 0 is no measure
            base_dim=4,
            layers=2,
            batch=2,  # takes half the time that 8 does
        )

    torch.manual_seed(0)
    figures = build()["figures"]["test"]
    # One evaluation: what a network has learned first is the mean of what may happen.
    assert figures["evaluations"].keys() == {"9", "1"}
    assert figures["evaluations"]["1"]["latent_mse"] < figures["copy_frame_0"]["latent_mse"]
    assert (tmp_path / "tiny" / "scheduler" / "scheduler_config.json").exists()
    trained = {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*.safetensors")}
    # Equal weights have equal figures, which take long.
    monkeypatch.setattr("theworld.precompute.worldlet.training.build.measure_world", lambda *_, **__: figures)
    build()  # the trainings were over: nothing is trained again
    assert len(trained) == 2
    assert {path: path.read_bytes() for path in trained} == trained

"""V-JEPA 2 against the installed class, given the same masks, and what its family promises and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import layer_norm
from torch.utils.flop_counter import FlopCounterMode
from transformers import VJEPA2Config
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.modeling_outputs import BaseModelOutput
from typer.testing import CliRunner

from tests.miniatures.vjepa2 import CHANNELS, SIDE, mini_vjepa2, save_mini_vjepa2
from tests.miniatures.world_model import save_mini_wan, save_mini_world
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.registry import list_worlds, load_world
from theworld.precompute.worlds.source import find_family, resolve_world
from theworld.precompute.worlds.vjepa2.engine import VJepa2World
from theworld.precompute.worlds.vjepa2.space import Sizes


def recipe(**changes: object) -> Recipe:
    return Recipe(**({"world": "sha256:x", "height": SIDE, "width": SIDE, "rollout_steps": 3} | changes))


def pictures(count: int, *frames: int, side: int = SIDE) -> torch.Tensor:
    shape = (count, 3, *frames, side, side)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pixel_values(images: torch.Tensor) -> torch.Tensor:
    """What the processor makes of images of the model's size, each twice: (B, 2, 3, height, width)."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (((images + 1) / 2 - mean) / std).unsqueeze(1).repeat(1, 2, 1, 1, 1)


class SeesOneTubelet(torch.nn.Module):
    """The encoder of a whole clip, of which only the first tubelet is there: zeros stand for the rest."""

    def __init__(self, encoder: torch.nn.Module, tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokens = encoder, tokens

    def forward(self, pixel_values_videos: torch.Tensor, **_: object) -> BaseModelOutput:
        seen = self.encoder(pixel_values_videos).last_hidden_state
        return BaseModelOutput(torch.nn.functional.pad(seen, (0, 0, 0, self.tokens - seen.shape[1])))


@pytest.fixture(scope="module")
def world() -> VJepa2World:
    return VJepa2World(mini_vjepa2())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_vjepa2(tmp_path_factory.mktemp("world") / "jepa")


@pytest.mark.parametrize(("batch", "steps", "side"), [(1, 1, 64), (3, 7, 64), (2, 3, 32), (2, 2, 48), (1, 4, 96)])
def test_a_rollout_equals_the_installed_class_given_the_same_masks(batch: int, steps: int, side: int) -> None:
    stock = mini_vjepa2(crop_size=side)
    images, count = pictures(batch, side=side), (side // 16) ** 2
    made = VJepa2World(mini_vjepa2(crop_size=side)).rollout(
        images, ["key"] * batch, recipe(height=side, width=side, rollout_steps=steps)
    )
    stock.encoder = SeesOneTubelet(stock.encoder, count * (1 + steps))
    places = torch.arange(count * (1 + steps)).repeat(batch, 1)
    with torch.inference_mode():
        out = stock(pixel_values(images), context_mask=[places[:, :count]], target_mask=[places[:, count:]])
    first = layer_norm(out.masked_hidden_state, (CHANNELS,))
    expected = torch.cat([first, out.predictor_output.last_hidden_state], dim=1)
    tokens = made.permute(0, 2, 3, 4, 1).flatten(1, 3)
    assert (tokens - expected).abs().max().item() <= 1e-6
    assert made.shape == (batch, CHANNELS, 1 + steps, side // 16, side // 16)


def test_frame_zero_is_the_encoding_and_neither_batch_nor_order_nor_seed_changes_a_future(world: VJepa2World) -> None:
    images, keys = pictures(4), ["a", "b", "c", "d"]
    made = world.rollout(images, keys, recipe())
    stock = mini_vjepa2().get_vision_features(pixel_values(images)).detach()
    features = layer_norm(stock, (CHANNELS,)).transpose(1, 2).unflatten(2, (1, 4, 4))
    assert (made[:, :, :1] - features).abs().max().item() <= 1e-6
    assert torch.equal(made[:, :, :1], world.encode(images))
    assert torch.equal(world.rollout(images, keys, recipe(rollout_steps=0)), made[:, :, :1])
    assert torch.equal(world.rollout(images.flip(0), keys, recipe()), made.flip(0))
    assert torch.equal(world.rollout(images.unsqueeze(2), keys, recipe(seed=1)), made)
    alone = world.rollout(images[1:2], keys[1:2], recipe())
    assert (alone - made[1:2]).abs().max().item() <= 1e-5
    assert not torch.allclose(made[:, :, 1], made[:, :, 2])


def test_a_stride_keeps_frames_of_the_longer_rollout(world: VJepa2World) -> None:
    images = pictures(2)
    long = world.rollout(images, ["a", "b"], recipe(rollout_steps=6))
    assert torch.equal(world.rollout(images, ["a", "b"], recipe(stride=2)), long[:, :, ::2])


def test_each_tubelet_of_a_video_is_encoded_alone(world: VJepa2World) -> None:
    videos = pictures(2, 5)
    made = world.encode_video(videos)
    assert made.shape == (2, CHANNELS, 3, 4, 4)
    assert (made[:, :, :1] - world.encode(videos[:, :, 0])).abs().max().item() <= 1e-6
    other = videos.clone()
    other[:, :, 3:] = 0  # the last tubelet
    again = world.encode_video(other)
    assert torch.equal(again[:, :, :2], made[:, :, :2])
    assert not torch.allclose(again[:, :, 2], made[:, :, 2])
    assert torch.equal(world.encode_video(videos[:, :, :1]), world.encode(videos[:, :, 0]))


def test_the_encoder_stays_in_float32_where_the_predictor_does_not(world: VJepa2World) -> None:
    images = pictures(2)
    full = world.rollout(images, ["a", "b"], recipe())
    half = VJepa2World(mini_vjepa2(), compute_dtype="bfloat16").rollout(images, ["a", "b"], recipe())
    assert torch.equal(half[:, :, :1], full[:, :, :1])
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max().item() < 0.1


def test_what_cannot_be_shown_is_refused(world: VJepa2World) -> None:
    with pytest.raises(ConfigError, match="shown one frame, not 3"):
        world.rollout(pictures(1, 3), ["a"], recipe(kind="continuation", observed_frames=3))
    with pytest.raises(ConfigError, match="takes pictures of 64x64 pixels, not of 32x32"):
        world.encode(pictures(1, side=32))


def test_pixels_are_normalised_as_the_folder_s_processor_says(folder: Path, tmp_path: Path) -> None:
    images = pictures(1)
    usual = load_world(folder).encode(images)
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        other = save_mini_vjepa2(tmp_path / name)
        (other / "video_preprocessor_config.json").unlink()
        assert torch.equal(load_world(other).encode(images), usual)  # the class's own, where there is no word
        (other / name).write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
        assert not torch.allclose(load_world(other).encode(images), usual)
        assert resolve_world(str(other)).identity != resolve_world(str(folder)).identity
    for wrong, words in (
        ({"image_mean": [0.5]}, r"image_mean \[0\.5\]: no three numbers"),
        ({"image_std": [1, 1, "a"]}, "no three numbers"),
        ({"image_mean": [0, 0, float("nan")]}, "no three numbers|cannot be read"),
        ({"image_std": [1, 0, 1]}, r"divides by 0 \(image_std\)"),
    ):
        (other / name).write_text(json.dumps(wrong))
        with pytest.raises(WorldModelError, match=words):
            load_world(other)


def test_a_folder_without_subfolders_is_named_by_its_config_weights_and_processor_alone(
    folder: Path, tmp_path: Path
) -> None:
    source = resolve_world(str(folder))
    assert source.family.title == "Meta V-JEPA 2"
    assert (source.card.height, source.card.width, source.card.window, source.card.fps) == (SIDE, SIDE, 8, 4.0)
    assert source.weight_bytes() == (folder / "model.safetensors").stat().st_size
    spec = source.latent_spec()
    assert spec == VJepa2World(mini_vjepa2()).spec
    assert spec.sample_shape(SIDE, SIDE, 7) == (CHANNELS, 8, 4, 4)
    same = save_mini_vjepa2(tmp_path / "same")
    (same / "README.md").write_text("notes do not matter")
    (same / "card.json").write_text(json.dumps({"defaults": {"window": 5}}))
    assert resolve_world(str(same)).identity == source.identity
    assert resolve_world(str(same)).card.window == 5
    (same / "card.json").write_text(json.dumps({"defaults": {"height": 32}}))
    with pytest.raises(WorldModelError, match=r"height 32 and width 64, but this Meta V-JEPA 2 takes .* of 64x64"):
        resolve_world(str(same))
    (same / "card.json").unlink()
    assert resolve_world(str(save_mini_vjepa2(tmp_path / "other", seed=1))).identity != source.identity
    (same / "model.safetensors").unlink()
    with pytest.raises(WorldModelError, match=r"holds no \*\.safetensors"):
        load_world(same)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["VJEPA2ForVideoClassification"]}, r"tuned to name classes.*facebook/vjepa2-vitl-fpc64-256"),
        ({"model_type": "vjepa2_1"}, r"it is a vjepa2_1; .*not 2\.1 and not 2-AC"),
        ({"model_type": "vjepa2-ac"}, "not 2-AC"),
        ({"model_type": "dinov2"}, "It is a dinov2 without parts, which none of them runs"),
        ({"in_chans": 4}, "4 colours"),
        ({"crop_size": 72}, "no multiple of 16"),
        ({"crop_size": "256"}, "crop_size is 256, and no whole number"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
        ({"frames_per_clip": 2}, "no later tubelet"),
        ({"patch_size": [16, 16]}, "patch_size is"),
        ({"patch_size": 0}, "patch_size is 0"),
    ],
)
def test_siblings_are_refused_by_their_difference(folder: Path, tmp_path: Path, changes: object, words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WorldModelError, match=words) as caught:
        resolve_world(str(tmp_path))
    assert "no vae/" not in str(caught.value)  # of the lines that have parts nothing helps here


def test_folders_of_other_lines_are_not_taken_for_it_and_keep_their_families(tmp_path: Path) -> None:
    for save, title in ((save_mini_world, "NVIDIA Cosmos-Predict2 Video2World"), (save_mini_wan, "Wan 2.1")):
        world = save(tmp_path / title)
        before = resolve_world(str(world)).identity
        (world / "config.json").write_text('{"model_type": "something"}')  # as some repositories have it
        assert find_family(str(world)).title.startswith(title)
        assert resolve_world(str(world)).identity == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorldModelError, match=r"no v-jepa2 \(Meta V-JEPA 2\): it has no config\.json of its own"):
        resolve_world(str(tmp_path / "empty"))


def test_what_draws_denoises_or_reads_is_refused_and_the_plan_says_one_forward(folder: Path) -> None:
    world = resolve_world(str(folder))
    made = make_recipe(PrecomputeConfig(steps=7), world)
    assert (made.height, made.width, made.compute_dtype, made.denoise_steps) == (SIDE, SIDE, "float32", 10)
    assert KINDS["rollout"].describe(made, world) == "7 steps = 3.5 s ahead, in one forward, without noise"
    for refused, words in (
        ({"denoise_steps": 10}, "--denoise-steps 10 means nothing for Meta V-JEPA 2"),
        ({"solver": "euler"}, "--solver euler means nothing for Meta V-JEPA 2: it denoises nothing"),
        ({"fps": 4.0}, "--fps 4 has no meaning"),
        ({"seed": 3}, "--seed 3: Meta V-JEPA 2 draws no noise"),
        ({"kind": "samples", "steps": 2}, "--kind samples: Meta V-JEPA 2 draws no noise"),
        ({"kind": "posterior", "steps": None}, "--kind posterior: Meta V-JEPA 2 encodes to points"),
        ({"kind": "continuation", "steps": 4}, "--observed-frames 5: Meta V-JEPA 2 can be shown 1 frame"),
        ({"size": "32x64"}, r"takes pictures of 64x64 pixels only, and not of --size 32x64\. Leave --size out"),
        ({"guidance": 2.0, "prompt": "red"}, "has no guidance"),
        ({"steps": 20, "chunk_context": 1}, "decodes no latents"),
        ({"steps": 8}, r"was trained on 8, .* Choose --steps of at most 7$"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_recipe(PrecomputeConfig(**({"steps": 4} | refused)), world)
    with pytest.raises(WorldModelError, match="reads no prompts"):
        resolve_world(str(folder), with_text=True)
    for possible in ({"kind": "frames"}, {"kind": "views", "steps": 4}, {"kind": "continuation", "observed_frames": 1}):
        make_recipe(PrecomputeConfig(**({"steps": 4} | possible)), world)


def test_the_plan_counts_the_operations_that_torch_counts(folder: Path) -> None:
    model = mini_vjepa2()
    model.set_attn_implementation("eager")  # torch counts no fused attention on a CPU
    world, engine, images = resolve_world(str(folder)), VJepa2World(model), pictures(1)
    for asked in (recipe(rollout_steps=0), recipe(rollout_steps=5)):
        with FlopCounterMode(display=False) as counter:
            engine.rollout(images, ["a"], asked)
        plan = operations_of(world, asked)
        assert plan is not None
        assert plan.total == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_its_names_and_the_defaults_of_its_config() -> None:
    by_name = {row["world"]: row for row in list_worlds()}
    row = by_name["v-jepa2-vitl"]
    assert (row["at"], row["family"]) == ("facebook/vjepa2-vitl-fpc64-256", "v-jepa2")
    assert (row["height"], row["window"], row["prompts"]) == (256, 32, False)
    table = CliRunner().invoke(app, ["worlds"], env={"COLUMNS": "80"}).stdout.splitlines()
    line = next(line for line in table if line.startswith("v-jepa2-vitl"))
    assert line.split() == ["v-jepa2-vitl", "v-jepa2", "256x256", "32", "4", "none", "no"]
    assert Sizes.of(VJEPA2Config().to_dict()) == Sizes.of({"model_type": "vjepa2"})

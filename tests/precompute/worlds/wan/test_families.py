"""Which folders the families of Wan take, what is said of the others, and what a plan counts for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.miniatures.wan22 import mini_wan22_transformer, mini_wan22_vae, save_mini_ti2v, save_mini_two_stage
from tests.miniatures.world_model import TEXT_WIDTH, mini_wan_transformer, save_mini_wan
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.worlds.arithmetic import wan_encode_flops, wan_forward_flops
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.family import read_configs
from theworld.precompute.worlds.registry import identify
from theworld.precompute.worlds.source import find_dimensions, resolve_world

from ..test_registry import edited

INDEX, TRANSFORMER, SCHEDULER = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"
DRAWS = {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}
WORKS = "wan2.2-ti2v-5b and wan2.2-i2v-a14b begin with one image"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    return {
        "wan2.1-i2v": save_mini_wan(root / "wan21"),
        "wan2.2-ti2v": save_mini_ti2v(root / "ti2v"),
        "wan2.2-i2v": save_mini_two_stage(root / "two-stage"),
    }


def test_each_folder_is_of_one_family(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert identify(read_configs(folder), folder).name == name


@pytest.mark.parametrize(
    ("family", "file", "changes", "words"),
    [
        ("wan2.2-ti2v", INDEX, {"expand_timesteps": False}, ["WanPipeline", "text", WORKS]),
        ("wan2.2-i2v", INDEX, {"_class_name": "WanPipeline"}, ["WanPipeline", "text", WORKS]),
        ("wan2.2-i2v", INDEX, {"_class_name": "WanVACEPipeline"}, ["WanVACEPipeline", "control", WORKS]),
        ("wan2.2-i2v", INDEX, {"_class_name": "WanAnimatePipeline"}, ["video of a person", WORKS]),
        ("wan2.2-ti2v", INDEX, {"_class_name": "WanSpeechToVideoPipeline"}, ["needs speech", WORKS]),
        ("wan2.1-i2v", TRANSFORMER, {"pos_embed_seq_len": 514}, ["wants a last frame", WORKS]),
        ("wan2.2-i2v", INDEX, {"boundary_ratio": None}, ["boundary_ratio None", "second transformer"]),
        ("wan2.2-i2v", INDEX, {"boundary_ratio": 1.5}, ["boundary_ratio 1.5"]),
        ("wan2.2-i2v", TRANSFORMER, {"image_dim": 16}, ["CLIP"]),
        ("wan2.2-i2v", "transformer_2/config.json", {"in_channels": 48}, ["transformer_2 takes 48 channels, not 36"]),
        ("wan2.2-i2v", "transformer_2/config.json", {"_class_name": "Other"}, ["transformer_2 is a Other"]),
        ("wan2.2-ti2v", INDEX, {"boundary_ratio": 0.9}, ["second transformer takes over", "TI2V has one"]),
        ("wan2.2-ti2v", TRANSFORMER, {"in_channels": 100}, ["100 channels", "not the 48"]),
        ("wan2.2-ti2v", TRANSFORMER, {"patch_size": None}, ["patch_size None"]),
        ("wan2.2-i2v", "transformer_2/config.json", {"patch_size": [1, "2", 2]}, ["transformer_2 has the patch_size"]),
        ("wan2.1-i2v", TRANSFORMER, {"patch_size": [2, 2, 2]}, ["2 latent frames as one"]),
        ("wan2.2-ti2v", SCHEDULER, {"use_flow_sigmas": False}, ["along a flow"]),
        ("wan2.2-ti2v", SCHEDULER, {"use_dynamic_shifting": True}, ["never tells it"]),
        ("wan2.1-i2v", SCHEDULER, DRAWS, ["draws noise of its own"]),
        ("wan2.2-i2v", SCHEDULER, DRAWS, ["draws noise of its own"]),
        ("wan2.2-ti2v", "text_encoder/config.json", {"model_type": "t5"}, ["t5, not a umt5"]),
    ],
)
def test_a_folder_that_none_takes_is_refused_by_the_nearest_family_alone(
    folders: dict[str, Path], tmp_path: Path, family: str, file: str, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(WorldModelError) as caught:
        resolve_world(str(edited(folders[family], tmp_path / "other", file, **changes)))
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.partition("Supported are")[0].count("; no ") == 0  # one reason, not one of each family


def test_both_transformers_and_the_boundary_between_them_count_in_the_identity(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["wan2.2-i2v"]
    identities = {resolve_world(str(folder)).identity}
    weights = "transformer_2/diffusion_pytorch_model.safetensors"
    second = Path(shutil.copytree(folder, tmp_path / "second"))
    shutil.copy(folder / weights.replace("_2/", "/"), second / weights)
    identities |= {resolve_world(str(second)).identity}
    identities |= {resolve_world(str(edited(folder, tmp_path / "boundary", INDEX, boundary_ratio=0.8))).identity}
    assert len(identities) == 3


def test_of_two_transformers_one_is_on_the_device_at_a_time(folders: dict[str, Path]) -> None:
    folder = folders["wan2.2-i2v"]
    size = {path.parent.name: path.stat().st_size for path in folder.glob("*/*.safetensors")}
    assert resolve_world(str(folder)).weight_bytes() == size["vae"] + size["transformer"]


def test_known_names_have_their_dimensions_without_a_network(folders: dict[str, Path]) -> None:
    for name, family in BUILT_IN.items():
        if name in folders:
            (known,) = family.names
            dimensions, spec = find_dimensions(known), family.latent_spec(read_configs(folders[name]))
            assert (dimensions.channels, dimensions.spatial_stride) == (spec.channels, spec.spatial_stride)
            assert (dimensions.height, dimensions.width) == (family.card.height, family.card.width)
            assert dimensions.height % 32 == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": "48x64"}, ["32x32 pixels", "48x64", "--size 64x64"]),
        ({"fps": 24.0}, ["no meaning", "Wan 2.2"]),
        ({"solver": "2ab"}, ["scheduler in its folder"]),
        ({"kind": "continuation", "observed_frames": 5}, ["Wan 2.2", "1 frame"]),
        ({"steps": 31}, ["32 latent frames", "at most 30", "--chunk-context 1 "]),
    ],
)
def test_what_the_model_cannot_do_is_refused_in_one_message(
    folders: dict[str, Path], settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(PrecomputeConfig(**({"size": "64x64"} | settings)), resolve_world(str(folders["wan2.2-ti2v"])))
    for word in words:
        assert word in str(caught.value)


def test_a_forward_and_an_encoding_cost_what_torch_counts() -> None:
    vae, half = mini_wan22_vae(), torch.bfloat16
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        vae.encode(torch.zeros(1, 3, 9, 64, 32))
    assert wan_encode_flops(dict(vae.config), 64, 32, 9) == pytest.approx(counted.get_total_flops(), rel=0.02)
    image_tokens = torch.zeros(1, 5, 16, dtype=half, device="meta")
    for transformer, image in ((mini_wan_transformer(), image_tokens), (mini_wan22_transformer(), None)):
        with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counted:
            transformer.to("meta", half)(
                torch.zeros(1, 36, 3, 16, 16, dtype=half),
                torch.zeros(1, dtype=half),
                torch.zeros(1, 512, TEXT_WIDTH, dtype=half),
                image,
            )
        formula = wan_forward_flops(dict(transformer.config), 3, 16, 16, image_tokens=0 if image is None else 5)
        assert formula == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_a_plan_counts_one_forward_a_noise_level_and_what_is_encoded(folders: dict[str, Path]) -> None:
    predicted: dict[str, float] = {}
    for name, folder in folders.items():
        world = resolve_world(str(folder))
        config = PrecomputeConfig(size="64x64", steps=2, denoise_steps=4)
        plain = operations_of(world, make_recipe(config, world))
        guided = operations_of(world, make_recipe(config.model_copy(update={"guidance": 2.0, "prompt": "a"}), world))
        assert plain is not None
        assert guided is not None
        assert guided.predict == 2 * plain.predict
        vae = read_configs(folder)["vae"]
        assert plain.encode == wan_encode_flops(vae, 64, 64, 1 if name == "wan2.2-ti2v" else 9)
        predicted[name] = plain.predict
    # CLIP's tokens are more to see
    assert predicted["wan2.1-i2v"] > predicted["wan2.2-i2v"]

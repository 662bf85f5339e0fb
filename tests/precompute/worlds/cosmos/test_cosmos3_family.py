"""Which folders are of Cosmos 3, what others are told, and what its work costs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Cosmos3OmniTransformer
from torch.utils.flop_counter import FlopCounterMode

from tests.miniatures.cosmos3 import EDGE, MINI, save_mini_cosmos3
from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.worlds.cosmos.cosmos3_family import (
    DEFAULTS,
    Cosmos3,
    KeysAndValues,
    generation_flops,
    tower_numbers,
)
from theworld.precompute.worlds.cosmos.cosmos3_forward import Beside, GenerationTower, SamePrompts
from theworld.precompute.worlds.family import read_configs
from theworld.precompute.worlds.registry import identify
from theworld.precompute.worlds.source import find_dimensions, resolve_world

EDGE_CONFIG = {
    "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 9216, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "relu2", "latent_patch_size": 2, "patch_latent_dim": 192,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_cosmos3(tmp_path_factory.mktemp("world") / "edge", **EDGE)


def changed(part: str, **changes: object) -> Callable[[dict[str, dict[str, Any]]], object]:
    return lambda configs: configs[part].update(changes)


@pytest.mark.parametrize("name", ["Cosmos3OmniPipeline", "Cosmos3OmniDiffusersPipeline"])
def test_a_folder_of_either_layout_is_one_of_the_family(folder: Path, name: str) -> None:
    configs = {part: dict(config) for part, config in read_configs(folder).items()}
    configs["model_index"]["_class_name"] = name
    assert identify(configs, folder).name == "cosmos3"
    spec = Cosmos3().latent_spec(configs)
    assert (spec.channels, spec.spatial_stride, spec.temporal_stride) == (48, 16, 4)


OTHERS = {
    "a student of four steps": (
        changed(
            "scheduler",
            _class_name="FlowMatchEulerDiscreteScheduler",
            fixed_step_sampler_config={"sample_type": "sde", "t_list": [1.0, 0.9, 0.7, 0.4]},
        ),
        "student of few steps .*the model it was distilled from; cosmos3-edge and cosmos3-nano begin with an image",
    ),
    "a simulator": (changed("transformer", cosmos3_nano_sim_bimanual={}), "simulator .*frame by frame"),
    "a causal one": (changed("transformer", video_temporal_causal=True), "simulator .*video_temporal_causal"),
    "a policy": (changed("transformer", domain_name="droid_lerobot"), "robot's policy"),
    "a quantized one": (changed("transformer", quantization_config={"quant_method": "modelopt"}), "main revision"),
    "another scheduler": (
        changed("scheduler", _class_name="DDIMScheduler"),
        "scheduler is a DDIMScheduler, not a UniPC",
    ),
    "another form": (changed("scheduler", prediction_type="epsilon"), "does not step along a flow"),
    "a scheduler of sizes": (changed("scheduler", use_dynamic_shifting=True), "shifts by the size"),
    "another autoencoder": (
        changed("vae", z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16),
        "takes latents of 48 channels, and its vae makes 16",
    ),
    "no tokenizer": (lambda configs: configs.pop("text_tokenizer"), "it has no text_tokenizer/"),
    "no index": (lambda configs: configs.pop("model_index"), "no model_index.json"),
}


@pytest.mark.parametrize(("change", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_a_folder_of_another_member_is_told_what_it_is_and_what_would_work(
    folder: Path, change: Callable[[dict[str, dict[str, Any]]], object], words: str
) -> None:
    configs = {part: dict(config) for part, config in read_configs(folder).items()}
    change(configs)
    with pytest.raises(WorldModelError, match=rf"no cosmos3 \(NVIDIA Cosmos 3\): .*{words}"):
        identify(configs, folder)


def test_another_pipeline_of_the_line_is_named(folder: Path) -> None:
    configs = {part: dict(config) for part, config in read_configs(folder).items()}
    changed("model_index", _class_name="Cosmos3TransferPipeline")(configs)
    with pytest.raises(WorldModelError, match=r"Its pipeline is a Cosmos3TransferPipeline, .* Supported are .*cosmos3"):
        identify(configs, folder)


def test_all_that_decides_a_latent_is_in_the_identity_of_a_folder(tmp_path: Path) -> None:
    world = save_mini_cosmos3(tmp_path / "edge", **EDGE)
    seen = {resolve_world(str(world)).identity}
    index = {"_class_name": "Cosmos3OmniPipeline", "use_native_flow_schedule": True}
    (world / "model_index.json").write_text(json.dumps(index))
    seen.add(resolve_world(str(world)).identity)
    template = world / "text_tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    seen.add(resolve_world(str(world)).identity)
    (world / "sound_tokenizer").mkdir()
    (world / "sound_tokenizer" / "config.json").write_text("{}")
    seen.add(resolve_world(str(world)).identity)
    assert len(seen) == 3, "sound decides nothing"


@pytest.mark.parametrize("changes", [{}, EDGE], ids=["Nano", "Edge"])
def test_a_forward_costs_what_torch_counts(changes: dict[str, object]) -> None:
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        transformer = Cosmos3OmniTransformer(**(MINI | changes))
        text, rope = torch.zeros(3, 1, 80, 2, 16), torch.zeros(1, 5 * 4 * 3, 16)
        tower, beside = (
            GenerationTower(transformer, temporal_stride=4),
            Beside((rope, rope), (SamePrompts(None, text, text),)),
        )
        tower(torch.zeros(1, 48, 5, 8, 6), 500.0, 1, beside)
    counted = generation_flops(transformer.config, 5, 8, 6)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_edge_costs_less_than_a_third_of_cosmos_predict2_at_nine_frames() -> None:
    # TFLOP at 256x256, against 5.7 of the 2B at 224x224
    assert generation_flops(EDGE_CONFIG, 9, 16, 16) / 1e12 == pytest.approx(1.71, rel=0.01)
    assert KeysAndValues().most_bytes({"transformer": EDGE_CONFIG}) == 512 * 28 * 2 * 8 * 128 * 4


def test_a_plan_knows_the_operations_of_a_rollout(folder: Path) -> None:
    fields = {"world": "sha256:x", "height": 128, "width": 64, "rollout_steps": 3, "denoise_steps": 7, "fps": 24.0}
    world = resolve_world(str(folder))
    one, guided = (
        operations_of(world, Recipe(**(fields | changes))) for changes in ({}, {"guidance": 2.0, "prompt": "a ball"})
    )
    config = read_configs(folder)["transformer"]
    assert one is not None
    assert guided is not None
    assert one.predict == 7 * generation_flops(config, 4, 8, 4)
    assert (guided.predict, guided.encode) == (2 * one.predict, one.encode)


@pytest.mark.parametrize("changes", [{}, EDGE, {"attention_bias": True}], ids=["Nano", "Edge", "biases"])
def test_the_weights_of_each_tower_are_counted_from_the_config(changes: dict[str, object]) -> None:
    with torch.device("meta"):
        transformer = Cosmos3OmniTransformer(**(MINI | changes))
        whole = sum(parameter.numel() for parameter in transformer.parameters())
        kept = sum(parameter.numel() for parameter in GenerationTower(transformer, temporal_stride=4).parameters())
    assert tower_numbers(transformer.config) == (kept, whole - kept)


def test_what_a_config_leaves_out_is_what_the_class_makes_of_it() -> None:
    stated = inspect.signature(Cosmos3OmniTransformer.__init__).parameters
    assert {name: stated[name].default for name in DEFAULTS} == DEFAULTS
    assert tower_numbers({})[0] == 6_965_486_784  # of Nano


@pytest.mark.parametrize("number", ["two", None, [2], 0, -1, 2.5, True, {}])
def test_numbers_that_are_none_are_refused_in_words(folder: Path, number: object) -> None:
    for name in ("latent_patch_size", "latent_channel", "patch_latent_dim"):
        configs = {part: dict(config) for part, config in read_configs(folder).items()}
        configs["transformer"][name] = number
        with pytest.raises(WorldModelError, match="takes latents of"):
            identify(configs, folder)


def test_a_plan_counts_the_weights_that_a_worker_holds(folder: Path) -> None:
    world = resolve_world(str(folder))
    sizes = {
        part: (folder / part / "diffusion_pytorch_model.safetensors").stat().st_size for part in world.family.parts[:2]
    }
    assert 0.3 < (world.weight_bytes() - sizes["vae"]) / sizes["transformer"] < 0.65


@pytest.mark.parametrize("name", ["cosmos3-edge", "nvidia/Cosmos3-Nano"])
def test_the_sizes_of_known_names_are_known_without_the_network(name: str) -> None:
    found = find_dimensions(name)
    assert (found.height, found.width, found.channels, found.spatial_stride) == (256, 256, 48, 16)

"""Which folders are AnyFlow FAR's, what is said of those beside it, and what a plan counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.miniatures.anyflow import mini_anyflow_scheduler, mini_anyflow_transformer, save_mini_anyflow
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.anyflow.chunks import chunks_flops
from theworld.precompute.worlds.anyflow.engine import AnyFlowWorld
from theworld.precompute.worlds.family import read_configs
from theworld.precompute.worlds.registry import identify
from theworld.precompute.worlds.source import find_dimensions, resolve_world

from ..test_registry import edited

INDEX, TRANSFORMER, SCHEDULER = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"
WORKS = "anyflow-far-1.3b and anyflow-far-14b go on from an image"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_anyflow(tmp_path_factory.mktemp("world") / "anyflow")


def test_a_folder_is_of_the_family_as_diffusers_writes_it_and_as_nvidia_s_own_code_does(
    folder: Path, tmp_path: Path
) -> None:
    assert identify(read_configs(folder), folder).name == "anyflow-far"
    older = edited(folder, tmp_path / "1", INDEX, _class_name="FARWanAnyFlowPipeline")
    older = edited(older, tmp_path / "2", SCHEDULER, _class_name="FlowMapDiscreteScheduler")
    names = {"_class_name": "FAR_Wan_Transformer3DModel", "init_far_model": True, "init_flowmap_model": True}
    beside = {"qk_norm": "rms_norm_across_heads", "added_kv_proj_dim": None}
    older = edited(older, tmp_path / "3", TRANSFORMER, **names, **beside)
    assert identify(read_configs(older), older).name == "anyflow-far"
    assert AnyFlowWorld.load(older).noise_levels(2) == AnyFlowWorld.load(folder).noise_levels(2)
    without = edited(folder, tmp_path / "4", TRANSFORMER, chunk_partition=None)
    assert identify(read_configs(without), without).name == "anyflow-far"


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (INDEX, {"_class_name": "AnyFlowPipeline"}, ["text-to-video", "takes no image", WORKS]),
        (INDEX, {"_class_name": "WanAnyFlowPipeline"}, ["text-to-video", WORKS]),
        (TRANSFORMER, {"_class_name": "AnyFlowTransformer3DModel"}, ["text-to-video", WORKS]),
        (
            TRANSFORMER,
            {"_class_name": "FAR_Wan_Transformer3DModel", "init_far_model": False},
            ["text-to-video", WORKS],
        ),
        (INDEX, {"_class_name": "HeliosPyramidPipeline"}, ["HeliosPyramidPipeline", "decoded each alone", WORKS]),
        (
            INDEX,
            {"_class_name": "SkyReelsV2DiffusionForcingImageToVideoPipeline"},
            ["SkyReelsV2DiffusionForcing", "keeps no state", WORKS],
        ),
        (TRANSFORMER, {"chunk_partition": [1, 4, 4]}, ["[1, 4, 4] latent frames", "1 and then 3 each"]),
        (TRANSFORMER, {"chunk_partition": [3, 3]}, ["[3, 3]"]),
        (TRANSFORMER, {"full_chunk_limit": 1}, ["full_chunk_limit is 1"]),
        (TRANSFORMER, {"in_channels": 36}, ["takes 36 channels", "not the 16"]),
        (TRANSFORMER, {"image_dim": 16}, ["CLIP"]),
        (TRANSFORMER, {"deltatime_type": "s"}, ["deltatime_type s"]),
        (TRANSFORMER, {"compressed_patch_size": [1, 3, 3]}, ["patch_size", "multiple of the first"]),
        (TRANSFORMER, {"patch_size": "two"}, ["patch_size"]),
        (TRANSFORMER, {"rope_max_seq_len": None}, ["rope_max_seq_len is None"]),
        (TRANSFORMER, {"rope_max_seq_len": 2**30}, ["rope_max_seq_len is 1073741824", "65,536"]),
        (SCHEDULER, {"_class_name": "UniPCMultistepScheduler"}, ["UniPCMultistepScheduler", "FlowMapEuler"]),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, ["FlowMatchEuler", "FlowMapEuler"]),
        ("text_encoder/config.json", {"model_type": "t5"}, ["t5, not a umt5"]),
    ],
)
def test_a_folder_that_it_does_not_take_is_refused_in_one_message(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(WorldModelError) as caught:
        resolve_world(str(edited(folder, tmp_path / "other", file, **changes)))
    message = str(caught.value)
    for word in words:
        assert word in message
    assert message.partition("Supported are")[0].count("; no ") == 0  # one reason, not one of each family


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": "48x64"}, ["32x32 pixels", "48x64", "--size 64x64"]),
        ({"fps": 24.0}, ["no meaning", "AnyFlow"]),
        ({"solver": "2ab"}, ["scheduler in its folder"]),
        ({"kind": "continuation", "steps": 8, "observed_frames": 5}, ["--observed-frames 1", "multiple of 12"]),
        ({"kind": "continuation", "steps": 8, "observed_frames": 9}, ["--observed-frames 13"]),
        ({"steps": 25, "chunk_context": 5}, ["--chunk-context 5", "the state that it keeps", "Leave it out"]),
        ({"steps": 64}, ["65 latent frames", "positions for 64", "at most 63"]),
        ({"steps": 32, "stride": 2}, ["at most 31"]),
    ],
)
def test_what_the_model_cannot_do_is_refused_in_one_message(
    folder: Path, settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(PrecomputeConfig(**({"size": "64x64"} | settings)), resolve_world(str(folder)))
    for word in words:
        assert word in str(caught.value)


def test_a_clip_beyond_the_window_is_possible_and_the_plan_says_what_that_means(folder: Path) -> None:
    world = resolve_world(str(folder))
    said = {
        steps: KINDS["rollout"].describe(make_recipe(PrecomputeConfig(size="64x64", steps=steps), world), world)
        for steps in (20, 21)
    }
    assert "state" not in said[20]
    assert "22 latent frames from a kept state (it was trained on 21: beyond, it may drift)" in said[21]
    make_recipe(PrecomputeConfig(size="64x64", kind="samples", steps=60, draws=2), world)  # each draw is a clip
    make_recipe(PrecomputeConfig(size="64x64", kind="continuation", steps=30, observed_frames=13), world)


def test_its_card_and_the_sizes_that_are_known_without_its_files(folder: Path) -> None:
    card = resolve_world(str(folder)).card
    assert (card.height, card.width, card.window, card.fps, card.denoise_steps) == (480, 832, 21, 16.0, 4)
    spec = resolve_world(str(folder)).latent_spec()
    for name in ("anyflow-far-1.3b", "nvidia/AnyFlow-FAR-Wan2.1-14B-Diffusers"):
        dimensions = find_dimensions(name)
        assert (dimensions.channels, dimensions.spatial_stride) == (spec.channels, spec.spatial_stride)
        assert (dimensions.height, dimensions.width) == (480, 832)


@pytest.mark.parametrize(("known", "frames"), [(1, 4), (1, 13), (7, 13)])
def test_a_rollout_costs_what_torch_counts(known: int, frames: int) -> None:
    """Two denoise steps of each whole chunk, and what it takes to remember."""
    transformer, chunks = mini_anyflow_transformer().to("meta"), -(-(frames - known) // 3)
    world = AnyFlowWorld(mini_vae().to("meta"), transformer, mini_anyflow_scheduler())
    past = [torch.zeros(1, 16, size, 16, 16, device="meta") for size in [1] + [3] * ((known - 1) // 3)]
    text = torch.zeros(1, 512, TEXT_WIDTH, device="meta")
    noise = torch.zeros(chunks, 1, 16, 3, 16, 16, device="meta")
    with FlopCounterMode(display=False) as counted:
        assert len(world.predict_chunks(past, noise, denoise_steps=2, text=text)) == chunks
    formula = chunks_flops(dict(transformer.config), known, frames, 16, 16, 2)
    assert formula == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_a_plan_counts_the_chunks_and_one_encoding(folder: Path) -> None:
    world = resolve_world(str(folder))
    config = PrecomputeConfig(size="64x64", steps=3, denoise_steps=4)
    costs = {}
    for steps in (3, 4, 6, 30):
        operations = operations_of(world, make_recipe(config.model_copy(update={"steps": steps}), world))
        assert operations is not None
        costs[steps] = operations
    assert costs[4].predict == costs[6].predict  # a chunk is made whole
    assert costs[30].encode == costs[3].encode == world.family.encode_flops(read_configs(folder), 64, 64, 1)
    assert 2 < costs[6].predict / costs[3].predict < 4
    guided = config.model_copy(update={"guidance": 2.0, "prompt": "a"})
    twice = operations_of(world, make_recipe(guided, world))
    assert twice is not None
    assert twice.predict == 2 * costs[3].predict

"""The estimate of memory is what the engines allocate, at the size of the real models, of which no weight exists."""

from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tests.allocations import Allocations
from theworld.pipeline.device_memory import GIB
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.cosmos import CosmosWorld
from theworld.precompute.worlds.family import Configs
from theworld.precompute.worlds.memory import HasMemoryEstimate, Memory, memory_of_batch, memory_of_decoding
from theworld.precompute.worlds.public_sizes import PUBLIC_CONFIGS
from theworld.precompute.worlds.text_embeddings import ROWS, TextEmbeddings
from theworld.precompute.worlds.wan21 import Wan21World
from theworld.precompute.worlds.wan_vae import WanLatents

META, CPU = torch.device("meta"), torch.device("cpu")
COSMOS, WAN = BUILT_IN["cosmos-predict2"], BUILT_IN["wan2.1-i2v"]
COSMOS_2B, COSMOS_14B, WAN_14B = PUBLIC_CONFIGS.values()
SMALL: Configs = {
    "vae": {**COSMOS_2B["vae"], "base_dim": 16, "num_res_blocks": 1, "temperal_downsample": [True, False, True]},
    "transformer": {**COSMOS_2B["transformer"], "num_attention_heads": 3, "attention_head_dim": 32, "num_layers": 4},
}
HD, VGA = (704, 1280), (432, 768)


def recipe(size: tuple[int, int], steps: int, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {"world": "x", "denoise_steps": 2, "compute_dtype": "bfloat16"}
    return Recipe(height=size[0], width=size[1], rollout_steps=steps, **(fields | changes))


def shallow(configs: Configs) -> Configs:
    """Two layers of a transformer: all others are the same, and shapes are slow to follow, too."""
    return {**configs, "transformer": {**configs["transformer"], "num_layers": 2}}


def built(kind: Any, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A module without numbers, in the dtypes that loading gives it."""
    with META:
        module = kind(**config)
    for name, parameter in module.named_parameters():
        keeps = any(part in name for part in getattr(kind, "_keep_in_fp32_modules", None) or ())
        parameter.data = parameter.data.to(torch.float32 if keeps else dtype)
    return module


def followed_rollout(configs: Configs, of: Recipe, batch: int) -> Allocations:
    """What encoding the images of a batch and predicting their future allocates."""
    dtype = getattr(torch, of.compute_dtype)
    vae = built(AutoencoderKLWan, configs["vae"])
    transformer = built(CosmosTransformer3DModel, configs["transformer"], dtype)
    memory = Allocations()
    text = torch.empty(1, 512, 1024, device=META) if of.prompt else None
    with memory, META:
        memory.hold(p for part in (vae, transformer) for p in part.parameters())
        world = CosmosWorld(vae, transformer, text=None if text is None else TextEmbeddings(({ROWS: text},)))
        world.rollout(torch.empty(batch, 3, of.height, of.width), ["key"] * batch, of)
    return memory


def matches(estimate: Memory | None, memory: Allocations) -> None:
    assert estimate is not None
    assert estimate.total == pytest.approx(memory.peak, rel=0.15)
    assert estimate.computed == pytest.approx(memory.peak - estimate.weights, rel=0.15)


@pytest.mark.parametrize(
    ("configs", "of", "batch"),
    [
        (COSMOS_2B, recipe((224, 224), 8), 16),
        (shallow(COSMOS_2B), recipe(VGA, 8), 2),
        (shallow(COSMOS_2B), recipe(HD, 23), 1),
        (shallow(COSMOS_2B), recipe((224, 224), 8, compute_dtype="float32"), 8),
        (shallow(COSMOS_2B), recipe((224, 224), 8, prompt="a ball", guidance=4.0, solver="2ab"), 4),
        (shallow(COSMOS_14B), recipe(VGA, 8), 1),
        (SMALL, recipe((64, 64), 8, compute_dtype="float32"), 8),
    ],
)
def test_a_rollout_of_cosmos_takes_what_was_estimated(configs: Configs, of: Recipe, batch: int) -> None:
    matches(memory_of_batch(COSMOS, configs, of, batch), followed_rollout(configs, of, batch))


@pytest.mark.parametrize(
    ("size", "steps", "batch", "changes"),
    [((480, 832), 8, 1, {}), ((224, 224), 2, 4, {"prompt": "a ball", "guidance": 5.0, "compute_dtype": "float32"})],
)
def test_a_rollout_of_wan_takes_what_was_estimated(
    size: tuple[int, int], steps: int, batch: int, changes: dict[str, Any]
) -> None:
    configs, of = shallow(WAN_14B), recipe(size, steps, **changes)
    memory, images = Allocations(), torch.empty(batch, 3, *size, device=META)
    text = torch.zeros(1, 512, configs["transformer"]["text_dim"])
    vae = built(AutoencoderKLWan, configs["vae"])
    transformer = built(WanTransformer3DModel, configs["transformer"], getattr(torch, of.compute_dtype))
    clip = built(lambda **sizes: CLIPVisionModel(CLIPVisionConfig(**sizes)), configs["image_encoder"])
    with memory:
        memory.hold(p for part in (vae, transformer, clip) for p in part.parameters())
        world = Wan21World(vae, transformer, FlowMatchEulerDiscreteScheduler(), clip, CLIPImageProcessorPil())
        condition = world.condition(images, steps)
        world.device = CPU  # the scheduler looks at its times, which a shape alone does not have
        tokens = torch.empty(batch, 257, configs["transformer"]["image_dim"], device=META)
        with mock.patch.object(world, "image_tokens", return_value=tokens):  # CLIP looks at pixels on the CPU
            world.denoise(
                images, condition, torch.empty_like(condition[:, :16]), denoise_steps=2, text=text, negative_text=text,
                guidance=of.guidance,
            )  # fmt: skip
    matches(memory_of_batch(WAN, configs, of, batch), memory)


@pytest.mark.parametrize(
    ("configs", "frames", "size", "batch"),
    [(COSMOS_2B, 5, (224, 224), 4), (COSMOS_2B, 13, VGA, 1), (SMALL, 9, (64, 64), 2)],
)
def test_encoding_videos_takes_what_was_estimated(
    configs: Configs, frames: int, size: tuple[int, int], batch: int
) -> None:
    stride = 2 ** sum(configs["vae"]["temperal_downsample"])
    of = Recipe(kind="frames", world="x", height=size[0], width=size[1], rollout_steps=(frames - 1) // stride)
    vae = built(AutoencoderKLWan, configs["vae"])
    memory = Allocations()
    with memory, META:
        memory.hold(vae.parameters())
        WanLatents(vae).encode_video(torch.empty(batch, 3, frames, *size))
    estimate = memory_of_batch(COSMOS, configs, of, batch)
    decoding = memory_of_decoding(COSMOS, configs, 1, 8, 8)
    assert estimate is not None
    assert decoding is not None
    assert estimate.computed == pytest.approx(memory.peak - decoding.weights, rel=0.15)


@pytest.mark.parametrize(
    ("configs", "frames", "size"),
    [(COSMOS_2B, 4, (224, 224)), (COSMOS_2B, 3, VGA), (COSMOS_2B, 1, HD), (SMALL, 5, (64, 64))],
)
def test_decoding_a_clip_takes_what_was_estimated(configs: Configs, frames: int, size: tuple[int, int]) -> None:
    vae = built(AutoencoderKLWan, configs["vae"])
    memory = Allocations()
    with memory, META:
        memory.hold(vae.parameters())
        WanLatents(vae).decode(torch.empty(1, 16, frames, size[0] // 8, size[1] // 8))
    matches(memory_of_decoding(COSMOS, configs, frames, *size), memory)


def test_weights_are_those_of_the_public_models() -> None:
    """The 2B has 1,956,413,440 parameters, its VAE 126,892,531; Wan's 14B has 16.4 billion, with those for an image."""
    weights = {
        name: memory.weights
        for name, configs in PUBLIC_CONFIGS.items()
        if (memory := memory_of_batch(WAN if "wan" in name else COSMOS, configs, recipe(VGA, 8), 1))
    }
    assert weights["cosmos-predict2-2b"] == 2 * 1_956_413_440 + 4 * 126_892_531
    assert weights["cosmos-predict2-14b"] / GIB == pytest.approx(27.1, abs=0.1)
    assert weights["wan2.1-i2v-480p"] == 2 * 16_394_878_784 + 4 * (126_892_531 + 630_766_080)


@pytest.mark.parametrize(
    "vae",
    [{}, {"num_res_blocks": 10**9}, {"dim_mult": None}, {"base_dim": "96"}, {"is_residual": True}, {"patch_size": 2}],
)
def test_of_a_config_that_describes_no_such_model_nothing_is_known(vae: dict[str, Any]) -> None:
    configs = {**COSMOS_2B, "vae": {**COSMOS_2B["vae"], **vae} if vae else {}}
    assert memory_of_batch(COSMOS, configs, recipe(VGA, 8), 1) is None
    assert memory_of_decoding(COSMOS, configs, 9, *VGA) is None


def test_a_family_that_says_nothing_is_one_of_which_nothing_is_known() -> None:
    silent: Any = mock.Mock(spec=["title"])
    assert not isinstance(silent, HasMemoryEstimate)
    assert memory_of_batch(silent, COSMOS_2B, recipe(VGA, 8), 1) is None
    assert memory_of_decoding(silent, COSMOS_2B, 9, *VGA) is None

"""The estimate of memory is what the engines allocate, at the size of the real models, of which no weight exists."""

from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos3OmniTransformer,
    CosmosTransformer3DModel,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tests.allocations import Allocations
from tests.miniatures.cosmos25 import mini_unipc
from tests.miniatures.world_model import mini_wan_scheduler
from theworld.pipeline.device_memory import GIB
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_forward import GenerationTower, PromptKeys
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.cosmos.predict25 import Cosmos25World
from theworld.precompute.worlds.family import Configs, WorldFamily
from theworld.precompute.worlds.memory import HasMemoryEstimate, Memory, memory_of_batch, memory_of_decoding
from theworld.precompute.worlds.network.offloading import bytes_of, bytes_on_gpu
from theworld.precompute.worlds.public_sizes import PUBLIC_CONFIGS
from theworld.precompute.worlds.text_embeddings import ROWS, TextEmbeddings
from theworld.precompute.worlds.wan.engine import WanWorld
from theworld.precompute.worlds.wan.vae import WanLatents
from theworld.precompute.worlds.wan.wan21 import Wan21World
from theworld.precompute.worlds.wan.wan22 import WanTI2VWorld, WanTwoStageWorld

META, CPU = torch.device("meta"), torch.device("cpu")
COSMOS = BUILT_IN["cosmos-predict2"]
COSMOS_2B, COSMOS_14B = PUBLIC_CONFIGS["cosmos-predict2-2b"], PUBLIC_CONFIGS["cosmos-predict2-14b"]
WAN_5B = PUBLIC_CONFIGS["wan2.2-ti2v-5b"]
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


def family_of(name: str) -> WorldFamily:
    return next(family for family in BUILT_IN.values() if name in family.names)


def parts_of(configs: Configs, of: Recipe, kind: Any, *names: str) -> tuple[AutoencoderKLWan, Any]:
    """The VAE, and the network in the dtype of a recipe."""
    vae = built(AutoencoderKLWan, configs["vae"])
    return vae, *(built(kind, configs[name], getattr(torch, of.compute_dtype)) for name in names or ("transformer",))


def followed_wan(name: str, configs: Configs, of: Recipe, batch: int) -> Allocations:
    images, text = torch.empty(batch, 3, of.height, of.width, device=META), torch.zeros(1, 512, 4096)
    memory, scheduler = Allocations(), mini_wan_scheduler()
    vae, network = parts_of(configs, of, WanTransformer3DModel)
    held: list[torch.nn.Module] = [vae, network]
    tokens = None
    if "ti2v" in name:
        world: WanWorld = WanTI2VWorld(vae, network, scheduler)
    elif "a14b" in name:  # the second one waits elsewhere
        _, other = parts_of(configs, of, WanTransformer3DModel, "transformer_2")
        world = WanTwoStageWorld(vae, network, other, scheduler, boundary_ratio=1e-9)
    else:
        clip = built(lambda **sizes: CLIPVisionModel(CLIPVisionConfig(**sizes)), configs["image_encoder"])
        world = Wan21World(vae, network, scheduler, clip, CLIPImageProcessorPil())
        held.append(clip)
        tokens = torch.empty(batch, 257, 1280, device=META)
    with memory:
        memory.hold(p for part in held for p in part.parameters())
        condition = world.condition(images, of.rollout_steps)
        noise = torch.empty(world._noise_shape(condition, of.rollout_steps), device=META).expand(batch, -1, -1, -1, -1)
        world.device = CPU  # the scheduler looks at its times, which a shape alone does not have
        with mock.patch.object(world, "image_tokens", return_value=tokens):  # CLIP looks at pixels on the CPU
            world.denoise(
                images, condition, noise.clone(), denoise_steps=3, text=text, negative_text=text, guidance=of.guidance
            )
    return memory


def followed_cosmos25(configs: Configs, of: Recipe, batch: int) -> Allocations:
    config = {**configs["transformer"], "crossattn_proj_in_channels": 64}  # which no worker holds
    vae, transformer = parts_of({**configs, "transformer": config}, of, CosmosTransformer3DModel)
    memory = Allocations()
    world = Cosmos25World(vae, transformer, mini_unipc())
    world.no_text = torch.zeros(1, 1, 1024, dtype=world.dtype)
    with memory:
        memory.hold(p for part in (vae, world.transformer) for p in part.parameters())
        seen = world.encode(torch.empty(batch, 3, of.height, of.width, device=META))
        noise = torch.empty(batch, 16, 1 + of.rollout_steps, *seen.shape[3:], device=META)
        world.device = CPU
        text = torch.zeros(1, 512, 1024) if of.prompt else None
        world.denoise(seen, noise, denoise_steps=3, guidance=of.guidance, text=text)
    return memory


def followed_cosmos3(configs: Configs, of: Recipe, batch: int) -> Allocations:
    vae, transformer = parts_of(configs, of, Cosmos3OmniTransformer)
    transformer.rotary_emb.inv_freq = torch.ones(64)
    memory = Allocations()
    world = Cosmos3World(vae, transformer, mini_unipc())
    prompts = [PromptKeys(*torch.zeros(2, len(world.tower.layers), 80, 8, 128))]
    with memory:
        memory.hold(p for part in (vae, world.tower) for p in part.parameters())
        seen = world.encode(torch.empty(batch, 3, of.height, of.width, device=META))
        noise = torch.empty(batch, 48, 1 + of.rollout_steps, *seen.shape[3:], device=META)
        world.device = CPU
        world.denoise(seen, noise, denoise_steps=3, prompts=prompts, negative=prompts[0], guidance=of.guidance)
    return memory


@pytest.mark.parametrize(
    ("name", "size", "steps", "batch", "changes"),
    [
        ("wan2.1-i2v-480p", (480, 832), 8, 1, {}),
        ("wan2.1-i2v-480p", (224, 224), 2, 4, {"prompt": "a", "guidance": 5.0, "compute_dtype": "float32"}),
        ("wan2.2-i2v-a14b", (480, 832), 8, 4, {}),
        ("wan2.2-ti2v-5b", (704, 1280), 31, 1, {}),
        ("wan2.2-ti2v-5b", (704, 1280), 31, 3, {}),
        ("wan2.2-ti2v-5b", (256, 256), 24, 4, {"compute_dtype": "float32"}),
        ("cosmos-predict2.5-2b", (224, 224), 24, 16, {}),
        ("cosmos-predict2.5-2b", (704, 1280), 23, 1, {"prompt": "a ball", "guidance": 4.0}),
        ("cosmos-predict2.5-14b", (432, 768), 8, 2, {}),
        ("cosmos3-edge", (256, 256), 12, 8, {"fps": 24.0}),
        ("cosmos3-edge", (480, 832), 36, 2, {"fps": 24.0, "guidance": 6.0, "prompt": "a", "compute_dtype": "float32"}),
        ("cosmos3-nano", (480, 832), 24, 4, {"fps": 24.0}),
    ],
)
def test_a_rollout_of_a_public_model_takes_what_was_estimated(
    name: str, size: tuple[int, int], steps: int, batch: int, changes: dict[str, Any]
) -> None:
    layers = "num_hidden_layers" if "cosmos3" in name else "num_layers"
    configs: Configs = {
        part: {**config, layers: 2} if "transformer" in part else config
        for part, config in PUBLIC_CONFIGS[name].items()
    }
    of = recipe(size, steps, **changes)
    if "wan" in name:
        memory = followed_wan(name, configs, of, batch)
    else:
        memory = (followed_cosmos3 if "cosmos3" in name else followed_cosmos25)(configs, of, batch)
    estimate = memory_of_batch(family_of(name), configs, of, batch, limit=1)
    matches(estimate, memory)


@pytest.mark.parametrize(
    ("configs", "frames", "size", "batch"),
    [(COSMOS_2B, 5, (224, 224), 4), (COSMOS_2B, 13, VGA, 1), (WAN_5B, 9, HD, 2), (SMALL, 9, (64, 64), 2)],
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
    estimate = memory_of_batch(BUILT_IN["wan2.2-ti2v"] if configs is WAN_5B else COSMOS, configs, of, batch)
    decoding = memory_of_decoding(COSMOS, configs, 1, 8, 8)
    assert estimate is not None
    assert decoding is not None
    assert estimate.computed == pytest.approx(memory.peak - decoding.weights, rel=0.15)


@pytest.mark.parametrize(
    ("configs", "frames", "size"),
    [
        (COSMOS_2B, 4, (224, 224)),
        (COSMOS_2B, 3, VGA),
        (COSMOS_2B, 1, HD),
        (WAN_5B, 3, HD),
        (WAN_5B, 1, VGA),
        (SMALL, 5, (64, 64)),
    ],
)
def test_decoding_a_clip_takes_what_was_estimated(configs: Configs, frames: int, size: tuple[int, int]) -> None:
    vae = built(AutoencoderKLWan, configs["vae"])
    cell = COSMOS.latent_spec(configs).spatial_stride
    memory = Allocations()
    with memory, META:
        memory.hold(vae.parameters())
        WanLatents(vae).decode(torch.empty(1, vae.config["z_dim"], frames, size[0] // cell, size[1] // cell))
    matches(memory_of_decoding(COSMOS, configs, frames, *size), memory)


def test_weights_are_those_of_the_public_models() -> None:
    """The 2B has 1,956,413,440 parameters, its VAE 126,892,531; Wan's 14B has 16.4 billion, with those for an image."""
    weights = {
        name: memory.weights
        for name, configs in PUBLIC_CONFIGS.items()
        if (memory := memory_of_batch(family_of(name), configs, recipe(VGA, 8), 1, limit=1))
    }
    assert weights["cosmos-predict2-2b"] == 2 * 1_956_413_440 + 4 * 126_892_531
    assert weights["cosmos-predict2-14b"] / GIB == pytest.approx(27.1, abs=0.1)
    assert weights["cosmos-predict2.5-2b"] == weights["cosmos-predict2-2b"]
    assert weights["cosmos3-edge"] == 2 * 1_414_921_408 + 4 * 704_688_668
    assert weights["wan2.2-ti2v-5b"] == 2 * 4_999_787_712 + 4 * 704_688_668
    assert weights["wan2.2-i2v-a14b"] == 2 * 14_288_901_184 + 4 * 126_892_531
    assert weights["wan2.1-i2v-480p"] == 2 * 16_394_878_784 + 4 * (126_892_531 + 630_766_080)


@pytest.mark.parametrize(
    "vae",
    [{}, {"num_res_blocks": 10**9}, {"dim_mult": None}, {"base_dim": "96"}, {"in_channels": 12}, {"patch_size": 2}],
)
def test_of_a_config_that_describes_no_such_model_nothing_is_known(vae: dict[str, Any]) -> None:
    configs = {**COSMOS_2B, "vae": {**COSMOS_2B["vae"], **vae} if vae else {}}
    assert memory_of_batch(COSMOS, configs, recipe(VGA, 8), 1) is None
    assert memory_of_decoding(COSMOS, configs, 9, *VGA) is None


@pytest.mark.parametrize(("limit", "networks"), [(80e9, 1), (141e9, 2), (None, 2)])
def test_networks_that_take_turns_are_counted_as_the_device_has_room_for_them(
    limit: float | None, networks: int
) -> None:
    name = "wan2.2-i2v-a14b"
    need = memory_of_batch(family_of(name), PUBLIC_CONFIGS[name], recipe(VGA, 8), 1, limit=limit)
    assert need is not None
    assert need.weights == networks * 2 * 14_288_901_184 + 4 * 126_892_531


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cosmos-predict2-14b", CosmosTransformer3DModel),
        ("wan2.1-i2v-480p", WanTransformer3DModel),
        ("wan2.2-ti2v-5b", WanTransformer3DModel),
        ("cosmos3-edge", Cosmos3OmniTransformer),
    ],
)
def test_with_offload_two_blocks_and_what_is_outside_of_them_are_counted(name: str, kind: Any) -> None:
    configs, of = PUBLIC_CONFIGS[name], recipe(VGA, 8, fps=24.0)
    family = family_of(name)
    whole, offloaded = (memory_of_batch(family, configs, of, 1, offload=offload) for offload in (False, True))
    assert whole is not None
    assert offloaded is not None
    assert offloaded.computed == whole.computed
    network = built(kind, configs["transformer"], torch.bfloat16)
    if "cosmos3" in name:
        network = GenerationTower(network, temporal_stride=4)
    left = bytes_of(network) - bytes_on_gpu(network)
    assert left > 0.8 * bytes_of(network)
    assert whole.weights - offloaded.weights == pytest.approx(left, rel=0.01)


def test_a_family_that_says_nothing_is_one_of_which_nothing_is_known() -> None:
    silent: Any = mock.Mock(spec=["title"])
    assert not isinstance(silent, HasMemoryEstimate)
    assert memory_of_batch(silent, COSMOS_2B, recipe(VGA, 8), 1) is None
    assert memory_of_decoding(silent, COSMOS_2B, 9, *VGA) is None

"""A network larger than the GPU: each block is brought there while it computes, and no bit changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from tests.miniatures.world_model import (
    TEXT_WIDTH,
    mini_clip,
    mini_transformer,
    mini_vae,
    mini_wan_scheduler,
    mini_wan_transformer,
)
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.progress import Progress
from theworld.precompute.worlds.cosmos import CosmosWorld
from theworld.precompute.worlds.cosmos_forward import LeanTransformer
from theworld.precompute.worlds.offloading import (
    Offload,
    bytes_of,
    bytes_on_gpu,
    copies_text,
    load_or_offload,
    offload_world,
)
from theworld.precompute.worlds.wan21 import Wan21World

LAYERS, FORWARDS = 3, 2


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Counter[nn.Module]:
    """How often diffusers brought the weights of a block, or of what is outside of the blocks."""
    counts: Counter[nn.Module] = Counter()
    bring = ModuleGroup.onload_

    def counted(group: ModuleGroup) -> None:
        counts[group.onload_leader] += 1
        bring(group)

    monkeypatch.setattr(ModuleGroup, "onload_", counted)
    return counts


def cosmos() -> CosmosWorld:
    return CosmosWorld(mini_vae(), mini_transformer(num_layers=LAYERS))


def wan() -> Wan21World:
    return Wan21World(mini_vae(), mini_wan_transformer(), mini_wan_scheduler(), *mini_clip())


def roll_out(world: CosmosWorld | Wan21World, text: Tensor | None) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 16, 3, 4, 6, generator=generator)
    images = torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1
    if isinstance(world, CosmosWorld):
        return world.denoise(world.encode(images), noise, denoise_steps=1 + FORWARDS, text=text)
    assert text is not None
    return world.denoise(images, world.condition(images, 2), noise, denoise_steps=FORWARDS, text=text)


TEXT = torch.randn(1, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("make", "text"), [(cosmos, None), (cosmos, TEXT), (wan, TEXT)])
def test_each_forward_brings_each_block_once_and_keeps_its_bits(
    make: Callable[[], CosmosWorld | Wan21World], text: Tensor | None, brought: Counter[nn.Module]
) -> None:
    whole, world = roll_out(make(), text), make()
    offload_world(world, "cpu", "mapped")
    assert torch.equal(roll_out(world, text), whole)
    assert brought == dict.fromkeys([world.transformer, *world.transformer.blocks], FORWARDS)


@pytest.mark.parametrize("text", [None, TEXT])
def test_no_weight_is_used_that_the_hooks_did_not_bring(text: Tensor | None, tmp_path: Path) -> None:
    """Diffusers' way over a disk is the one by which, on a CPU too, weights are elsewhere and come back."""
    world = cosmos()
    whole = roll_out(world, text)
    apply_group_offloading(
        world.transformer,
        onload_device=torch.device("cpu"),
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    for parameter in world.transformer.parameters():
        parameter.data.fill_(torch.nan)  # what is left of it in memory
    assert len(list(tmp_path.glob("*.safetensors"))) == LAYERS + 1
    assert torch.equal(roll_out(world, text), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU there is nowhere to bring weights to")
@pytest.mark.parametrize("how", ["pinned", "mapped"])
@pytest.mark.parametrize(("make", "text"), [(cosmos, None), (cosmos, TEXT), (wan, TEXT)])
def test_on_a_gpu_two_blocks_are_there_at_a_time(
    make: Callable[[], CosmosWorld | Wan21World], text: Tensor | None, how: Offload
) -> None:
    whole = make()
    whole.move_autoencoder("cuda")
    whole.transformer.to("cuda")
    if isinstance(whole, Wan21World):
        nn.Module.to(whole.image_encoder, "cuda")
    world = make()
    offload_world(world, "cuda", how)
    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(sum(weight.numel() * weight.element_size() for weight in weights if weight.is_cuda))

    weights = list(world.transformer.parameters())
    for block in world.transformer.blocks:
        block.register_forward_hook(look)
    assert torch.equal(roll_out(world, text), roll_out(whole, text))
    assert 0 < max(seen) <= bytes_on_gpu(world.transformer) < bytes_of(world.transformer)
    assert not any(weight.is_cuda for weight in weights)


def test_of_28_gb_of_weights_two_are_on_the_gpu() -> None:
    with torch.device("meta"):
        stock = CosmosTransformer3DModel(
            in_channels=17, num_attention_heads=40, num_layers=4, max_size=(128, 240, 240), extra_pos_embed_type=None
        ).to(torch.bfloat16)
    block = bytes_of(stock.transformer_blocks[0])
    outside = bytes_of(stock) - 4 * block
    assert 28.4e9 < outside + 36 * block < 29e9  # Cosmos-Predict2-14B
    assert bytes_on_gpu(stock) == bytes_on_gpu(LeanTransformer(stock)) == outside + 2 * block < 2e9


def test_the_plan_says_what_is_copied() -> None:
    assert "up to 26.4 GiB" in copies_text(28_300_000_000)
    assert "1.13 s" in copies_text(28_300_000_000)


def test_a_world_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="--offload: Plain has no blocks"):
        offload_world(type("Plain", (), {})(), "cpu", "pinned")


def test_where_no_block_can_be_copied_weights_that_do_not_fit_are_one_message() -> None:
    plain = type("Plain", (), {})()

    def load(device: str) -> object:
        if device == "cpu":
            return plain
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(WorldModelError, match=r"do not fit on cuda \(CUDA out of memory\)\. Use --device cpu"):
        load_or_offload(load, "cuda", Progress.silent())  # type: ignore[arg-type]

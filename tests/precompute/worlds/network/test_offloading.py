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

from tests.miniatures import cosmos3 as mini3
from tests.miniatures import cosmos25 as mini25
from tests.miniatures.wan22 import mini_wan22_transformer, mini_wan22_vae
from tests.miniatures.world_model import (
    TEXT_WIDTH,
    mini_clip,
    mini_transformer,
    mini_vae,
    mini_vae22,
    mini_wan_scheduler,
    mini_wan_transformer,
)
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.progress import Progress
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_forward import PromptKeys
from theworld.precompute.worlds.cosmos.forward import LeanTransformer
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.cosmos.predict25 import Cosmos25World
from theworld.precompute.worlds.network.offloading import (
    Offload,
    bytes_of,
    bytes_on_gpu,
    copies_text,
    load_or_offload,
    offload_world,
)
from theworld.precompute.worlds.wan.engine import WanWorld
from theworld.precompute.worlds.wan.wan21 import Wan21World
from theworld.precompute.worlds.wan.wan22 import WanTI2VWorld, WanTwoStageWorld

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


World = CosmosWorld | Cosmos25World | Cosmos3World | WanWorld
Make = Callable[[], World]


def cosmos() -> CosmosWorld:
    return CosmosWorld(mini_vae(), mini_transformer(num_layers=LAYERS))


def cosmos25() -> Cosmos25World:
    return Cosmos25World(mini_vae(), mini25.mini_transformer25(num_layers=LAYERS), mini25.mini_unipc())


def cosmos3() -> Cosmos3World:
    return Cosmos3World(mini_vae22(), mini3.mini_cosmos3(), mini3.mini_unipc())


def wan() -> WanWorld:
    return Wan21World(mini_vae(), mini_wan_transformer(), mini_wan_scheduler(), *mini_clip())


def wan_ti2v() -> WanWorld:
    return WanTI2VWorld(mini_wan22_vae(), mini_wan22_transformer(per_token=True), mini_wan_scheduler())


def wan_two_stage() -> WanWorld:
    networks = mini_wan22_transformer(0), mini_wan22_transformer(1)
    return WanTwoStageWorld(mini_vae(), *networks, mini_wan_scheduler(), boundary_ratio=0.9)


def networks_of(world: World) -> list[nn.Module]:
    if isinstance(world, Cosmos3World):
        return [world.tower]
    return [world.transformer, *([world.transformer_2] if isinstance(world, WanTwoStageWorld) else [])]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def roll_out(world: World, text: Tensor | None) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(2, 3, 32, 64, generator=generator) * 2 - 1
    seen = world.encode(images)
    noise = torch.randn(2, seen.shape[1], 3, *seen.shape[3:], generator=generator)
    if isinstance(world, CosmosWorld):
        return world.denoise(seen, noise, denoise_steps=1 + FORWARDS, text=text)
    if isinstance(world, Cosmos25World):
        return world.denoise(seen, noise, denoise_steps=FORWARDS, text=text)
    if isinstance(world, Cosmos3World):
        rows = torch.randn(2, 3, 5, 2, 16, generator=generator)  # of 3 layers, 5 tokens and 2 heads
        return world.denoise(seen, noise, denoise_steps=FORWARDS, prompts=[PromptKeys(rows[0], rows[1])])
    assert text is not None
    return world.denoise(images, world.condition(images, 2), noise, denoise_steps=FORWARDS, text=text)


TEXT = torch.randn(1, 5, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
WORLDS: list[tuple[Make, Tensor | None]] = [
    (cosmos, None), (cosmos, TEXT), (cosmos25, None), (cosmos25, TEXT), (cosmos3, None),
    (wan, TEXT), (wan_ti2v, TEXT), (wan_two_stage, TEXT),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), WORLDS)
def test_each_forward_brings_each_block_once_and_keeps_its_bits(
    make: Make, text: Tensor | None, brought: Counter[nn.Module]
) -> None:
    whole, world = roll_out(make(), text), make()
    offload_world(world, "cpu", "mapped")
    assert torch.equal(roll_out(world, text), whole)
    networks = networks_of(world)
    for network in networks:
        assert blocks_of(network)
        assert {brought[block] for block in blocks_of(network)} == {brought[network]}
        assert brought[network] > 0
    assert sum(brought[network] for network in networks) == FORWARDS
    assert len(brought) == sum(1 + len(blocks_of(network)) for network in networks)


@pytest.mark.parametrize(("make", "text"), WORLDS)
def test_no_weight_is_used_that_the_hooks_did_not_bring(make: Make, text: Tensor | None, tmp_path: Path) -> None:
    """Diffusers' way over a disk is the one by which, on a CPU too, weights are elsewhere and come back."""
    world = make()
    whole = roll_out(world, text)
    for number, network in enumerate(networks_of(world)):
        apply_group_offloading(
            network,
            onload_device=torch.device("cpu"),
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path / str(number)),
        )
        for parameter in network.parameters():
            parameter.data.fill_(torch.nan)  # what is left of it in memory
        assert len(list((tmp_path / str(number)).glob("*.safetensors"))) == len(blocks_of(network)) + 1
    if isinstance(world, WanTwoStageWorld):
        world._turns = None  # as `offload` has it
    # mapped from a file, weights lie at other addresses, where a CPU may round the last bit otherwise
    assert torch.allclose(roll_out(world, text), whole, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU there is nowhere to bring weights to")
@pytest.mark.parametrize("how", ["pinned", "mapped"])
@pytest.mark.parametrize(("make", "text"), WORLDS)
def test_on_a_gpu_two_blocks_are_there_at_a_time(make: Make, text: Tensor | None, how: Offload) -> None:
    whole = make()
    whole.move_autoencoder("cuda")
    for network in networks_of(whole):
        network.to("cuda")
    if isinstance(whole, Cosmos25World):
        whole.no_text = whole.no_text.to("cuda")
    if isinstance(whole, Wan21World):
        nn.Module.to(whole.image_encoder, "cuda")
    world = make()
    offload_world(world, "cuda", how)
    networks = networks_of(world)
    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(sum(weight.numel() * weight.element_size() for weight in weights if weight.is_cuda))

    weights = [weight for network in networks for weight in network.parameters()]
    for network in networks:
        for block in blocks_of(network):
            block.register_forward_hook(look)
    assert torch.equal(roll_out(world, text), roll_out(whole, text))
    assert 0 < max(seen) <= bytes_on_gpu(networks[0])
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

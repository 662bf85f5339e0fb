"""A world model's blocks are compiled for one shape after another, or it is said why not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.miniatures.cosmos3 import EDGE, mini_cosmos3, mini_unipc
from tests.miniatures.wan22 import mini_wan22_transformer
from tests.miniatures.world_model import (
    TEXT_WIDTH,
    mini_clip,
    mini_transformer,
    mini_vae,
    mini_vae22,
    mini_wan_scheduler,
    mini_wan_transformer,
)
from theworld.pipeline.errors import ConfigError
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_forward import PromptKeys
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.network.compiling import compile_world
from theworld.precompute.worlds.wan.wan21 import Wan21World
from theworld.precompute.worlds.wan.wan22 import WanTwoStageWorld


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Torch's own tracing without the compiler behind it, which takes a minute: the graphs so far."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    torch._dynamo.reset()
    return graphs


def test_all_blocks_share_one_graph_for_each_shape_and_text_has_another(traced: list[torch.fx.GraphModule]) -> None:
    world = CosmosWorld(mini_vae(), mini_transformer())
    observed = {size: torch.randn(size, 16, 1, 4, 4) for size in (1, 3)}
    noise = {size: torch.randn(size, 16, 3, 4, 4) for size in (1, 3)}

    def denoise(size: int, text: torch.Tensor | None = None) -> torch.Tensor:
        return world.denoise(observed[size], noise[size], denoise_steps=3, text=text)

    text = torch.randn(1, 5, 24)
    plain, prompted = denoise(3), denoise(3, text)
    compile_world(world, "cpu")
    del traced[:]  # of the trial
    assert torch.equal(denoise(3), plain)
    assert len(traced) == 1
    denoise(3)
    assert len(traced) == 1
    assert torch.equal(denoise(3, text), prompted)
    denoise(1)
    assert len(traced) == 3


def test_wan_s_blocks_are_compiled_too(traced: list[torch.fx.GraphModule]) -> None:
    world = Wan21World(mini_vae(), mini_wan_transformer(), mini_wan_scheduler(), *mini_clip())
    compile_world(world, "cpu")
    assert all(block._compiled_call_impl is not None for block in world.transformer.blocks)
    assert len(traced) == 1


def test_networks_that_take_turns_are_traced_once(traced: list[torch.fx.GraphModule]) -> None:
    networks = [mini_wan22_transformer(seed) for seed in (0, 1)]
    world = WanTwoStageWorld(mini_vae(), *networks, mini_wan_scheduler(), boundary_ratio=0.9)
    images, text = torch.zeros(2, 3, 32, 32), torch.zeros(1, 512, TEXT_WIDTH)

    def roll_out() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return world.stock_rollout(images, generators, rollout_steps=1, denoise_steps=4, text=text)

    plain = roll_out()
    world._turns._has_room = False  # as on a GPU that holds one of them
    compile_world(world, "cpu")
    del traced[:]
    assert torch.equal(roll_out(), plain)
    assert 0 < (graphs := len(traced)) <= 2
    assert torch.equal(roll_out(), plain)
    assert len(traced) == graphs


def test_cosmos_3_s_layers_are_compiled_too(traced: list[torch.fx.GraphModule]) -> None:
    world = Cosmos3World(mini_vae22(), mini_cosmos3(**EDGE), mini_unipc())
    text = torch.randn(2, 3, 9, 2, 16)
    observed, noise = torch.randn(2, 48, 1, 2, 2), torch.randn(2, 48, 3, 2, 2)

    def denoise() -> torch.Tensor:
        return world.denoise(observed, noise, denoise_steps=3, prompts=[PromptKeys(*text)])

    plain = denoise()
    compile_world(world, "cpu")
    del traced[:]  # of the trial
    assert torch.equal(denoise(), plain)
    assert len(traced) == 1


def test_where_nothing_can_be_compiled_it_is_said_before_the_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--compile: Plain has no blocks"):
        compile_world(type("Plain", (), {})(), "cpu")

    def broken(_graph: object, _inputs: object) -> object:
        raise OSError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"(?s)cannot compile for cpu here.*C\+\+ compiler.*leave --compile out"):
        compile_world(CosmosWorld(mini_vae(), mini_transformer()), "cpu")

"""The lean forward against that of the class whose weights it uses: the same values, for fewer operations."""

from __future__ import annotations

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.real_sizes import cosmos_2b
from benchmarks.stock import both_forwards, forward_inputs
from tests.miniatures.world_model import TEXT_WIDTH, mini_transformer
from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.files.hub.pretrained import load_pretrained
from theworld.precompute.worlds.builtin import WEIGHTS
from theworld.precompute.worlds.cosmos.forward import LeanTransformer


def worldlet(dtype: torch.dtype) -> CosmosTransformer3DModel:
    folder = {"error": WorldModelError, "what": "worldlet"}
    return load_pretrained(CosmosTransformer3DModel, WEIGHTS, "transformer", torch_dtype=dtype, **folder)


def both(
    stock: CosmosTransformer3DModel, text: Tensor | None, *given: Tensor, fps: float | None = None
) -> list[Tensor]:
    """What the network and its lean form make of the same; no text is a token of zeros there."""
    return [forward() for forward in both_forwards(stock, *given, text=text, fps=fps)]


def assert_same_bits(ours: Tensor, theirs: Tensor, width: int) -> None:
    """Equal to the bit; to a few units in the last place on a CPU whose products round by their number of rows."""
    few: set[bool] = set()
    counts = (64,) if ours.dtype == torch.float32 else (5, 9)  # in float32 the engine repeats its rows
    with torch.inference_mode():
        for outputs, inputs in ((width, width), (256, width), (3 * width, 256)):  # as those of the modulation
            weight, rows = (torch.randn(count, inputs).to(ours.dtype) for count in (outputs, 64))
            many = (rows.repeat(9, 1) @ weight.T)[: len(rows)]
            few |= {torch.equal(rows[:count] @ weight.T, many[:count]) for count in counts}
    if few == {True} or torch.equal(ours, theirs):
        assert torch.equal(ours, theirs)
    else:
        units = 64 * torch.finfo(ours.dtype).eps * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=units, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "frames", "observed"), [(1, 9, 1), (3, 5, 2)])
@pytest.mark.parametrize("text_tokens", [0, 7])
def test_the_worldlet_s_forward_keeps_its_bits(
    dtype: torch.dtype, batch: int, frames: int, observed: int, text_tokens: int
) -> None:
    # so stored latents keep theirs, and with them the engine its version
    stock = worldlet(dtype)
    text = torch.randn(batch, text_tokens, stock.config.text_embed_dim).to(dtype) if text_tokens else None
    theirs, ours = both(stock, text, *forward_inputs(stock, batch, frames, 8, 8, observed=observed))
    assert theirs.abs().max() > 0.1
    assert_same_bits(ours, theirs, stock.config.num_attention_heads * stock.config.attention_head_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_of_the_real_width_keeps_its_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stock = cosmos_2b(num_layers=1).to(dtype)
    theirs, ours = both(stock, None, *forward_inputs(stock, 1, 5, 8, 8))
    assert_same_bits(ours, theirs, 2048)


def test_learned_positions_rates_and_sizes_that_are_not_square_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    stock = mini_transformer(extra_pos_embed_type="learnable")
    for parameter in stock.learnable_pos_embed.parameters():
        torch.nn.init.normal_(parameter)
    theirs, ours = both(stock, torch.randn(2, 3, TEXT_WIDTH), *forward_inputs(stock, 2, 3, 4, 6), fps=10.0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_fifth_of_the_operations_of_the_real_network_is_left_out() -> None:
    with torch.device("meta"):
        stock = cosmos_2b(num_layers=2)
        forwards = both_forwards(stock, *forward_inputs(stock, 1, 9, 28, 28))
    operations: list[int] = []
    for forward in forwards:
        with FlopCounterMode(display=False) as counter:
            forward()
        operations.append(counter.get_total_flops())
    theirs, ours = operations
    assert ours < 0.81 * theirs


def test_the_lean_form_holds_no_weight_of_its_own() -> None:
    stock = mini_transformer()
    theirs = {parameter.data_ptr() for parameter in stock.parameters()}
    assert {parameter.data_ptr() for parameter in LeanTransformer(stock).parameters()} == theirs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_crossattn_projection": True}, r"this is a Cosmos-Predict2\.5 transformer"),
        ({"img_context_dim_in": 8}, "Cosmos-Transfer"),
        ({"patch_size": (2, 2, 2)}, "packs 2 latent frames into one token"),
    ],
)
def test_a_network_that_computes_otherwise_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(WorldModelError, match=words):
        LeanTransformer(mini_transformer(**changes))

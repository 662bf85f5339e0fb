"""A reader with flex attention computes what one with plain attention does; a kernel that is wrong is found."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from theworld.train.data.batches import Example, pad_rows
from theworld.train.reader import attention
from theworld.train.reader.attention import HeadSizes, flex_problem, use_flex, without_flex
from theworld.train.reader.lengths import padded_length
from theworld.train.reader.model import TheWorld
from theworld.train.reader.segments import FLEX

from .test_packing import LATENTS, gradients, model

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
ROWS = [
    [Example("0", (1, *range(4, 14)), (7, 8, 2)), Example("0", (1, *range(8, 20)), (9, 2))],
    [Example("1", (1, 4, 5, 6), (10, 2))],
]


def flex_model(family: str) -> TheWorld:
    made = model(family)
    use_flex(made.lm)
    return made


def written_out(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """flex_attention by its definition: all scores, as `score_mod` changes them, where `block_mask` sees a pair."""
    blocks: BlockMask = options["block_mask"]
    rows, heads, length, _ = query.shape
    row, head, token, other = (
        torch.arange(n).view([-1 if place == axis else 1 for place in range(4)])
        for axis, n in enumerate((rows, heads, length, length))
    )
    groups = heads // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * options["scale"]
    if options["score_mod"] is not None:
        scores = options["score_mod"](scores, row, head, token, other)
    seen = blocks.mask_mod(row, head, token, other)
    in_blocks = blocks.to_dense().repeat_interleave(128, 2).repeat_interleave(128, 3)[:, :, :length, :length].bool()
    assert not bool((seen & ~in_blocks).any()), "a block that holds something is skipped"
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(groups, 1)


@pytest.fixture
def trainable_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's flex_attention has no backward pass on a CPU."""
    monkeypatch.setattr(attention, "flex_kernel", written_out)


@pytest.mark.parametrize("family", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_logits_and_likelihoods_are_those_of_plain_attention(family: str) -> None:
    plain, flex, batch = model(family), flex_model(family), pad_rows(ROWS, 0)
    alone = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = flex(**batch, latents=LATENTS[:2]), plain(**batch, latents=LATENTS[:2])
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
        ours, theirs = flex(**alone).logits, plain(**alone).logits
    real = batch["attention_mask"] == 1
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("trainable_on_a_cpu")
@pytest.mark.parametrize("family", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_gradients_are_those_of_plain_attention(family: str) -> None:
    plain, flex, batch = model(family), flex_model(family), pad_rows(ROWS, 0)
    expected = gradients(plain, plain(**batch, latents=LATENTS[:2]).loss)
    found = gradients(flex, flex(**batch, latents=LATENTS[:2]).loss)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("trainable_on_a_cpu")
def test_more_padding_changes_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    flex, batch, lengths = flex_model("Gemma2ForCausalLM"), pad_rows(ROWS, 0), set[int]()

    def noted(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        lengths.add(query.shape[2])
        return written_out(query, key, value, **options)

    monkeypatch.setattr(attention, "flex_kernel", noted)
    one = flex(**batch, latents=LATENTS[:2])
    few = gradients(flex, one.loss)
    monkeypatch.setattr("theworld.train.reader.segments.padded_length", lambda tokens: 256 + padded_length(tokens))
    other = flex(**batch, latents=LATENTS[:2])
    assert lengths == {128, 384}
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(flex, other.loss).items():
        torch.testing.assert_close(gradient, few[name], rtol=1e-5, atol=1e-6)


def test_a_text_is_generated_with_plain_attention() -> None:
    plain, flex, batch = model("Gemma2ForCausalLM"), flex_model("Gemma2ForCausalLM"), pad_rows(ROWS[1:], 0)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for drawn in ({}, {"temperature": 0.8, "seed": 3}):
        texts = [of.generate(**asked, end_id=2, latents=LATENTS[:1], max_new_tokens=5, **drawn) for of in (plain, flex)]
        assert torch.equal(*texts)
    assert flex.lm.config._attn_implementation == FLEX
    with without_flex(plain.lm):
        assert plain.lm.config._attn_implementation == "eager"


# --- the check of a device

GEMMA_2 = HeadSizes(heads=4, kv_heads=2, head_dim=32, scaling=32**-0.5, softcap=50.0, windowed=True)
GEMMA_3 = HeadSizes(heads=2, kv_heads=1, head_dim=32, scaling=32**-0.5, softcap=None, windowed=True)


@pytest.fixture
def fresh_check() -> Iterator[None]:
    flex_problem.cache_clear()
    yield
    flex_problem.cache_clear()


@pytest.mark.usefixtures("fresh_check")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [GEMMA_2, GEMMA_3])
def test_a_device_that_computes_right_passes(sizes: HeadSizes, dtype: torch.dtype) -> None:
    assert flex_problem(sizes, CPU, dtype) is None


def without(option: str) -> Any:
    def kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if option == "window":  # causal alone
            length = query.shape[2]
            seen = torch.arange(length)[:, None] >= torch.arange(length)
            scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * options["scale"]
            return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
        return flex_attention(query, key, value, **{**options, option: None})  # type: ignore[return-value]

    return kernel


@pytest.mark.usefixtures("fresh_check")
@pytest.mark.parametrize("left_out", ["score_mod", "block_mask", "window"])
def test_a_kernel_that_leaves_something_out_is_found(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "flex_kernel", without(left_out))
    problem = flex_problem(GEMMA_2 if left_out != "window" else GEMMA_3, CPU, torch.bfloat16)
    assert problem is not None
    assert "a value that it computes is off by" in problem


@pytest.mark.usefixtures("fresh_check")
def test_a_kernel_that_does_not_compile_is_a_reason_and_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def fails(*_: Any, **__: Any) -> Tensor:
        tries.append(1)
        raise RuntimeError("out of resource: shared memory\nRequired: 1")

    monkeypatch.setattr(attention, "flex_kernel", fails)
    reasons = {flex_problem(GEMMA_2, CPU, torch.bfloat16) for _ in range(3)}
    assert reasons == {"it cannot be computed there (out of resource: shared memory)"}
    assert len(tries) == 1


def test_the_kernel_is_compiled_for_two_lengths_and_then_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(flex_attention, fullgraph=True, backend=count)
    monkeypatch.setattr(attention, "flex_kernel", compiled)
    flex, made = flex_model("Gemma2ForCausalLM"), list[int]()
    for tokens in (100, 200, 300, 400, 500, 700):
        row = [Example("0", (1, *[4] * tokens), (7, 2)), Example("0", (1, 5, 6), (9, 2))]
        with torch.no_grad():
            flex(**pad_rows([row, row], 0), latents=LATENTS[:2])
        made.append(len(graphs))
    assert made[0] == 2  # kinds of layers
    assert made[1] == made[-1] == 4

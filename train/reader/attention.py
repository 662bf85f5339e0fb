"""Flex attention: the kernel, which models use it, and whether it computes right on a device.

flex_attention takes softly capped scores and sliding windows, keeps no scores, and skips blocks of tokens that see
nothing. torch compiles it for the device, so that one is asked first: the same attention is computed there on a small
input in both ways, with its gradients.

Axes:  B row   H head   S token   D width of a head
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flex_attention_mask

from .lengths import BLOCK
from .segments import FLEX, segment_blocks, segment_masks, segment_positions

_COMPILED_KINDS = 64  # kinds of layers, training or not, one row or several, two lengths: never so many
_VALUE, _GRADIENT = "a value that", "a gradient that"
_WRONG_BY = {_VALUE: 0.02, _GRADIENT: 0.05}
"""Shares of the largest. A kernel that rounds to bfloat16 is off by at most 0.005 and 0.012 (written out on a CPU); one
that leaves out the cap of Gemma-2 in the backward pass alone by 0.5."""


@cache
def _compiled() -> Any:
    """The kernel, compiled once for all models.

    The second length that it meets makes it take all lengths (torch's dynamic shapes), so no later one compiles.
    `fullgraph` makes a compilation too many an error; otherwise torch would make all scores then, in silence.
    """
    compiler: Any = torch.compile  # its stated overloads lack recompile_limit
    return compiler(flex_attention, fullgraph=True, recompile_limit=_COMPILED_KINDS)


def flex_kernel(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """flex_attention, compiled on a GPU. On a CPU it makes all scores, and has no backward pass."""
    kernel: Any = flex_attention if query.device.type == "cpu" else _compiled()
    return kernel(query, key, value, **options)


def flex_forward(
    module: nn.Module,  # noqa: ARG001 - transformers passes the layer
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a layer, as transformers asks for it: (B, H, S, D) to (B, S, H, D), and no scores."""
    assert not dropout, "Gemma trains without dropout in its attention"

    def capped(score: Tensor, row: Tensor, head: Tensor, token: Tensor, other: Tensor) -> Tensor:  # noqa: ARG001
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    out = flex_kernel(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, flex_forward)
AttentionMaskInterface.register(FLEX, flex_attention_mask)  # where a caller passes a model a mask by token, not ours


def use_flex(model: Any) -> None:
    """Let a language model of transformers, bare or with LoRA, compute attention by `flex_forward`."""
    _set_attention(model, FLEX)


@contextmanager
def without_flex(model: Any) -> Iterator[None]:
    """For the time of a text that is generated, whose length grows by a token a pass: the attention we checked."""
    text = model.config.get_text_config()
    if text._attn_implementation != FLEX:
        yield
        return
    _set_attention(model, "eager" if getattr(text, "attn_logit_softcapping", None) else "sdpa")
    try:
        yield
    finally:
        use_flex(model)


def _set_attention(model: Any, name: str) -> None:
    """Of the text part: a vision tower keeps its own."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # around it: peft's LoRA
    is_multimodal = "text_config" in base.config.sub_configs
    base.set_attn_implementation({"text_config": name} if is_multimodal else name)


# --- whether it computes right


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """What a model's kernel depends on."""

    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    softcap: float | None
    windowed: bool

    @classmethod
    def of(cls, config: Any) -> HeadSizes:
        """From a configuration of transformers."""
        text = config.get_text_config()
        return cls(
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            scaling=text.query_pre_attn_scalar**-0.5,
            softcap=getattr(text, "attn_logit_softcapping", None),
            windowed=bool(text.sliding_window),
        )


@cache
def flex_problem(sizes: HeadSizes, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why flex attention cannot be used on a device; None if it gives what plain attention gives. Asked once a process.

    On a CPU the values alone are compared: there it has no backward pass.
    """
    shapes = [(2, 3 * BLOCK), (3, 4 * BLOCK)]  # the second one compiles the kernel for all lengths
    try:
        problems = [
            pair
            for rows, length in shapes[: 1 if device.type == "cpu" else 2]
            for pair in _compare(sizes, device, dtype, rows=rows, length=length).items()
        ]
    except Exception as error:  # torch's compiler raises whatever a kernel raises
        return f"it cannot be computed there ({_first_line(error)})"
    wrong = [(name, error) for name, error in problems if not error <= _WRONG_BY[name]]
    if not wrong:
        return None
    name, error = max(wrong, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])
    return f"{name} it computes is off by {error:.1%}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _compare(
    sizes: HeadSizes, device: torch.device, dtype: torch.dtype, *, rows: int, length: int
) -> Mapping[str, float]:
    """The largest difference to plain attention in float32, by the largest value: of values, and of gradients."""
    window = 100  # several blocks, whole ones and skipped ones; packed questions; padding
    segments = torch.zeros(rows, length, dtype=torch.long, device=device)
    segments[0, 150:270], segments[0, 270:350] = 1, 2
    segments[1, 40:300] = 1
    mask = torch.ones_like(segments)
    mask[:, 350:] = 0
    positions = segment_positions(segments, mask)
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> Tensor:
        drawn = torch.randn(rows, length, heads, sizes.head_dim, generator=generator).to(device, dtype)
        return drawn.transpose(1, 2)  # laid out as a model's

    query, key, value = drawn(sizes.heads), drawn(sizes.kv_heads), drawn(sizes.kv_heads)
    # scores spread over a quarter of the cap, or over 3: a cap that is left out shows
    spread = (sizes.softcap / 4 if sizes.softcap else 3.0) / (sizes.scaling * sizes.head_dim**0.5)
    query = query * spread
    toward = drawn(sizes.heads).transpose(1, 2).float() * (mask[..., None, None] == 1)
    masks = {"window": window if sizes.windowed else None, "is_image": None}
    dense = segment_masks(segments, mask, positions, dtype=torch.float32, **masks)
    blocks = segment_blocks(segments, mask, positions, **masks)
    with_gradients, differences = device.type != "cpu", dict[str, float]()
    for name, block_mask in blocks.items():
        given = [tensor.detach().clone().requires_grad_(with_gradients) for tensor in (query, key, value)]
        exact = [tensor.detach().float().requires_grad_(with_gradients) for tensor in (query, key, value)]
        with torch.set_grad_enabled(with_gradients):
            ours = flex_forward(nn.Identity(), *given, block_mask, scaling=sizes.scaling, softcap=sizes.softcap)[0]
            plain = _plain(*exact, dense[name], sizes)
        pairs = [(_VALUE, ours * (mask[..., None, None] == 1), plain * (mask[..., None, None] == 1))]
        if with_gradients:
            got = torch.autograd.grad((ours.float() * toward).sum(), given)
            right = torch.autograd.grad((plain * toward).sum(), exact)
            pairs += [(_GRADIENT, *both) for both in zip(got, right, strict=True)]
        for what, a, b in pairs:
            error = float((a.detach().float() - b.detach()).abs().max() / b.detach().abs().max())
            differences[what] = error if math.isnan(error) else max(differences.get(what, 0.0), error)
    return differences


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, sizes: HeadSizes) -> Tensor:
    """Attention as Gemma-2 writes it, all scores made."""
    groups = sizes.heads // sizes.kv_heads
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * sizes.scaling
    if sizes.softcap is not None:
        scores = sizes.softcap * torch.tanh(scores / sizes.softcap)
    return ((scores + mask).softmax(-1) @ value).transpose(1, 2)

"""Follow the memory that a computation takes, on shapes alone: models of any size, none of their numbers.

    with Allocations() as memory, torch.device("meta"):
        ...                         # weights and activations are meta tensors
    memory.peak                     # bytes

Ids, masks and labels stay real, since what is computed depends on them; where one meets a meta tensor, its shape alone
goes on. An allocation lives as long as its storage does, so what autograd keeps for the backward pass is counted.
Attention kernels count as fused ones do: their inputs, their output, no scores.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_SMALL = 4096  # bytes: smaller real tensors are shapes, positions and ids


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active.

    Attributes:
        live, peak: bytes now, and the most so far.
        sites: at the peak, bytes by the operation that made them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sites: Counter[str] = Counter()
        self._by_site: Counter[str] = Counter()
        self._known: set[int] = set()
        # on meta tensors torch takes attention apart, and would keep scores that no kernel of a GPU keeps
        self._fused = mock.patch.object(nn.functional, "scaled_dot_product_attention", fused_attention)

    def __enter__(self) -> Self:
        super().__enter__()
        self._fused.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._fused.__exit__(*error)
        super().__exit__(*error)

    def hold(self, tensors: Iterator[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._note(tensor, "held")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in given) and not all(tensor.is_meta for tensor in given):
            if func is torch.ops.aten.index.Tensor:  # rows chosen by a mask: how many is in the mask
                args = (args[0], [n for index in args[1] for n in _places(index)])
            args, kwargs = tree_map_only(Tensor, _shape_of, (args, kwargs))
        elif func is torch.ops.aten._to_copy.default and not args[0].is_floating_point():
            kwargs = {**kwargs, "device": None}  # ids and masks stay real
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, str(func))
        return result

    def _note(self, tensor: Tensor, site: str) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number in self._known or (not tensor.is_meta and size < _SMALL):
            return
        self._known.add(number)
        self.live += size
        self._by_site[site] += size
        if self.live > self.peak:
            self.peak, self.sites = self.live, Counter(self._by_site)
        weakref.finalize(storage, self._free, number, size, site)

    def _free(self, number: int, size: int, site: str) -> None:
        self._known.discard(number)
        self.live -= size
        self._by_site[site] -= size


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Stands for any fused kernel."""
    return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps: its inputs and its output, and a number for each row of scores."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        query, _, value = inputs
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(*inputs, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ARG004
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def _shape_of(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    if index is None or index.dtype != torch.bool:
        return (index,)
    return index.nonzero().unbind(1)

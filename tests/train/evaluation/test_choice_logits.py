"""Of the logits over all words, only those of the choices leave the device, and none are widened all at once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from theworld.train.data.batches import Example
from theworld.train.evaluation.answering.many import _choice_scores, _Item
from theworld.train.reader.memory import SCORED_AT_ONCE
from theworld.train.runs.folder import LoadedRun

WORDS, ANSWERS = 5000, 200


class Widened(TorchDispatchMode):
    """Notes how many numbers the float32 tensors have that are made of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.sizes += [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor) and t.dtype == torch.float32]
        return result


def test_only_the_logits_of_choices_are_widened() -> None:
    logits = torch.randn(ANSWERS, WORDS, generator=torch.Generator().manual_seed(0)).bfloat16()
    loaded = object.__new__(LoadedRun)  # of which the model alone is asked
    object.__setattr__(loaded, "model", lambda **_: SimpleNamespace(logits=logits))
    items = [_Item(n, Example("a", (1,), (2,)), (n, n + 1, n + 2)) for n in range(ANSWERS)]
    for likeliest, most in ((False, 3 * ANSWERS), (True, SCORED_AT_ONCE * WORDS)):
        widened = Widened()
        with widened:
            scores = _choice_scores(loaded, {}, items, likeliest=likeliest)
        assert max(widened.sizes) == most
        assert scores[7][0] == logits[7, [7, 8, 9]].float().tolist()
        assert scores[7][1] == (int(logits[7].argmax()) if likeliest else None)

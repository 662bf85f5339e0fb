"""State dicts that name each weight once: a language model's output head is often the table of its words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def name_weights_once(model: nn.Module) -> None:
    """Leave second names of a weight out of the state dict of a model, and let it load one without them.

    safetensors refuses to write a weight twice, and with it transformers' Trainer each checkpoint.
    """
    model.register_state_dict_post_hook(_leave_out)
    model.register_load_state_dict_pre_hook(_add)


def _second_names(model: nn.Module) -> dict[str, str]:
    """Second name of a weight -> its first."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(weight)] for name, weight in named if first.setdefault(id(weight), name) != name}


def _leave_out(model: nn.Module, weights: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in _second_names(model):
        weights.pop(prefix + name, None)


def _add(model: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, first in _second_names(model).items():
        if prefix + first in weights:
            weights.setdefault(prefix + name, weights[prefix + first])

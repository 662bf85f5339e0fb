"""Checkpoints of a training in progress: one safetensors file, written atomically, without a pickle in it.

    weights/NAME           the trained weights: reader and LoRA, without the frozen model
    optimizer/NAME/KEY     the optimizer's moments of each weight
    best/NAME              with validation, the weights of the lowest validation loss so far
    metadata "training"    the rest, as JSON: position, schedule, curves, counts

It holds no state of random generators: the draws of an update follow from (seed, update, piece, process).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...pipeline.errors import RunError
from ...pipeline.files.atomic import replace
from ...pipeline.files.plain import open_file
from .distributed import split_like, whole

_FORMAT = 1
_MAX_BYTES = 2**42


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after an update."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part of the file: `weights`, `optimizer` or `best`, by the rest of their names."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the last checkpoint atomically.

    Raises:
        OSError: it could not be written; the last one is unchanged.
    """
    tensors = {name: checkpoint.tensors[name].contiguous() for name in sorted(checkpoint.tensors)}
    text = json.dumps({"format": _FORMAT, "digest": _digest(tensors), "state": checkpoint.state})
    replace(path.parent, path, save(tensors, {"training": text}))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        RunError: it cannot be read, is damaged, or of another format.
    """
    try:
        open_file(path, _MAX_BYTES, within=path.parent).close()  # a pipe would block the library
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        is_our_format, state = metadata["format"] == _FORMAT, metadata["state"]
        is_whole = is_our_format and metadata["digest"] == _digest(tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:  # nested too deeply, too
        raise RunError(f"the checkpoint {path} cannot be read: {error}. Remove its folder and train again") from error
    if not is_whole:
        reason = "its bytes have changed" if is_our_format else f"it has the format {metadata['format']}"
        raise RunError(f"the checkpoint {path} cannot be used: {reason}. Remove its folder and train again")
    return Checkpoint(tensors, state)


def _digest(tensors: dict[str, Tensor]) -> str:
    total = xxhash.xxh3_128()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained weights, by name, on the CPU. All processes of a training must call it together."""
    return {name: whole(p).clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """The reverse of `weights_of`.

    Raises:
        RunError: these are weights of another model.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = [n for n in trained.keys() | weights.keys() if n not in weights or n not in trained] or [
        n for n in trained if trained[n].shape != weights[n].shape
    ]
    if wrong:
        raise RunError(f"the checkpoint is of another model: {sorted(wrong)[0]} does not fit. Train again")
    for name, parameter in trained.items():
        parameter.copy_(split_like(weights[name], parameter))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimizer's moments by `NAME/KEY`, and the settings of each parameter group."""
    moments = {
        f"{name}/{key}": whole(value).clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return moments, groups


def put_optimizer_state(
    model: nn.Module, optimizer: Optimizer, moments: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The reverse of `optimizer_state`, on any number of processes."""
    numbers = {id(p): n for n, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for path, value in moments.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        state.setdefault(numbers[id(parameter)], {})[key] = value if value.ndim == 0 else split_like(value, parameter)
    layout = optimizer.state_dict()["param_groups"]
    restored = [
        {**current, **{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}}
        for current, saved in zip(layout, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def schedule_state(scheduler: LRScheduler) -> dict[str, Any]:
    """The state of a learning rate's schedule, without its functions, which follow from the settings."""
    return {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas" and _is_plain(v)}


def put_schedule_state(scheduler: LRScheduler, state: dict[str, Any]) -> None:
    """The reverse of `schedule_state`."""
    scheduler.load_state_dict({**scheduler.state_dict(), **state})


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True

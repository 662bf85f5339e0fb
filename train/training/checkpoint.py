"""Checkpoints of a training in progress: one safetensors file, written atomically, without a pickle in it.

    weights/NAME           the trained weights: reader and LoRA, without the frozen model
    optimizer/NAME/KEY     the optimizer's moments of each weight
    best/NAME              with validation, the weights of the lowest validation loss so far
    metadata "training"    the rest, as JSON: `State`, that is position, curve and counts

It holds neither a schedule nor the state of random generators: they follow from the number of an update (schedule.py).
Format 1 was that of a loop with another schedule, which this one cannot continue.
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

from ...pipeline.errors import RunError
from ...pipeline.files.atomic import replace
from ...pipeline.files.plain import open_file
from .distributed import split_like, whole

_FORMAT = 2
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
        reason, instead = "its bytes have changed", "Remove its folder and train again"
        if not is_our_format:
            reason = f"it has the format {metadata['format']}, and this release reads {_FORMAT}"
            instead += ", or resume it with the release that began it"
        raise RunError(f"the checkpoint {path} cannot be used: {reason}. {instead}")
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


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments, by `NAME/KEY`. All processes of a training must call it together."""
    return {
        f"{name}/{key}": whole(value).clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def put_optimizer_state(model: nn.Module, optimizer: Optimizer, moments: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_state`, on any number of processes. Rates and other settings stay the optimizer's."""
    numbers = {id(p): n for n, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for path, value in moments.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        state.setdefault(numbers[id(parameter)], {})[key] = value if value.ndim == 0 else split_like(value, parameter)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

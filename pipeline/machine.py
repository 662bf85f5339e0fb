"""This machine: its cores, its CPU and GPU by name, and the device that tensors are computed on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import ConfigError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda"]
"""Where tensors are computed; "auto" is a GPU where there is one."""


def usable_cores() -> int:
    """The cores this process may run on, fewer than the machine has where it was pinned (taskset, a SLURM job).

    Where a system cannot be asked for that, as macOS, all that the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(name: DeviceName) -> torch.device:
    """The device a word stands for; "auto" is a GPU where there is one.

    Raises:
        ConfigError: cuda is asked for and not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no GPU. Use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@cache
def cpu_model() -> str:
    """What this machine's CPU is called."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: str, threads: int | None) -> str:
    """A device by its model, so that a cluster's and tomorrow's of the same model share what is known."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {threads} threads"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time may help. torch has one class for a GPU and only words for a CPU."""
    words = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )

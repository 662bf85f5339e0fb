"""Facts about this machine: usable cores, names of CPU and GPU, and the device to compute on."""

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
"""Where to compute. "auto" means the GPU if there is one, else the CPU."""


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    That is fewer than the machine has if the process is pinned (taskset, a SLURM job). macOS does not say; there it
    is all cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(name: DeviceName) -> torch.device:
    """Return the torch device for a `--device` value.

    Raises:
        ConfigError: `name` is "cuda" and torch sees no GPU.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no GPU. Use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@cache
def cpu_model() -> str:
    """Return the model name of this machine's CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: str, threads: int | None) -> str:
    """Return a device's model name. Measured speeds are stored under it, so equal devices share them."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {threads} threads"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means "out of memory", so that a smaller batch may help.

    torch raises its own class on a GPU, but a plain RuntimeError on a CPU: there only the message tells.
    """
    words = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )

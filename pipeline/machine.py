"""How many cores this process may use: the one place that counts them."""

from __future__ import annotations

import os

import json
import platform
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from .files.atomic import replace
from .latents.recipe import Recipe


def usable_cores() -> int:
    """The cores this process may run on, fewer than the machine has where it was pinned (taskset, a SLURM job).

    Where a system cannot be asked for that, as macOS, all that the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1



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

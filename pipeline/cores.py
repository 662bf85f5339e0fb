"""How many cores this process may use: the one place that counts them."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores this process may run on, fewer than the machine has where it was pinned (taskset, a SLURM job).

    Where a system cannot be asked for that, as macOS, all that the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

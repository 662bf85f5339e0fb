"""Facts about this machine: usable cores, names of CPU and GPU, the device to compute on, and where such is kept."""

from __future__ import annotations

import math
import os
import platform
import re
import time
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

    That is fewer than the machine has if the process is pinned (taskset, a SLURM job), or if its cgroup or one above it
    has a quota of CPU time (a container with `--cpus 2`, a Kubernetes limit); half a core counts as one. macOS does not
    say; there it is all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_cores(Path("/proc/self"))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def quota_cores(process: Path) -> float | None:
    """The smallest CPU quota of a process's cgroup and of those above it, in cores; None where there is none.

    Args:
        process: its folder in /proc.
    """
    quotas = [
        quota
        for mount, group in _cpu_groups(process)
        for folder in (group, *group.parents)
        if folder.is_relative_to(mount)
        for quota in (_quota_of(folder),)
        if quota is not None
    ]
    return min(quotas, default=None)


def _cpu_groups(process: Path) -> list[tuple[Path, Path]]:
    """Where cgroups that limit CPU time are mounted, and the folder of the process's own below it: v2, v1, or both."""
    try:
        # bytes that are no text stay what they are: a mount point may have any name
        memberships = os.fsdecode((process / "cgroup").read_bytes()).splitlines()
        mounts = os.fsdecode((process / "mountinfo").read_bytes()).splitlines()
    except OSError:  # not Linux
        return []
    groups: dict[str, str] = {}
    for line in memberships:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "" or "cpu" in controllers.split(","):
            groups["cgroup" if controllers else "cgroup2"] = group
    cgroups: list[tuple[Path, Path]] = []
    for line in mounts:
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(kind) < 3 or kind[0] not in groups:
            continue
        if kind[0] == "cgroup" and "cpu" not in kind[2].split(","):
            continue
        root, mount = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        # a container sees its own group at the mount point, under a path that may be the host's
        inside = os.path.relpath(groups[kind[0]], root)
        is_below = not inside.startswith("..")
        cgroups.append((Path(mount), Path(mount, inside) if is_below else Path(mount)))
    return cgroups


def _quota_of(group: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").is_file():  # cgroup v2
            quota, period = (group / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    return None


def running_seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def own_folder() -> Path:
    """Return the folder for what is remembered of this machine and of files on it; it may not exist, nor be writable.

    It is `theworld` in $XDG_CACHE_HOME or ~/.cache, and can be deleted at any time.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "theworld"  # noqa: PTH111 - no error


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

"""Memory of the computing device: how much there is, whether a task fits, how far an estimate was off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .machine import device_name, is_out_of_memory
from .messages import format_bytes

if TYPE_CHECKING:
    import torch

GIB = 2**30
CONTEXT = 0.6 * GIB  # that CUDA takes for itself, of a GPU that is only named by its size
_RESERVE = 0.9  # of the memory: allocations leave gaps
_WRONG_BY = 0.25  # where the memory taken differs from the estimate by a larger share, a person is told


def usable(free_bytes: float) -> float:
    """How much of the free memory an estimate may take."""
    return _RESERVE * free_bytes


def memory_of_size(size_bytes: float) -> float:
    """Bytes that a job may take on a GPU of this size, which nothing else uses."""
    return max(0.0, size_bytes - CONTEXT)


def free_memory(device: torch.device, gib_given: float | None = None) -> float | None:
    """Bytes that a job may take on a device; None on a CPU, which gives no such limit.

    Args:
        gib_given: the size of a GPU that is planned for, in GiB.
    """
    if gib_given is not None:
        return memory_of_size(gib_given * GIB)
    if device.type != "cuda":
        return None
    import torch

    kept_for_us = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept_for_us)


def name_of(device: torch.device, gib_given: float | None = None) -> str:
    """What a person calls the device, or the GPU that is planned for."""
    if gib_given is not None:
        return f"a GPU of {gib_given:g} GiB"
    return device_name(str(device), None) if device.type == "cuda" else "this CPU"


def fits(work: Callable[[], object]) -> bool:
    """Do it; False where it ended for lack of memory. Any other error is raised."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    import torch

    # here, where nothing holds the error and with it what had been allocated
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def total_memory(device: str) -> float | None:
    """Bytes that a job may take on a device of torch while nothing else uses it; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return memory_of_size(torch.cuda.mem_get_info(device)[1])


class PeakMemory:
    """The most bytes that tensors took on a device since this was made, without those that were there before."""

    def __init__(self, device: str) -> None:
        self._device, self._before = device, 0
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def measured(self) -> int | None:
        """The bytes; None on a CPU, where none are counted."""
        if not self._device.startswith("cuda"):
            return None
        import torch

        return torch.cuda.max_memory_allocated(self._device) - self._before


def wrong_estimate(estimated: int, measured: int) -> str | None:
    """The note at the end of some work whose estimate was far off; None if it was not."""
    if abs(measured - estimated) <= _WRONG_BY * estimated:
        return None
    return (
        f"note: the estimate of memory was wrong: {format_bytes(estimated)} were expected, {format_bytes(measured)} "
        "were taken. Please report both, with the model and the settings"
    )

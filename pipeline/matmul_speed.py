"""How fast a device multiplies matrices: measured once, and remembered by device, driver and version of torch.

    ~/.cache/theworld/speeds.json    {"NVIDIA H200; driver 570.86; torch 2.13.0": {"bfloat16": 7.6e14, "float32": …}}

A plan estimates from it what has never run here. A GPU is measured in a process of its own: a context of CUDA in this
one would take half a gigabyte from the workers to the end of the job.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .files.atomic import make_folders, replace
from .files.plain import read_json
from .machine import cpu_model, own_folder
from .messages import format_amount
from .progress import print_json

if TYPE_CHECKING:
    import torch

FILE = "speeds.json"
DTYPES = ("bfloat16", "float32")
_LIMIT_BYTES = 2**20
_GPU_SIZE, _CPU_SIZE = 8192, 512
_ROUNDS, _LIMIT_S = 6, 0.5
"""Of each dtype; the fastest round counts, as others may use the machine, too."""
_PROCESS_S = 180.0


def matmul_speeds(device: str) -> dict[str, float]:
    """Operations a second in a product of two matrices, by dtype: bfloat16, and float32 in full precision.

    Args:
        device: as of torch. A CPU is measured with the threads of this process.
    Returns:
        Nothing where the device cannot be measured.
    """
    key = _key(device)
    saved_speeds = _read(own_folder() / FILE)
    if key in saved_speeds:
        return saved_speeds[key]
    speeds = _in_a_process(device) if device.startswith("cuda") else measure(device)
    if speeds:
        with suppress(OSError):
            make_folders(own_folder())
            content = json.dumps({**saved_speeds, key: speeds}, indent=1, sort_keys=True)
            replace(own_folder(), own_folder() / FILE, content.encode())
    return speeds


def emulates_bfloat16(speeds: dict[str, float]) -> bool:
    """Whether bfloat16, of half the bytes, is slower than float32: a CPU without instructions for it."""
    return bool(speeds) and speeds["bfloat16"] < 0.8 * speeds["float32"]


def speed_text(flops: float) -> str:
    """Operations a second: 62 GFLOP/s, 790 TFLOP/s."""
    return f"{format_amount(flops / 1e12)} TFLOP/s" if flops >= 1e12 else f"{format_amount(flops / 1e9)} GFLOP/s"


def measure(device: str) -> dict[str, float]:
    """Measure a device now; takes a second."""
    import torch

    size = _GPU_SIZE if device.startswith("cuda") else _CPU_SIZE
    return {name: _measure(torch.ones(size, size, device=device, dtype=getattr(torch, name))) for name in DTYPES}


def _measure(matrix: torch.Tensor) -> float:
    import torch

    def seconds(products: int) -> float:
        started = time.perf_counter()
        for _ in range(products):
            torch.matmul(matrix, matrix, out=result)
        if matrix.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    result = torch.empty_like(matrix)
    began, products = time.perf_counter(), 10 if matrix.is_cuda else 1
    best = seconds(products)  # the first, too, in case that it is the only one
    for _ in range(_ROUNDS):
        if time.perf_counter() - began > _LIMIT_S:
            break
        best = min(best, seconds(products))
    return 2.0 * len(matrix) ** 3 * products / best


def _in_a_process(device: str) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, device]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_PROCESS_S, check=True)
        return _checked(json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):  # no room on it, or another's alone
        return {}


def _key(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        with suppress(OSError):
            driver = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace").splitlines()[0]
            return f"{torch.cuda.get_device_name(device)}; {driver}; torch {torch.__version__}"
        return f"{torch.cuda.get_device_name(device)}; torch {torch.__version__}"
    cpu = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}; {torch.get_num_threads()} threads; torch {torch.__version__}"


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        content: Any = read_json(file, _LIMIT_BYTES)
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    speeds = {str(key): _checked(row) for key, row in cast(dict[Any, Any], content).items()}
    return {key: row for key, row in speeds.items() if row}


def _checked(row: Any) -> dict[str, float]:
    """The speeds of a device, of both dtypes; nothing where they are not numbers that make sense."""
    speeds: list[Any] = [row.get(name) for name in DTYPES] if isinstance(row, dict) else []  # type: ignore[reportUnknownMemberType]
    if not speeds or not all(isinstance(speed, float) and 0 < speed < math.inf for speed in speeds):
        return {}
    return dict(zip(DTYPES, map(float, speeds), strict=True))


if __name__ == "__main__":
    print_json(measure(sys.argv[1]))

"""`theworld doctor`: check what the commands need on this machine, and say how to get what is missing.

One function a subject. Each takes a few seconds at most and changes nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
from packaging.requirements import Requirement
from rich.table import Column, Table
from rich.text import Text

from ...accelerators import Accelerator
from ...credentials import hide_passwords
from ...device_memory import memory_of_size, total_memory
from ...files.open_files import MOST_RAISED
from ...machine import usable_cores
from ...matmul_speed import DTYPES, emulates_bfloat16, matmul_speeds, speed_text
from ...messages import format_bytes, install_extra

State = Literal["ok", "note", "problem"]

_GIB = 2**30
_HUB_S = 5.0
_FEW_FILES, _LITTLE_DISK, _LITTLE_MEMORY = 1024, 5 * _GIB, 4 * _GIB
_LONG_TEMP = 23
"""Bytes of a temporary folder's name beyond which Ray's sockets do not fit into it (a socket's path has 107)."""
_HEARD = {
    "HF_HOME": "where weights from the Hub are kept",
    "HF_HUB_OFFLINE": "1: the Hub is never asked",
    "HF_ENDPOINT": "another Hub",
    "CUDA_VISIBLE_DEVICES": "the GPUs that are seen",
    "OMP_NUM_THREADS": "CPU threads of a process",
    "RAY_ADDRESS": "not used: a cluster is joined by --address alone",
    "RAY_AUTH_TOKEN_PATH": "the cluster's token",
    "SLURM_JOB_ID": "inside a SLURM job",
    "NO_COLOR": "no colors",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What was found about one thing."""

    what: str
    state: State
    """note: worth knowing, some command may not work; problem: most will not."""
    found: str
    advice: str = ""


def examine(environment: Mapping[str, str] | None = None, *, planned: Accelerator | None = None) -> list[Row]:
    """All there is to say of this machine.

    Args:
        environment: variables to look at; by default this process's own.
        planned: a device that is not here; what fits its memory is said, too.
    """
    environment = os.environ if environment is None else environment
    looks: tuple[Callable[[], Iterator[Row]], ...] = (
        _python,
        _packages,
        _device,
        lambda: _what_fits(planned),
        _memory,
        lambda: _disk(environment),
        lambda: _hub(environment),
        _sockets,
        _guard,
        lambda: _variables(environment),
    )
    rows: list[Row] = []
    for look in looks:
        try:
            rows.extend(look())
        except Exception as error:  # a broken installation must not silence the others' answers
            name = getattr(look, "__name__", "").strip("_<>") or "a check"
            rows.append(Row(name, "problem", f"{type(error).__name__}: {error}"))
    return rows


def table_of(rows: list[Row]) -> Table:
    """For a terminal."""
    table = Table("", "", Column(overflow="fold"), "what to do", show_edge=False)
    colors = {"ok": "green", "note": "yellow", "problem": "red"}
    for row in rows:
        table.add_row(Text(row.state, style=colors[row.state]), row.what, row.found, row.advice)
    return table


def to_json(rows: list[Row]) -> list[dict[str, str]]:
    """Plain JSON values."""
    return [asdict(row) for row in rows]


def _python() -> Iterator[Row]:
    python_and_system = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Row("theworld", "ok", f"{version('theworld')}, in {Path(__file__).parents[3]}")
    yield Row("Python", "ok", f"{python_and_system}, in {sys.prefix}")


def _packages() -> Iterator[Row]:
    extras: dict[str, list[str]] = {}
    needed: list[Requirement] = []
    for line in requires("theworld") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.append(requirement)
        else:
            extra = str(requirement.marker).partition("extra == ")[2].strip("\"' ")
            extras.setdefault(extra, []).append(requirement.name)
    wrong = [problem for requirement in needed if (problem := _wrong(requirement))]
    install = "install them: pip install -e . in the checkout, or make test"
    if wrong:
        yield Row("packages", "problem", "; ".join(wrong), install)
    else:
        named = ("torch", "diffusers", "transformers", "peft", "ray")
        yield Row("packages", "ok", f"{len(needed)} as required: " + ", ".join(f"{n} {version(n)}" for n in named))
    complete_extras = [
        name for name, parts in extras.items() if name not in ("test", "dev") and not any(map(_missing, parts))
    ]
    absent = [name for name in extras if name not in (*complete_extras, "test", "dev")]
    installed = f"{', '.join(sorted(complete_extras)) or 'none'}; not installed: {', '.join(sorted(absent)) or 'none'}"
    yield Row("extras", "ok", installed, f"{install_extra('NAME')}, where one is asked for" if absent else "")


def _wrong(requirement: Requirement) -> str:
    if _missing(requirement.name):
        return f"{requirement.name} is missing"
    installed = version(requirement.name)
    if requirement.specifier.contains(installed, prereleases=True):
        return ""
    return f"{requirement.name} is {installed}, needs {requirement.specifier}"


def _missing(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return True
    return False


def _device() -> Iterator[Row]:
    import torch

    speeds = matmul_speeds("cpu")
    cores = f"{usable_cores()} cores, torch uses {torch.get_num_threads()} of them"
    emulates = emulates_bfloat16(speeds)
    advice = "--compute-dtype float32 is faster here, and makes other latents" if emulates else ""
    gpu_text = f"{cores}, {torch.backends.cpu.get_cpu_capability()}, {_speeds_text(speeds)}" + ", emulated" * emulates
    yield Row("CPU", "ok", gpu_text, advice)
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees none"
        advice = "the worldlet needs none; for Cosmos install a CUDA build of torch on a machine with a GPU"
        yield Row("GPU", "note", f"none: {built}", advice)
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        speeds = _speeds_text(matmul_speeds(f"cuda:{number}"))
        gpu_text = f"{name}, {format_bytes(free)} of {format_bytes(total)} free, {bf16}, {speeds}"
        yield Row(f"GPU {number}", "ok", gpu_text)


def _what_fits(planned: Accelerator | None) -> Iterator[Row]:
    import torch

    from .memory import what_fits

    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield Row(f"fits GPU {number}", "ok", what_fits(total_memory(f"cuda:{number}") or 0.0))
    if planned is not None:
        yield Row(f"fits {planned.name}", "ok", what_fits(memory_of_size(planned.memory_gb * 1e9)))


def _speeds_text(speeds: Mapping[str, float]) -> str:
    if not speeds:
        return "its speed could not be measured"
    return "multiplies matrices with " + ", ".join(f"{speed_text(speeds[name])} in {name}" for name in reversed(DTYPES))


def _memory() -> Iterator[Row]:
    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    total = min(memory.total, limit or memory.total)
    room = f"{format_bytes(memory.available)} of {format_bytes(total)} free"
    room += " (a container's limit)" if limit else ""
    little = memory.available < _LITTLE_MEMORY
    yield Row("memory", "note" if little else "ok", room, "use fewer --workers" if little else "")
    if sys.platform != "win32":
        import resource

        files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST_RAISED if most == resource.RLIM_INFINITY else min(most, MOST_RAISED)
        few = max(files, most) < _FEW_FILES
        raised = f", raised to {most} when a store needs more" if files < most else ""
        yield Row("open files", "note" if few else "ok", f"at most {files}{raised}", "ulimit -n 4096" if few else "")


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _disk(environment: Mapping[str, str]) -> Iterator[Row]:
    caches = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    weights = Path(environment.get("HF_HOME") or caches / "huggingface")
    temporary = Path(tempfile.gettempdir())
    for what, folder in (("here", Path.cwd()), ("weights from the Hub", weights), ("temporary files", temporary)):
        existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        state: State = "ok" if writable and free > _LITTLE_DISK else "note"
        room = f"{format_bytes(free)} free for {folder}" if writable else f"{folder} cannot be written"
        yield Row(f"disk, {what}", state, room, "" if state == "ok" else "name another folder, or make room")


def _hub(environment: Mapping[str, str]) -> Iterator[Row]:
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Row("Hub", "ok", "not asked: HF_HUB_OFFLINE is set")
        return
    endpoint = environment.get("HF_ENDPOINT", "https://huggingface.co")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        yield Row(
            "Hub",
            "problem",
            f"HF_ENDPOINT is {hide_passwords(endpoint)!r}",
            "give an address that begins with https://",
        )
        return
    started = time.monotonic()
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_HUB_S).close()
    except HTTPError:
        pass  # an answer all the same
    except (URLError, OSError, ValueError) as error:
        answer = hide_passwords(f"{endpoint} does not answer: {getattr(error, 'reason', error)}")
        yield Row("Hub", "note", answer, "weights have to be on disk: --world FOLDER, --lm FOLDER")
        return
    yield Row("Hub", "ok", f"{hide_passwords(endpoint)} answers in {time.monotonic() - started:.1f} s")


def _sockets() -> Iterator[Row]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(Path(folder) / "s"))
    except OSError as error:
        yield Row("sockets", "problem", f"Ray needs them on loopback and as files: {error}", "use --in-process")
        return
    long = len(os.fsencode(tempfile.gettempdir())) > _LONG_TEMP
    sockets = f"loopback and {tempfile.gettempdir()}" + (", which is long for Ray: it uses /tmp" if long else "")
    yield Row("sockets", "ok", sockets)


def _guard() -> Iterator[Row]:
    if hasattr(os, "memfd_create"):
        yield Row("image guard", "ok", "images and videos are decoded in a process of their own, with limits")
    else:
        yield Row("image guard", "note", "needs Linux: here inputs are decoded unguarded", "take inputs you trust")


def _variables(environment: Mapping[str, str]) -> Iterator[Row]:
    for name, meaning in _HEARD.items():
        if name in environment:
            yield Row(name, "ok", f"{hide_passwords(environment[name])} ({meaning})")
    if environment.get("HF_TOKEN"):
        yield Row("HF_TOKEN", "ok", "set")  # its value is nobody's business

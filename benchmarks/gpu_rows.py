"""The rows of `python -m benchmarks.gpu`: what was measured, what failed, and what was left out, as tables."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from theworld.pipeline import Interrupted
from theworld.pipeline.device_memory import GIB
from theworld.pipeline.machine import cpu_model, is_out_of_memory
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.source import WorldSource, resolve_world

Row = dict[str, object]
COMPUTE_DTYPE = "bfloat16"


@dataclass(kw_only=True)
class Session:
    """One run of the benchmark: its settings, its rows, and what one part leaves for the next.

    Attributes:
        budget_s: of wall time, for all parts.
        end_s: when the part that runs should have ended; what would go beyond is left out and named.
        rows: by part, in the order in which they were measured.
        done: parts that ended, with or without failed rows.
        speeds: operations a second in products of matrices, by dtype.
        store, questions, run: of the parts job and train.
    """

    device: torch.device
    is_toy: bool
    budget_s: float
    out: Path
    scratch: Path
    asked: frozenset[str] = frozenset()
    rows: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    done: set[str] = field(default_factory=set[str])
    speeds: dict[str, float] = field(default_factory=dict[str, float])
    store: Path | None = None
    questions: Path | None = None
    run: Path | None = None
    end_s: float = 0.0
    _world: CosmosWorld | None = None
    _source: WorldSource | None = None
    _began: float = field(default_factory=time.monotonic)

    # --- rows

    def row(self, part: str, **values: object) -> None:
        """Print a row and keep it, in the files as well: a run that is killed loses nothing. None is left out."""
        values = {name: value for name, value in values.items() if value is not None}
        self.rows.setdefault(part, []).append(values)
        words = "  ".join(f"{name}={_text(value)}" for name, value in values.items())
        print(f"[{self.elapsed_s:6.1f} s] {part:9} {words}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        content = {"head": self.head(), "rows": self.rows}
        (self.out / "gpu.json").write_text(json.dumps(content, indent=1, default=str))
        self.page.write_text(self.markdown())

    @contextmanager
    def tried(self, part: str, **what: object) -> Generator[None]:
        """What fails within this is a row, and the run goes on."""
        self.free_memory()
        try:
            yield
        except Interrupted:  # somebody pressed Ctrl-C
            raise
        except Exception as error:
            message = str(error).strip().partition("\n")[0][:200]
            self.row(part, **what, failed=f"{type(error).__name__}: {message}")
            if not is_out_of_memory(error):
                traceback.print_exc()

    def affords(self, part: str, seconds: float, **what: object) -> bool:
        """Whether the part has so many seconds left; a row says what is left out where it has not."""
        left_s = self.end_s - self.elapsed_s
        if left_s >= seconds:
            return True
        self.row(part, **what, left_out=f"takes about {seconds:.0f} s, {max(0, left_s):.0f} s are left for this part")
        return False

    @property
    def page(self) -> Path:
        """The tables of all rows."""
        return self.out / "gpu.md"

    @property
    def failures(self) -> int:
        """Rows of what failed."""
        return sum("failed" in row for rows in self.rows.values() for row in rows)

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    # --- time and memory

    def synchronize(self) -> None:
        """Wait until the device has done what it was told to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Wall time of doing it once."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def median_of(self, work: Callable[[], object], *, repeat: int = 3, warm: int = 1) -> float:
        """Median wall time, after `warm` rounds that are not counted."""
        for _ in range(warm):
            work()
        return statistics.median(self.seconds_of(work) for _ in range(repeat))

    def free_memory(self) -> None:
        """Give back what is not used any more; the peak is counted from here on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """The most memory that tensors took on the GPU since `free_memory`; None on a CPU, which does not count it."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else None

    # --- models

    @property
    def world_folder(self) -> Path:
        """Of the part build."""
        return self.scratch / "Cosmos-Predict2-2B-Video2World"

    @property
    def lm_folder(self) -> Path:
        """Of the part build."""
        return self.scratch / "gemma-2-2b-it"

    def source(self) -> WorldSource:
        """The world model as commands find it; of the part build."""
        if self._source is None:
            self._source = resolve_world(str(self.world_folder))
        return self._source

    def world(self) -> CosmosWorld:
        """The world model, loaded once for several parts."""
        if self._world is None:
            self._world = CosmosWorld.load(self.world_folder, device=str(self.device), compute_dtype=COMPUTE_DTYPE)
        return self._world

    def drop_world(self) -> None:
        """Free its memory for others."""
        self._world = None
        self.free_memory()

    # --- the result

    def head(self) -> str:
        """The conditions of the figures, in a line."""
        is_gpu = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if is_gpu else cpu_model()
        words = [f"commit {_commit()}", device, f"torch {torch.__version__}", f"Python {platform.python_version()}"]
        if not is_gpu:
            words.append(f"load {os.getloadavg()[0]:.1f}")
        line = f"`python -m benchmarks.gpu {' '.join(sys.argv[1:])}`: {', '.join(words)}; {self.elapsed_s:.0f} s."
        return f"{line} **Toy sizes: this shows that the benchmark works, and measures nothing.**" * self.is_toy or line

    def markdown(self) -> str:
        """All rows as tables for benchmarks/README.md, a table a part."""
        tables = [f"### {part}\n\n{table(rows)}" for part, rows in self.rows.items()]
        return "\n\n".join(["## On a GPU", self.head(), *tables]) + "\n"


def table(rows: list[Row]) -> str:
    """A table of markdown, with a column for each name that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    heads = [name.replace("_per_s", "/s").replace("_", " ").replace(" gib", ", GiB") for name in names]
    lines = [heads, ["---" for _ in names], *([_text(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)


def difference(ours: Tensor, theirs: Tensor) -> Row:
    """How far two results are apart, beside the spread of the second."""
    ours, theirs = ours.float(), theirs.float()
    apart = (ours - theirs).abs()
    return {
        "largest_difference": apart.max().item(),
        "rms": apart.square().mean().sqrt().item(),
        "spread": theirs.std().item(),
    }


def beside_estimate(expected_bytes: int | None, peak_gib: float | None) -> Row:
    """The product's estimate of memory beside what was measured; None is not known."""
    if expected_bytes is None:
        return {"peak_gib": peak_gib}
    expected_gib = expected_bytes / GIB
    row: Row = {"expected_gib": expected_gib, "peak_gib": peak_gib}
    return row if peak_gib is None else row | {"peak_of_expected": peak_gib / expected_gib}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cache
def _commit() -> str:
    """Of the checkout that runs, and whether something in it was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.strip() + " with changes" * bool(changes.stdout.strip())

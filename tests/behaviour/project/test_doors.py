"""Heavy libraries come in by few doors, so that a new release of one is met in few files.

Which room may import which, import-linter looks after (`make check`).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "precompute", "train")
WORLDLET = "precompute/worldlet/"
"""Making its scenes and weights is a workshop of its own."""

DOORS = {
    "accelerate": ["train/training/accelerate_setup.py"],
    "av": ["pipeline/files/images/jpeg_scan.py", "precompute/media/video"],
    "datasets": ["pipeline/files/tables/arrow.py"],
    "diffusers": ["precompute/worlds/"],
    "google_crc32c": ["pipeline/store/formats/"],
    "huggingface_hub": ["pipeline/files/hub/transfers.py", "pipeline/files/hub/dataset.py"],
    "matplotlib": ["train/pages/", "train/study/plots.py"],
    "peft": ["train/language/", "train/runs/"],
    "pyarrow": ["pipeline/files/tables/arrow.py"],
    "pymunk": [],
    "ray": ["precompute/job/workers/ray_"],
    "typer": ["pipeline/cli/"],
    "dask": ["pipeline/store/reading/views.py"],
    "webdataset": ["pipeline/store/reading/views.py"],  # it reads our tars, and runs what it finds in others
    "xarray": ["pipeline/store/reading/views.py"],
    "zarr": [
        "pipeline/store/formats/zarr_bfloat16.py",
        "pipeline/store/reading/views.py",
        "pipeline/store/zarr_metadata.py",
    ],
}
"""Library -> how the paths of the files begin that may import it."""


@cache
def importers() -> dict[str, set[str]]:
    """Library -> the files that import it, be it inside a function."""
    found: dict[str, set[str]] = {}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_is_imported_at_its_doors_alone(library: str) -> None:
    files = {file for file in importers().get(library, set()) if not file.startswith(WORLDLET)}
    doors = DOORS[library]
    assert [file for file in sorted(files) if not file.startswith(tuple(doors))] == []
    assert [door for door in doors if not any(file.startswith(door) for file in files)] == [], "a door nobody uses"

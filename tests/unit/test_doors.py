"""Heavy libraries come in by few doors, so that a new release of one is met in few files.

Which room may import which, import-linter looks after (`make check`).
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "precompute", "train")
WORLDLET = "precompute/worldlet/"
"""Making its scenes and weights is a workshop of its own."""

DOORS = {
    "av": ["precompute/video.py"],
    "datasets": ["pipeline/arrow_files.py"],
    "diffusers": ["precompute/cosmos.py", "precompute/wan.py", "precompute/wan_vae.py"],
    "google_crc32c": ["pipeline/shard_layout.py"],
    "huggingface_hub": ["pipeline/weights.py"],
    "pyarrow": ["pipeline/arrow_files.py"],
    "pymunk": [],
    "ray": ["precompute/cluster.py", "precompute/ray_session.py"],
    "webdataset": [],  # it reads our tars, and runs what it finds in others
    "zarr": ["pipeline/zarr_bfloat16.py", "pipeline/zarr_hook.py"],  # which only zarr imports
}


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
    here = {file for file in importers().get(library, set()) if not file.startswith(WORLDLET)}
    assert here == set(DOORS[library])

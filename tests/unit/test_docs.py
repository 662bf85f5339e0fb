"""The Python in the docs runs, on stores of the shapes it speaks of.

That of worlds.md is a package: tests/integration/test_worlds.py installs it and takes it through the whole house.
"""

import os
import re
from pathlib import Path

import pytest

from theworld.precompute.builtin import BUILT_IN

from .. import interop
from ..tiny_store import fill

DOCS = Path(__file__).parents[2] / "docs"


def test_the_python_of_the_store_s_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", os.environ.get("WDS_SECURE", "0"))
    store, tars = (interop.store_of(tmp_path / format, "float16", format) for format in ("zarr", "webdataset"))
    for each in (store, tars):
        fill(each, 4)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "store.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {"STORE": str(store.path), "TARS": tars.payload_path(0)}
    for block in blocks:
        exec(block, names)
    assert names["first"].shape == interop.SHAPE  # type: ignore[attr-defined]
    assert names["about"]["recipe_id"] == tars.recipe.id  # type: ignore[index]
    assert names["batch"].shape == (4, *interop.SHAPE)  # type: ignore[attr-defined]
    assert (names["latents"] == store.read(store.keys, rollout_steps=2)).all()


def test_the_page_of_worlds_names_every_family_that_is_built_in() -> None:
    page = (DOCS / "worlds.md").read_text()
    for name in BUILT_IN:
        assert f"| `{name}` |" in page
    assert all(known in page for family in BUILT_IN.values() for known in ["theworld.worlds", family.title])

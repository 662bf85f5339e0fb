"""Packages that bring world models, laid out as pip would install them: a module and a dist-info folder on the path."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PAGE = Path(__file__).parents[1] / "docs" / "worlds.md"


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, package: str, code: str, name: str, module: str | None = None
) -> None:
    """Put a package of one module on the path, whose FAMILY goes by `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    module = module or package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[theworld.worlds]\n{name} = {module}:FAMILY\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


def drift_code() -> str:
    """The world of docs/worlds.md, as it stands there."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return code


def save_drift(folder: Path) -> Path:
    """Weights for it."""
    (folder / "cells").mkdir(parents=True)
    (folder / "cells" / "config.json").write_text('{"_class_name": "DriftingCells"}')
    colors = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5], [0.2, 0.2, 0.2]])
    save_file({"colors": colors}, folder / "cells" / "model.safetensors")
    return folder

"""What theworld offers to programs: the names, their signatures, and that nothing else is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import theworld
from tests.public_names import FACES, lines

ROOT = Path(__file__).parents[3]


def test_no_public_name_or_signature_changes_unnoticed() -> None:
    """A difference breaks somebody's program: say it in CHANGELOG.md, then run tests/public_names.py again."""
    assert "\n".join(lines()) == (ROOT / "tests" / "golden" / "public_names.txt").read_text()


@pytest.mark.parametrize("face", FACES)
def test_a_package_offers_its_names_and_loads_nothing_heavy_for_it(face: str) -> None:
    script = (
        f"import sys, {face} as face; names = dir(face)\n"
        "assert not {'torch', 'numpy', 'ray', 'transformers', 'diffusers'} & set(sys.modules), 'heavy'\n"
        "assert len(names) > 4 and sorted(names) == sorted(face.__all__)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    module = import_module(face)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert re.search(rf'^version = "{re.escape(theworld.__version__)}"$', (ROOT / "pyproject.toml").read_text(), re.M)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rollout'"):
        _ = theworld.rollout


def test_the_package_train_can_be_called() -> None:
    """`theworld.train` is a package and, called, trains: one name for both."""
    with pytest.raises(TypeError, match="config"):
        theworld.train()
    assert theworld.train.train is not theworld.train


def test_python_m_theworld_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "theworld", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"theworld {theworld.__version__}\n"


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of what a Python file, or the Python blocks of a page, import of theworld."""
    text = path.read_text()
    blocks = [text] if path.suffix == ".py" else re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    pairs = [
        (node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    ]
    pairs += [(alias.name, "") for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [pair for pair in pairs if pair[0].split(".")[0] == "theworld"]


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_imports_nothing_past_the_public_packages(page: Path) -> None:
    assert [name for name, _ in imports(page) if name not in FACES] == []


def test_benchmarks_import_a_public_name_from_its_public_package() -> None:
    """Parts that they measure by themselves, such as a worker pool, have no public name."""
    public = {name for face in FACES[1:] for name in import_module(face).__all__}
    past = [
        (path.name, module, name)
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        for module, name in imports(path)
        if name in public and module not in FACES
    ]
    assert past == []

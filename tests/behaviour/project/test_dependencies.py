"""What is declared keeps known holes out, and what was tested is what is declared.

That imports and declarations agree, deptry looks after (`make check`); new advisories, `make audit`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name
from packaging.version import Version

from theworld.pipeline.messages import install_extra

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED_EXTRAS = ("datasets", "docs", "test", "dev")

FLOORS = {
    "datasets": ("5.2.0", "CVE-2026-57845: load_dataset('pandas') unpickled"),
    "diffusers": ("0.42.1", "GHSA-4prv-5hj7-c2xr, CVE-2026-44513"),
    "pillow": ("13.0.0", "GHSA-8g5g-8vmr-9782, GHSA-5x8w-8jj5-q52h: overflows in the JPEG decoder"),
    "ray": ("2.60", "CVE-2026-57516, CVE-2026-41486, CVE-2026-27482; the release whose open ports were looked at"),
    "safetensors": ("0.8", "writes beside and renames: a file cut while it is saved is not torn"),
    "torch": ("2.11", "CVE-2026-4538, CVE-2025-32434"),
    "transformers": ("5.10", "CVE-2026-9856, CVE-2026-5241, CVE-2026-4372, CVE-2026-1839"),
}
"""The first release without an advisory that touches us, and which."""


def declared(*extras: str) -> Iterator[Requirement]:
    tables = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in tables[extra])]
    yield from (requirement for line in lines if (requirement := Requirement(line)).name != "theworld")


def floor(requirement: Requirement) -> Version:
    [least] = [part for part in requirement.specifier if part.operator == ">="]
    return Version(least.version)


def pinned() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


@pytest.mark.parametrize("name", FLOORS)
def test_no_release_with_a_known_hole_can_be_installed(name: str) -> None:
    least, why = FLOORS[name]
    floors = [floor(each) for each in declared(*PROJECT["optional-dependencies"]) if each.name == name]
    assert floors
    assert min(floors) >= Version(least), why


def test_every_dependency_has_a_floor_and_a_tested_version_above_it() -> None:
    pins = pinned()
    for requirement in declared(*TESTED_EXTRAS):
        assert floor(requirement) <= pins[canonicalize_name(requirement.name)], requirement
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def texts() -> dict[str, str]:
    """All that a user may read: pages, configs and modules."""
    modules = [path for room in ("pipeline", "precompute", "train") for path in (ROOT / room).rglob("*.py")]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").iterdir()]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in (*modules, *pages)}


def test_an_extra_that_is_named_exists() -> None:
    """Modules name it by `install_extra`, pages as `pip install -e '.[NAME]'`."""
    pattern = re.compile(r"""install_extra\(["'](\w+)["']\)|'\.\[([\w,]+)\]'""")
    found = [one or several for text in texts().values() for one, several in pattern.findall(text)]
    named = {name for several in found for name in several.split(",")} - {"NAME"}  # a placeholder
    assert {"datasets", "gguf", "guardrail", "tracking"} <= named <= set(PROJECT["optional-dependencies"])
    assert "pip install -e '.[gguf]'" in install_extra("gguf")


def test_nobody_is_told_to_install_theworld_from_a_package_index() -> None:
    """None has it: an extra is installed from the source."""
    wrong = re.compile(r"""pip install (?:-\S+ )*["']?theworld""")
    assert not [name for name, text in texts().items() if wrong.search(text)]
    for example in ("pip install theworld", "pip install 'theworld[gguf]'", "pip install -U theworld"):
        assert wrong.search(example)


def test_the_torch_that_make_installs_is_the_tested_one() -> None:
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("TORCH :=")]
    assert Specifier(line.split()[2].removeprefix("torch")).version == str(pinned()["torch"])


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors"}, "the format requires them"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert all(author["name"] for author in citation["authors"])


def test_what_is_built_is_built_by_the_setuptools_that_developers_have() -> None:
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert set(system["requires"]) <= set(PROJECT["optional-dependencies"]["dev"]), "tests build without isolation"

"""What is built is what is in the repository, and works far from it, beside a user's own files.

CI does not fetch torch twice: a fresh environment holds theworld alone and sees the other packages of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.patience import patience

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "precompute", "train")
LICENCE = ("LICENSE", "NOTICE")
BESIDE = (
    *LICENCE,
    *("README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "Makefile", "constraints.txt"),
    *("pyproject.toml", "MANIFEST.in", "mkdocs.yml"),
)
GENERATED = {"PKG-INFO", "setup.cfg"}
PIP = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
ALONE = ("--no-deps", "--no-build-isolation", "--no-index")

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    source: Path
    wheel: Path
    sdist: Path


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=patience(300), check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Of a copy of what git would commit: building in place would leave build/ behind."""
    here = tmp_path_factory.mktemp("built")
    source = here / "source"
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(*PIP, "wheel", *ALONE, "-w", here, ".", cwd=source)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(here)!r})"
    run(sys.executable, "-c", build, cwd=source)
    [wheel], [sdist] = here.glob("*.whl"), here.glob("*.tar.gz")
    return Built(source, wheel, sdist)


def in_rooms(source: Path) -> set[str]:
    kinds = {".py", ".pyi", ".json", ".safetensors", ".md", ".typed"}
    found = (path for room in ROOMS for path in (source / room).rglob("*") if path.suffix in kinds)
    return {path.relative_to(source).as_posix() for path in found}


def packaged(source: Path) -> set[str]:
    """The same as they are installed; `pipeline/theworld` holds the files of the package `theworld` itself."""
    return {f"theworld/{name.removeprefix('pipeline/theworld/')}" for name in in_rooms(source)}


def test_the_wheel_holds_the_three_rooms_their_weights_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == packaged(built.source)
    typed = {"theworld/py.typed", *(f"theworld/{room}/py.typed" for room in ROOMS)}
    assert typed <= names, "a type checker reads our annotations"


def test_the_wheel_carries_its_licence_and_names_it(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        [info] = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        kept = {name: archive.read(f"{info}/licenses/{name}") for name in LICENCE}
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert kept == {name: (ROOT / name).read_bytes() for name in LICENCE}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == list(LICENCE)


def test_the_source_distribution_holds_the_rooms_what_explains_them_and_no_tests(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {name for name in names if not name.startswith("theworld.egg-info/")} - GENERATED
    folders = (path for folder in ("configs", "docs") for path in (built.source / folder).rglob("*"))
    beside = {path.relative_to(built.source).as_posix() for path in folders if path.is_file()}
    assert names == in_rooms(built.source) | beside | set(BESIDE)


def install(distribution: Path, folder: Path) -> dict[str, bytes]:
    """A fresh environment with it; returns its files by name."""
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    below = sysconfig.get_path("purelib")  # on the path alone: its .pth files, and so this checkout, are not taken up
    (site / "below.pth").write_text(f"{below}\n")
    python = str(folder / "bin" / "python")
    run(*PIP, "--python", python, "install", *ALONE, "--ignore-installed", "--no-compile", distribution, cwd=folder)
    files = (path for path in (site / "theworld").rglob("*") if path.is_file())
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in files}


def test_installed_from_either_the_commands_work_far_from_the_checkout(built: Built, tmp_path: Path) -> None:
    from_wheel = install(built.wheel, tmp_path / "wheel")
    assert install(built.sdist, tmp_path / "sdist") == from_wheel
    assert from_wheel.keys() == packaged(built.source)

    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text("raise SystemExit('shadowed')")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env = kept | {"HOME": str(work), "HF_HUB_OFFLINE": "1"}

    def theworld(kind: str, *arguments: str) -> str:
        return run(tmp_path / kind / "bin" / "theworld", *arguments, cwd=work, env=env)

    for kind in ("wheel", "sdist"):
        assert theworld(kind, "--version").split()[:2] == ["theworld", built.wheel.name.split("-")[1]]
    looked = {row["what"]: row for row in json.loads(theworld("sdist", "doctor", "--json"))}
    assert str(tmp_path / "sdist") in looked["theworld"]["found"]
    assert looked["packages"]["state"] == "ok", looked["packages"]
    made = json.loads(theworld("sdist", "precompute", "--steps", "1", "--scenes", "3", "--in-process", "--json"))
    assert (made["written"], made["failed"]) == (3, 0)
    assert (work / made["store"] / "theworld.json").is_file()
    code = "import theworld.train.reader.tokens; from theworld.precompute.worlds.source import resolve_world as world"
    code += "; print(world(None).name)"
    said = run(tmp_path / "wheel" / "bin" / "python", "-c", code, cwd=work, env=env)
    assert said.strip() == "worldlet", "nothing of ours shadows a user's train.py, nor is shadowed by it"

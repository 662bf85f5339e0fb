"""Which Python `make` takes, and what it says where there is none: with stand-ins for Pythons, alone on the PATH."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[3] / "Makefile"
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def stand_in(folder: Path, name: str, version: str | None) -> None:
    """A Python that says its version and, asked for an environment, its name; with None, one that fails when called."""
    major_minor = tuple(map(int, version.split(".")[:2])) if version else ()
    too_old = int(major_minor < (3, 11))
    runs = f"""[ "$1" = -m ] && echo "{name} makes $3" && exit 0
[ -z "$2" ] && exit 0
echo {version}
exit {too_old}
"""
    (folder / name).write_text(f"#!/bin/sh\n{runs if version else 'exit 127'}\n")
    (folder / name).chmod(0o755)


def make(tmp_path: Path, pythons: dict[str, str | None], *words: str) -> tuple[int, str, str]:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, version in pythons.items():
        stand_in(binaries, name, version)
    command = [str(MAKE), "-f", str(MAKEFILE), ".venv/bin/python", *words]
    env = {"PATH": str(binaries)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3.11": "3.11.7", "python3.12": "3.12.1", "python3.13": "3.13.0"}, "python3.13"),
        ({"python3.11": "3.11.7", "python3.12": "3.12.1", "python3.13": None}, "python3.12"),
        ({"python3.11": "3.11.7", "python3.12": None}, "python3.11"),
    ],
)
def test_the_newest_python_that_runs_is_taken(tmp_path: Path, pythons: dict[str, str | None], chosen: str) -> None:
    code, output, _ = make(tmp_path, pythons)
    assert code == 0
    assert f"{chosen} makes .venv" in output


def test_a_python_that_is_named_is_taken(tmp_path: Path) -> None:
    code, output, _ = make(tmp_path, {"python3.13": "3.13.0", "mine": "3.14.1"}, "PYTHON=mine")
    assert code == 0
    assert "mine makes .venv" in output


@pytest.mark.parametrize(
    ("pythons", "words", "error"),
    [
        ({"python3.12": None}, [], "none of python3.13 python3.12 python3.11 runs here"),
        ({"python3.12": "3.12.1"}, ["PYTHON=python3.14"], "PYTHON=python3.14 does not run"),
        ({"python3.12": "3.12.1", "old": "3.10.13"}, ["PYTHON=old"], "PYTHON=old is Python 3.10.13; theworld needs"),
        ({"old": "2.7.18"}, ["PYTHON=old"], "PYTHON=old is Python 2.7.18"),
    ],
)
def test_without_a_python_that_will_do_it_says_what_to_install(
    tmp_path: Path, pythons: dict[str, str | None], words: list[str], error: str
) -> None:
    code, output, failed = make(tmp_path, pythons, *words)
    assert code != 0
    assert error in failed
    assert "Install one of python3.13 python3.12 python3.11" in failed
    assert "make PYTHON=/path/to/python3.12" in failed
    assert "makes" not in output

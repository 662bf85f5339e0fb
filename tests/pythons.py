"""What can be known of other Pythons without the big libraries: `make pythons`, which CI runs after the suite.

For each that runs here and is another than this one: the pinned versions resolve, every file compiles without a
warning, and the commands that need no torch run with the small dependencies installed. Standard library alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIG = {"accelerate", "diffusers", "peft", "ray", "torch", "transformers"}
FOLDERS = ("pipeline", "precompute", "train", "tests", "benchmarks")
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "precompute --help": 0,
    "train --help": 0,
    "evaluate --help": 0,
    "ask --help": 0,
    "cache --help": 0,
    "worlds": 0,
    "tokens": 0,
    "scenes scenes --train 2 --test 2": 0,
    "doctor": 2,  # the big libraries are missing, and it says so
}
"""What is typed after `theworld` -> its exit code."""
LIMIT_S = 600


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> None:
    """Ends the whole check with what the command printed where it exits otherwise."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [*map(str, command)]
    try:
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        sys.exit(f"error: {' '.join(words)} took more than {LIMIT_S} s")
    if done.returncode != code:
        sys.exit(f"{done.stdout}{done.stderr}error: {' '.join(words)} exited with {done.returncode}, not {code}")


def small_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [line for line in project["dependencies"] if re.split(r"[^\w.-]", line)[0] not in BIG]


def version_of(python: str) -> str:
    """Such as 3.12; empty where it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check(python: str, folder: Path) -> None:
    run(python, "-m", "venv", folder / "venv")
    binaries = folder / "venv" / "bin"
    pip = (binaries / "python", "-m", "pip", "-q", "--disable-pip-version-check", "install")
    run(*pip, "--dry-run", "-c", "constraints.txt", ".[dev]")
    prefix = f"pycache_prefix={folder / 'compiled'}"
    run(binaries / "python", "-W", "error", "-X", prefix, "-m", "compileall", "-q", *FOLDERS)
    run(*pip, "-c", "constraints.txt", *small_dependencies())
    run(*pip, "--no-deps", "-e", ".")
    for words, code in COMMANDS.items():
        run(binaries / "theworld", *words.split(), cwd=folder, code=code)


def main(pythons: list[str]) -> None:
    for python in pythons:
        version, start = version_of(python), time.monotonic()
        if not version:
            print(f"{python}: does not run here, skipped")
        elif version == "{}.{}".format(*sys.version_info):
            print(f"{python}: the suite runs on it, skipped")
        else:
            with tempfile.TemporaryDirectory() as folder:
                check(python, Path(folder))
            print(f"{python}: pins, syntax and {len(COMMANDS)} commands are fine, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])

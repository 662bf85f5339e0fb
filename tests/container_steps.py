"""The steps of the container recipes, run without a container builder: `make containers`. Linux, root, debootstrap.

The base image is Debian's minimal system with the Python that runs this script under /usr/local, as `python:3.12-slim`
has it. Each recipe gets a copy of it: its files are laid, its steps run there in a namespace of their own with nothing
of this machine's environment, then the command runs as the recipe's user. Slow: each installs torch with CUDA.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "containers"
RECIPES = ("Dockerfile", "theworld.def")
LIBRARIES = (
    "ca-certificates",
    "libbz2-1.0",
    "libffi8",
    "liblzma5",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "zlib1g",
)
"""What the standard library's compiled modules need."""
FROM_HOST = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
"""How this machine reaches a package index; a builder has as much."""
KNOWN = {"FROM", "COMMENT", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
"""Instructions of a Dockerfile that are understood here."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TRIES = (
    "theworld --version",
    "theworld precompute --steps 1 --scenes 3 --in-process --json",
    "theworld doctor || test $? = 1",
)
"""What the finished image is asked to do, as its user in an empty folder. `doctor` ends with 1 where a disk is full."""


def make_base(place: Path) -> Path:
    """Debian's minimal system, with this Python in /usr/local."""
    base = place / "base"
    if (base / "usr/local/bin/python").exists():
        return base
    shutil.rmtree(base, ignore_errors=True)
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]  # the libraries that this Python was linked with
    call("debootstrap", "--variant=minbase", f"--include={','.join(LIBRARIES)}", suite, str(base))
    local = base / "usr" / "local"
    without = shutil.ignore_patterns("site-packages", "test", "__pycache__", "idlelib")
    shutil.copytree(sys.base_prefix, local, symlinks=True, ignore=without, dirs_exist_ok=True)
    for name in FROM_HOST:
        if (Path("/") / name).exists():
            shutil.copy(Path("/") / name, base / name)
    (local / "bin" / "python").unlink(missing_ok=True)
    (local / "bin" / "python").symlink_to(f"python{sysconfig.get_python_version()}")
    (local / f"lib/python{sysconfig.get_python_version()}/site-packages").mkdir(exist_ok=True)
    run_inside(base, "ldconfig && python -m ensurepip --default-pip", {})
    return base


def call(*words: str) -> None:
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}error: {words[0]} failed")


def run_inside(root: Path, step: str, env: dict[str, str], *, folder: str = "/", user: str = "0:0") -> None:
    """A step in `root`, by its shell, with these variables alone.

    Raises:
        SystemExit: it failed.
    """
    mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/dev/shm"'
    inner = f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)} && {step}"
    words = ["chroot", f"--userspec={user}", str(root), "/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root"]
    words += [f"{name}={value}" for name, value in env.items()]
    command = f"{mounts} && exec {shlex.join([*words, '/bin/sh', '-c', inner])}"
    began = time.perf_counter()
    print(f"  {step.splitlines()[0][:100]}", flush=True)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", command, str(root)], check=False
    )
    if done.returncode:
        sys.exit(f"error: exit code {done.returncode} of this step in {root}: {step}")
    print(f"  done in {time.perf_counter() - began:.0f} s", flush=True)


def lay(source: str, target: Path) -> None:
    here, ignore = ROOT / source, shutil.ignore_patterns("__pycache__")
    if target.is_dir() and here.is_file():
        target /= here.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(here, target, ignore=ignore, dirs_exist_ok=True) if here.is_dir() else shutil.copy(here, target)


def try_dockerfile(root: Path) -> None:
    """Its instructions in their order."""
    parser = DockerfileParser(path=str(ROOT / "containers"))
    env: dict[str, str] = {}
    folder, user = "/", "0:0"
    for line in parser.structure:
        name, value = line["instruction"], line["value"]
        if name in ("ARG", "ENV"):
            env |= dict(word.split("=", 1) for word in shlex.split(value))
        elif name == "WORKDIR":
            folder = value
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, to = shlex.split(value)
            for source in sources:
                lay(source, root / os.path.normpath(f"{folder}/{to}").lstrip("/"))
        elif name == "RUN":
            run_inside(root, value, env, folder=folder, user=user)
        elif name == "USER":
            user = value
        elif name not in KNOWN:
            sys.exit(f"error: this script does not know {name}, which containers/Dockerfile uses")
    entry = next(json.loads(line["value"]) for line in parser.structure if line["instruction"] == "ENTRYPOINT")
    if entry != ["theworld"]:
        sys.exit(f"error: the Dockerfile starts {entry}, and the trial below starts `theworld`")
    use(root, env, user)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(name, lines) of each section of an Apptainer recipe."""
    for found in re.finditer(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def try_apptainer(root: Path) -> None:
    """Its sections as `apptainer build` takes them: %files, %post, %test."""
    named = dict(sections((ROOT / "containers" / "theworld.def").read_text()))
    for line in named["files"].strip().splitlines():
        source, target = line.split()
        lay(source, root / target.lstrip("/"))
    run_inside(root, named["post"], {})
    run_inside(root, named["test"], {}, user="1000:1000")
    run_inside(root, f"set -- --version\n{named['runscript']}", {}, user="1000:1000")
    use(root, {}, "1000:1000")


def use(root: Path, env: dict[str, str], user: str) -> None:
    (root / "trial").mkdir(mode=0o777)
    (root / "trial").chmod(0o777)
    for step in TRIES:
        run_inside(root, step, {"HOME": "/tmp"} | env, folder="/trial", user=user)


def main(recipes: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("error: this needs root and debootstrap (apt install debootstrap): it lays out a Debian and enters it")
    base = make_base(PLACE)
    for recipe in recipes or RECIPES:
        began = time.perf_counter()
        print(f"{recipe}:", flush=True)
        root = PLACE / recipe
        shutil.rmtree(root, ignore_errors=True)
        call("cp", "-a", "--reflink=auto", str(base), str(root))
        (try_dockerfile if recipe == "Dockerfile" else try_apptainer)(root)
        size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_symlink() and path.is_file())
        print(f"{recipe}: works, {size / 1e9:.1f} GB, {time.perf_counter() - began:.0f} s", flush=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    main(sys.argv[1:])

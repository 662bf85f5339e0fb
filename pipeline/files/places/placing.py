"""Prove that a file system can create a file whole and refuse to replace one, as every store needs."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import atomic
from ..file_system import name_of


def prove_placing(temp_folder: Path, *targets: Path) -> None:
    """Place files, as commits do, and look at what became of them.

    Args:
        targets: folders in which files of `temp_folder` will be placed; by default itself.
    Raises:
        OSError: the file system refuses, or does not do what it says; with the ability that is missing, and its type.
    """
    for target in targets or (temp_folder,):
        _prove_in(temp_folder, target)


def _prove_in(temp_folder: Path, folder: Path) -> None:
    with ExitStack() as left:
        with _ability("making a new file", temp_folder):
            first = atomic.TempFile(temp_folder)
            left.callback(first.discard)
            second = atomic.TempFile(temp_folder)
            left.callback(second.discard)
        probe = folder / f".{first.path.name}.placing"  # in this folder files are found by their names
        left.callback(atomic.remove, probe)
        with _ability("writing a file to the disk (fsync)", temp_folder):
            for temp, content in ((first, b"first"), (second, b"second")):
                temp.write(content)
                temp.finish()
        with _ability("giving a file its name (hard link, or rename without replacing)", folder):
            placed = atomic.place(first.path, probe), atomic.place(second.path, probe)
        with _ability("reading what was written", folder):
            content = probe.read_bytes()
        if placed != (True, False) or content != b"first":
            problem = f"this file system replaces a file that it was told to keep ({name_of(folder)})"
            raise OSError(errno.ENOTSUP, problem, str(probe))
        with _ability("making names durable (fsync of a folder)", folder):
            atomic.sync_folder(folder)


@contextmanager
def _ability(what: str, folder: Path) -> Generator[None]:
    """Say of a refusal what the file system cannot do, and which one it is."""
    try:
        yield
    except OSError as error:
        problem = f"{what} fails on this file system ({name_of(folder)}): {error.strerror or error}"
        raise OSError(error.errno, problem, str(folder)) from error

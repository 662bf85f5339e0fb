"""Loss of power, replayed: what a disk may hold at any moment of a job.

A job's file operations are logged; at each point of the log, a conservative POSIX allows these states of the disk:

    bytes of a file    those before its last fsync are there; of later ones none, a torn prefix, zeros in their place,
                       zeros here and there, or all
    names in a folder  as its last fsync left them, or as any later operation on that name did, each name for itself
    a folder           with its own name; where that is gone, all below it is
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .harness import Cut, FileLayer

_WHEN = re.compile(rb'"created":"[^"]*"|"seal":"[0-9a-f]*"')
BLOCK = 16
"""Bytes that reach the disk together; small, as the files here are."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the log."""

    kind: str
    """create, write, sync_file, link, unlink, mkdir, replace, sync_folder, acknowledge"""
    path: str = ""
    """Below the root; of link and replace the new name."""
    inode: int = 0
    data: bytes = b""
    other: str = ""
    """The old name of a replace, the word of an acknowledgement."""


class Recorder(FileLayer):
    """Passes every operation on and writes it down; `skipped` fsyncs neither happen nor are in the log.

    Attributes:
        log: the operations.
        interrupt: called with the number of operations so far, before each of them.
    """

    def __init__(self, root: Path, skipped: Callable[[Path], bool] = lambda _: False) -> None:
        self.root = root
        self.skipped = skipped
        self.log: list[Operation] = []
        self.interrupt: Callable[[int], None] = lambda _: None
        self._open: dict[int, Path] = {}

    def acknowledge(self, word: str) -> None:
        self.log.append(Operation("acknowledge", other=word))

    def operate(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.interrupt(len(self.log))
        if name == "fsync" and self.skipped(self._open[arguments[0]]):
            return None
        inode = self._inode(arguments[0]) if name in ("link", "replace") else 0
        result = real(*arguments, **options)
        note = getattr(self, f"_note_{name}", None)
        if note is not None:
            note(result, inode, *arguments)
        return result

    def _name(self, path: Any) -> str:
        return os.path.relpath(_real(path), self.root.resolve())

    @staticmethod
    def _inode(path: Any) -> int:
        return Path(path).lstat().st_ino

    def _note_open(self, fd: int, _: int, path: Any, flags: int, *__: Any) -> None:
        self._open[fd] = _real(path)
        assert not flags & os.O_TRUNC
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            self.log.append(Operation("create", self._name(path), os.fstat(fd).st_ino))

    def _note_write(self, count: int, _: int, fd: int, data: Any) -> None:
        self.log.append(Operation("write", inode=os.fstat(fd).st_ino, data=bytes(memoryview(data).cast("B")[:count])))

    def _note_fsync(self, _: None, __: int, fd: int) -> None:
        path = self._open[fd]
        kind = "sync_folder" if path.is_dir() else "sync_file"
        self.log.append(Operation(kind, self._name(path), os.fstat(fd).st_ino))

    def _note_mkdir(self, _: None, __: int, path: Any, *___: Any) -> None:
        self.log.append(Operation("mkdir", self._name(path)))

    def _note_link(self, _: None, inode: int, __: Any, target: Any) -> None:
        self.log.append(Operation("link", self._name(target), inode))

    def _note_unlink(self, _: None, __: int, path: Any) -> None:
        self.log.append(Operation("unlink", self._name(path)))

    def _note_replace(self, _: None, inode: int, source: Any, target: Any) -> None:
        self.log.append(Operation("replace", self._name(target), inode, other=self._name(source)))


@dataclass
class _File:
    synced: bytes = b""
    later: bytes = b""


def _real(path: Any) -> Path:
    """Where a file or folder is that may be named by way of a folder held open, /proc/self/fd/N; a link stays one."""
    path = Path(path)
    return path.resolve() if path.parent == Path("/proc/self/fd") else path.parent.resolve() / path.name


@dataclass(frozen=True)
class State:
    """A disk after power came back."""

    files: dict[str, bytes]
    folders: frozenset[str]
    acknowledged: tuple[str, ...]

    def lay_out(self, root: Path) -> None:
        """Make it real in an empty folder."""
        root.mkdir()
        for name in sorted(self.folders):  # parents first
            (root / name).mkdir()
        for name, content in self.files.items():
            (root / name).write_bytes(content)

    @property
    def digest(self) -> str:
        """Equal states have equal digests, whatever their temporary files are called and when they were made."""
        names = sorted(
            (name if "/tmp/" not in name else "/tmp/", _WHEN.sub(b"", content)) for name, content in self.files.items()
        )
        return hashlib.sha256(repr((names, sorted(self.folders), sorted(self.acknowledged))).encode()).hexdigest()


@dataclass
class Disk:
    """What is durable, and what only may be."""

    inodes: dict[int, _File] = field(default_factory=dict)
    names: dict[str, list[int | None]] = field(default_factory=dict)
    """Name -> what it stands for (an inode, 0 a folder, None nothing): as last synced, then after each operation."""
    acknowledged: list[str] = field(default_factory=list)
    _all: dict[int, int] = field(default_factory=dict)
    """Inode number -> its index in `inodes`: the kernel gives numbers out again."""

    def apply(self, operation: Operation) -> None:
        """Let one operation happen."""
        path = operation.path
        match operation.kind:
            case "create":
                self._all[operation.inode] = len(self.inodes) + 1
                self.inodes[len(self.inodes) + 1] = _File()
                self._rename(path, self._all[operation.inode])
            case "write":
                self.inodes[self._all[operation.inode]].later += operation.data
            case "sync_file":
                file = self.inodes[self._all[operation.inode]]
                file.synced, file.later = file.synced + file.later, b""
            case "sync_folder":
                for name, history in self.names.items():
                    if (os.path.dirname(name) or ".") == path:  # noqa: PTH120
                        del history[:-1]
            case "link":
                self._rename(path, self._all[operation.inode])
            case "replace":
                self._rename(path, self._all[operation.inode])
                self._rename(operation.other, None)
            case "unlink":
                self._rename(path, None)
            case "mkdir":
                self._rename(path, 0)
            case "acknowledge":
                self.acknowledged.append(operation.other)
            case _:
                raise AssertionError(operation)

    def _rename(self, name: str, meaning: int | None) -> None:
        self.names.setdefault(name, [None]).append(meaning)

    def state(self, name: Callable[[list[int | None]], int | None], bytes_of: Callable[[_File], bytes]) -> State:
        """One legal state: `name` chooses among the meanings a name may have, `bytes_of` what a file holds."""
        chosen = {path: name(history) for path, history in self.names.items()}
        contents: dict[int, bytes] = {}
        folders: set[str] = set()
        files: dict[str, bytes] = {}
        for path in sorted(chosen):  # a folder comes before what is in it
            meaning, parent = chosen[path], os.path.dirname(path)  # noqa: PTH120
            if meaning is None or (parent and parent not in folders):
                continue
            if meaning == 0:
                folders.add(path)
            else:
                if meaning not in contents:
                    contents[meaning] = bytes_of(self.inodes[meaning])
                files[path] = contents[meaning]
        return State(files, frozenset(folders), tuple(self.acknowledged))

    def worst(self) -> State:
        """Nothing is there but what must be."""
        return self.state(lambda history: history[0], lambda file: file.synced)

    def names_without_bytes(self) -> State:
        """Every name is there, and no bytes but those that must be."""
        return self.state(lambda history: history[-1], lambda file: file.synced)

    def best(self) -> State:
        """Everything is there: what a kill leaves."""
        return self.state(lambda history: history[-1], lambda file: file.synced + file.later)

    def drawn(self, draw: random.Random) -> State:
        """Any legal state."""
        return self.state(draw.choice, lambda file: file.synced + _torn(file.later, draw))


def _torn(later: bytes, draw: random.Random) -> bytes:
    match draw.randrange(5):
        case 0:
            return b""
        case 1:
            return later[: draw.randint(0, len(later))]
        case 2:
            return bytes(len(later))
        case 3:
            blocks = [later[start : start + BLOCK] for start in range(0, len(later), BLOCK)]
            return b"".join(draw.choice((block, bytes(len(block)))) for block in blocks)
        case _:
            return later


def states(log: list[Operation], rounds: int, draw: random.Random, judged: Collection[str] = ()) -> Iterator[State]:
    """Legal states at every point of a log: the two extremes, every name without its bytes, and `rounds` drawn ones.

    Args:
        judged: digests of states that are not wanted again.
    """
    disk, seen = Disk(), set(judged)
    for operation in [Operation("acknowledge", other="begun"), *log]:
        disk.apply(operation)
        for state in (
            disk.worst(), disk.names_without_bytes(), disk.best(), *(disk.drawn(draw) for _ in range(rounds))
        ):  # fmt: skip
            if state.digest not in seen:
                seen.add(state.digest)
                yield state


def cut_at(number: int, recorder: Recorder) -> None:
    """Kill the job before its operation `number`: its names and bytes stay in the page cache, unsynced."""
    dead = False

    def interrupt(count: int) -> None:
        nonlocal dead
        dead = dead or count >= number
        if dead:
            raise Cut

    recorder.interrupt = interrupt


def beside(number: int, recorder: Recorder, other: Callable[[], object]) -> None:
    """Let another writer run from start to end before operation `number`."""

    def interrupt(count: int) -> None:
        if count >= number:
            recorder.interrupt = lambda _: None
            other()

    recorder.interrupt = interrupt

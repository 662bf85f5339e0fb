"""Feed mutated files to a reader in forked processes, and judge what it does with each.

For each input, the reader returns, or raises one of its errors in words. A finding is: another exception; more than
`CPU_S` of CPU, or no end; the end of the process; a write outside of its own temporary folder, a read of a file that
stands for somebody's secret; a connection; a process, where the reader starts none; something left behind.
"""

import base64
import ctypes
import hashlib
import json
import mmap
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from theworld.pipeline.files.tables import guarded as guarded_tables

from .mutators import mutate
from .readers import Reader
from .seeds import Case

CPU_S = 10.0
"""CPU time of one input."""
WALL_S = 120.0
"""Wall time of one input, in which its process must say that it goes on."""
MEMORY_BYTES = 2**30
"""Memory of a process, beyond what it begins with."""
SECRETS = re.compile(r"/etc/passwd\Z|.*/outside/treasure\Z", re.DOTALL)
HUGE_MESSAGE = "a message as long as a book"


class TooLong(BaseException):
    """The alarm rang."""


class Forbidden(BaseException):
    """The reader did what no reader may do."""


@dataclass(frozen=True)
class Finding:
    """One input that a reader did not take as it should, and how to make it again."""

    reader: str
    seed: int
    number: int
    what: str
    where: str
    file: str = ""
    content: str = ""
    """Base64 of the mutated file."""
    case: int = 0

    @property
    def kind(self) -> str:
        """Findings of one kind are one mistake."""
        return f"{self.reader}: {self.what.split(':')[0]} at {self.where}"


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    findings: list[Finding] = field(default_factory=list[Finding])
    cpu_s: float = 0.0
    slowest_s: float = 0.0


@dataclass(frozen=True)
class Input:
    """One mutated file among the others of its case."""

    case: int
    victim: str
    name: str
    """Of the mutated file: the victim's, or another where its name is a digest of its content."""
    content: bytes


def draw_input(reader: Reader, cases: Sequence[Case], seed: int, number: int) -> Input:
    """The input of a number: always the same."""
    draw = random.Random(f"{seed} {reader.name} {number}")
    chosen = draw.randrange(len(cases))
    case = cases[chosen]
    victim = draw.choice(case.victims)
    others = [other.files[name] for other in cases for name in other.victims if name.endswith(victim[-5:])]
    content = mutate(draw, victim, case.files[victim], others)
    name = victim
    if draw.random() < 0.5:
        for mend in reader.mends:
            name, content = mend(name, content)
    return Input(chosen, victim, name, content)


class Watch:
    """What an audit hook sees of one process: once added, a hook stays."""

    WRITES: ClassVar = {
        "os.remove": (0, 1),
        "os.rmdir": (0, 1),
        "os.mkdir": (0, 2),
        "os.truncate": (0, 1),
        "os.symlink": (1, 2),
        "os.rename": (1, 3),
        "os.link": (1, 3),
    }
    """Events that change what is on disk, and which of their arguments are the path and its folder's descriptor."""
    CONNECTS = frozenset(
        {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"}
    )
    STARTS = frozenset({"subprocess.Popen", "os.system", "os.fork", "os.exec", "os.posix_spawn", "os.forkpty"})

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.active = False
        self.broken = ""
        self.writable: tuple[str, ...] = ()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._open(*arguments)
        elif event in self.WRITES:
            path, folder = (arguments[place] for place in self.WRITES[event])
            self._write(event, path, folder)
        elif event in self.CONNECTS:
            self._refuse(f"a connection: {event} {arguments[1:]!r:.80}")
        elif event in self.STARTS and not self.reader.starts_processes:
            self._refuse(f"a process: {event} {arguments!r:.80}")

    def _open(self, path: Any, _: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        if not self.reader.follows_paths and SECRETS.match(os.path.abspath(text)):  # noqa: PTH100
            self._refuse(f"a secret was read: {text[:80]}")
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and text != os.devnull:
            self._write("open", path)

    def _write(self, event: str, path: Any, folder: Any = -1) -> None:
        if isinstance(path, int):
            return
        root = os.readlink(f"/proc/self/fd/{folder}") if event != "os.truncate" and folder != -1 else ""  # noqa: PTH115
        text = os.path.abspath(os.path.join(root, os.fsdecode(path)))  # noqa: PTH100, PTH118
        if text.startswith("/proc/self/fd/"):  # a folder that is held open
            text = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))  # noqa: PTH118, PTH119, PTH120
        if not text.startswith(self.writable):
            self._refuse(f"a write: {event} of {text[-80:]}")

    def _refuse(self, what: str) -> None:
        self.broken = self.broken or what
        raise Forbidden(what)


def ring(*_: object) -> None:
    raise TooLong


class Bench:
    """One process that feeds inputs to one reader, in a folder of its own."""

    def __init__(self, reader: Reader, cases: Sequence[Case], place: Path) -> None:
        self.reader, self.cases = reader, cases
        self.place = place
        self.laid: dict[int, Path] = {}
        self.temp = place / "tmp"
        self.temp.mkdir(parents=True)
        for name in ("outside", "cache"):
            (place / name).mkdir()
        (place / "outside" / "treasure").write_bytes(b"what a stranger would like to have")
        self.watch = Watch(reader)

    def confine(self) -> None:
        """From here on this process is limited."""
        tempfile.tempdir = str(self.temp)
        os.environ["XDG_CACHE_HOME"] = str(self.place / "cache")  # where hashes of weights are kept
        os.chdir(self.place)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, ring)
        warnings.simplefilter("ignore")
        sys.dont_write_bytecode = True  # what is imported now for the first time is not the reader's write
        sys.addaudithook(self.watch)

    def folder(self, case: int) -> Path:
        """The folder of a case, laid out when first asked for."""
        if case not in self.laid:
            folder = self.place / f"case{case}"
            for name, content in self.cases[case].files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            self.laid[case] = folder
        return self.laid[case]

    def feed(self, given: Input) -> tuple[str, str, str]:
        """What became of an input: an outcome, and of a finding what it is and where."""
        folder = self.folder(given.case)
        (folder / given.victim).unlink()
        (folder / given.name).write_bytes(given.content)
        before = self._listing(folder)
        try:
            outcome = self._use(folder)
        finally:
            self.watch.active = False
        if not outcome[1] and (changed := self._changed(before, folder)):
            outcome = ("finding", f"{changed}", "")
        self._restore(given, folder)
        return outcome

    def _use(self, folder: Path) -> tuple[str, str, str]:
        self.watch.broken = ""
        others = [str(folder)] if self.reader.writes else []
        self.watch.writable = (str(self.temp), str(self.place / "cache"), *others)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        self.watch.active = True
        try:
            self.reader.use(folder)
            outcome = ("read", "", "")
        except self.reader.errors as error:
            text = str(error)
            long = HUGE_MESSAGE if len(text) > self.reader.message else ""
            outcome = (
                type(error).__name__,
                long and f"{long}: {len(text):,}, {text[:200]}",
                _place_of(error) if long else "",
            )
        except TooLong as error:
            outcome = ("finding", f"more than {CPU_S:g} s of CPU", _place_of(error))
        except BaseException as error:
            outcome = ("finding", f"{type(error).__name__}: {str(error)[:300]}", _place_of(error))
        finally:
            self.watch.active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self.watch.broken and not outcome[1].startswith("Forbidden"):
            outcome = ("finding", self.watch.broken, "")
        return outcome

    def _listing(self, folder: Path) -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        todo = [] if self.reader.writes else [str(folder)]
        todo += [str(self.place / "outside")]
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        status = entry.stat(follow_symlinks=False)
                        found[entry.path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        found.update(dict.fromkeys(os.listdir(self.place), (0, 0, 0)))  # noqa: PTH208
        return found

    def _changed(self, before: dict[str, tuple[int, int, int]], folder: Path) -> str:
        after = self._listing(folder)
        if after != before:
            return f"files were changed: {sorted(after.items() ^ before.items())[:2]}"
        if left := os.listdir(self.temp):  # noqa: PTH208
            return f"left in the temporary folder: {left[:2]}"
        return ""

    def _restore(self, given: Input, folder: Path) -> None:
        if self.reader.writes:
            shutil.rmtree(folder)
            del self.laid[given.case]
        else:
            (folder / given.name).unlink(missing_ok=True)
            (folder / given.victim).write_bytes(self.cases[given.case].files[given.victim])
        for left in self.temp.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def _place_of(error: BaseException) -> str:
    """The innermost of our own lines that an exception went through."""
    frames = traceback.extract_tb(error.__traceback__)
    rooms = ("/pipeline/", "/precompute/", "/train/", "/theworld/")
    ours = [
        frame for frame in frames if any(room in frame.filename for room in rooms) and "/tests/" not in frame.filename
    ]
    ours = [frame for frame in ours if "site-packages" not in frame.filename] or list(frames[-1:])
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"


def fuzz(
    reader: Reader,
    cases: Sequence[Case],
    numbers: range,
    *,
    seed: int,
    scratch: Path,
    until: float = float("inf"),
) -> Tally:
    """Feed these inputs to a reader; a process that ends is replaced, and the input that ended it is a finding.

    Args:
        until: stop at this time (`time.monotonic`), whatever is left.
    """
    tally = Tally()
    shared = mmap.mmap(-1, 16)
    at = numbers.start
    while at < numbers.stop and time.monotonic() < until:
        place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=scratch))
        try:
            reached, ended = _in_child(reader, cases, range(at, numbers.stop), seed, place, shared, tally, until)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if not ended:
            break
        if reader.contained and ended.startswith("SIG"):
            tally.outcomes["contained crash"] += 1
        else:
            given = draw_input(reader, cases, seed, reached)
            tally.findings.append(_finding(reader, seed, reached, given, f"it ended its process: {ended}", ""))
        tally.inputs += 1
        at = reached + 1
    return tally


def _finding(reader: Reader, seed: int, number: int, given: Input, what: str, where: str) -> Finding:
    content = base64.b64encode(given.content).decode()
    return Finding(reader.name, seed, number, what, where, given.name, content, given.case)


def _in_child(
    reader: Reader,
    cases: Sequence[Case],
    numbers: range,
    seed: int,
    place: Path,
    shared: mmap.mmap,
    tally: Tally,
    until: float,
) -> tuple[int, str]:
    """Run a batch in a forked process: the input it reached, and how it ended where it did not end well."""
    read_end, write_end = os.pipe()
    shared[:8] = numbers.start.to_bytes(8, "little")
    child = os.fork()
    if not child:
        _die_with_parent()
        os.close(read_end)
        try:
            _work(reader, cases, numbers, seed, place, shared, write_end, until)
            guarded_tables._end_all()
            status = 0
        except BaseException:
            os.write(write_end, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
            status = 3
        os._exit(status)
    os.close(write_end)
    lines, hung = _listen(read_end, shared, child)
    _, status, usage = os.wait4(child, 0)
    tally.cpu_s += usage.ru_utime + usage.ru_stime
    for line in lines:
        message = json.loads(line)
        if "broken" in message:
            raise AssertionError(f"the harness broke at {reader.name}: {message['broken']}")
        if "done" in message:
            tally.inputs += message["done"]
            tally.outcomes.update(message["outcomes"])
            tally.slowest_s = max(tally.slowest_s, message["slowest_s"])
        else:
            tally.findings.append(Finding(**message))
    code = os.waitstatus_to_exitcode(status)
    ended = (
        "" if code == 0 else "no end in sight" if hung else signal.Signals(-code).name if code < 0 else f"exit {code}"
    )
    return int.from_bytes(shared[:8], "little"), ended


def _listen(read_end: int, shared: mmap.mmap, child: int) -> tuple[list[str], bool]:
    """The child's lines until it ends; a child that is stuck at one input is killed."""
    received, last, since, hung = bytearray(), b"", time.monotonic(), False
    while True:
        ready, _, _ = select.select([read_end], [], [], 1.0)
        if ready:
            part = os.read(read_end, 2**16)
            if not part:
                break
            received += part
        if (now := shared[:8]) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > WALL_S and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
    os.close(read_end)
    return [line for line in received.decode().split("\n") if line], hung


def _work(
    reader: Reader,
    cases: Sequence[Case],
    numbers: range,
    seed: int,
    place: Path,
    shared: mmap.mmap,
    write_end: int,
    until: float,
) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    bench = Bench(reader, cases, place)
    bench.confine()
    outcomes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    done, slowest_s = 0, 0.0

    def tell(message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(write_end, line) :]

    for number in numbers:
        shared[:8] = number.to_bytes(8, "little")
        given = draw_input(reader, cases, seed, number)
        before = time.process_time()
        outcome, what, where = bench.feed(given)
        slowest_s = max(slowest_s, time.process_time() - before)
        outcomes[outcome] += 1
        done += 1
        if what:
            found = _finding(reader, seed, number, given, what, where)
            seen[found.kind] += 1
            if seen[found.kind] <= 3:
                tell(asdict(found))
        if done % 100 == 0:
            tell({"done": done, "outcomes": outcomes, "slowest_s": slowest_s})
            done, outcomes = 0, Counter()
            if time.monotonic() > until:
                break
    tell({"done": done, "outcomes": outcomes, "slowest_s": slowest_s})


def _die_with_parent() -> None:
    """Linux kills this process when the one that forked it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def replay(readers: Sequence[Reader], cases: Callable[[Reader], Sequence[Case]], file: Path, scratch: Path) -> str:
    """Feed the input of a saved finding again, in this process; returns what became of it."""
    found = Finding(**json.loads(file.read_text()))
    [reader] = [reader for reader in readers if reader.name == found.reader]
    drawn = draw_input(reader, cases(reader), found.seed, found.number)
    given = Input(found.case, drawn.victim, found.file, base64.b64decode(found.content))
    place = Path(tempfile.mkdtemp(prefix="fuzz-", dir=scratch))
    bench = Bench(reader, cases(reader), place)
    try:
        bench.folder(given.case)
        return " ".join(bench.feed(given))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def save(finding: Finding, folder: Path) -> Path:
    """Keep a finding for `FUZZ_REPLAY`."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", finding.reader)
    digest = hashlib.sha256(finding.kind.encode()).hexdigest()[:8]
    file = folder / f"{name}-{finding.seed}-{finding.number}-{digest}.json"
    file.write_text(json.dumps(asdict(finding), indent=1) + "\n")
    return file


def shares(readers: Sequence[Reader], inputs: int) -> Iterator[tuple[Reader, int]]:
    """How many inputs each reader gets."""
    total = sum(reader.share for reader in readers)
    for reader in readers:
        yield reader, max(1, round(inputs * reader.share / total))

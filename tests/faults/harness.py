"""The job that is harmed, the checker that judges what is left, and the layer where accidents happen.

The checker, after anything:   what is visible was planned, is whole, right, and there once; what was acknowledged is
                               visible; what the sealed records say is what the store says
and after the job ran again:   everything planned is visible, and a second run does no work
"""

import hashlib
import json
import os
import random
import signal
import tarfile
import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from theworld.pipeline.errors import StoreError, StoreNotFoundError
from theworld.pipeline.files import atomic
from theworld.pipeline.files.places.place import Place
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.progress import Bar, Progress
from theworld.pipeline.store import writer as shard_writer
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.records import record_number
from theworld.pipeline.store.upkeep.verify import verify

FORMATS: tuple[StoreFormat, ...] = ("zarr", "webdataset")
SCRATCH = Path("/dev/shm")
SPEC = LatentSpec(channels=2, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 2, std=(1.0,) * 2)
RECIPE = Recipe(world="sha256:" + "0" * 64, height=16, width=16, rollout_steps=1)
SHARD_SIZE = 2
BAD = Failure(source="bad.png", key=None, reason="decode", message="not an image", attempts=1)


def amount(name: str, quick: int) -> int:
    """How much of something to try: the environment's FAULT_<name>, which `make faults` sets, or the quick number."""
    return int(os.environ.get(f"FAULT_{name}", quick))


SEED = amount("SEED", 0)


def key(number: int) -> str:
    return f"{number:032x}"


_LATENTS = np.random.default_rng(0).integers(-2048, 2048, (4096, 2, 2, 2, 2)).astype(np.float32) / 256


def latent(number: int) -> NDArray[np.float32]:
    """Of values every stored dtype holds exactly; each number has its own."""
    return _LATENTS[number]


def create(cache: Path, format: StoreFormat) -> LatentStore:
    return create_store(cache, RECIPE, SPEC, label="tiny", shard_size=SHARD_SIZE, format=format)


def job(cache: Path, plan: Iterable[int], *, format: StoreFormat, tell: Callable[[str], None] = lambda _: None) -> int:
    """What precompute does to a store: see what is missing, write it shard by shard, then publish.

    Args:
        tell: hears of everything the store has acknowledged: "store", "sources", or the number of a sample.
    Returns:
        Shards committed.
    """
    plan = list(plan)
    store = create(cache, format)
    tell("store")
    store.record_sources((f"{number}.png", key(number)) for number in plan)
    tell("sources")
    store.record_failure(BAD)
    missing = [number for number in plan if key(number) not in store]
    committed = 0
    for start in range(0, len(missing), SHARD_SIZE):
        numbers = missing[start : start + SHARD_SIZE]
        committed += write(store, numbers)
        for number in numbers:
            tell(str(number))
    store.clear_failure(BAD)
    store.publish()
    return committed


def write(store: LatentStore, numbers: Sequence[int]) -> bool:
    """Commit one shard; False where other writers had all of its keys."""
    with store.new_shard() as shard:
        for number in numbers:
            shard.add(key(number), latent(number))
        return shard.commit({}) is not None


def check(
    cache: Path,
    plan: Collection[int],
    *,
    format: StoreFormat,
    acknowledged: Collection[str] = (),
    complete: bool = False,
) -> LatentStore | None:
    """Judge a cache folder after an accident; with `complete`, after the job ran again.

    Raises:
        AssertionError, StoreError: a promise is broken.
    """
    try:
        store = open_store(cache)
    except StoreNotFoundError:
        assert not acknowledged, "acknowledged, and there is no store"
        assert not complete, "there is no store"
        return None
    assert store.format == format
    numbers = [int(visible, 16) for visible in store.keys]
    assert len(numbers) == len(set(numbers)), "a key is visible twice"
    assert set(numbers) <= set(plan), "a key is visible that nobody wrote"
    lost = {int(word) for word in acknowledged if word.isdecimal()} - set(numbers)
    assert not lost, f"acknowledged, then lost: {sorted(lost)}"
    for number, values in zip(numbers, store.read(store.keys), strict=True):
        np.testing.assert_array_equal(values, latent(number))
    records = store.records()
    assert [record.shard for record in records] == record_numbers(store.path)
    visible = dict.fromkeys(word for record in records for word in record.keys)
    assert tuple(visible) == store.keys, "the index says something else than the records"
    for record in records:
        check_payload(store.payload_path(record.shard), record)
    sources = store.sources()
    failures = store.failures()
    if complete:
        assert set(numbers) == set(plan), "not complete"
        assert failures == []
        assert store.damage == ()
    if complete or "sources" in acknowledged:
        assert all(sources.get(f"{number}.png") == (key(number),) for number in plan), "a source is lost"
    return store


def record_numbers(store: Path) -> list[int]:
    """The shards that have a record."""
    names = (record_number(path.name) for path in (store / "commits").iterdir())
    return sorted(number for number in names if number is not None)


def check_payload(path: Path, record: Any) -> None:
    """A payload is the bytes of its record, and what the format says it is."""
    payload = path.read_bytes()
    assert (len(payload), hashlib.sha256(payload).hexdigest()) == (record.bytes, record.sha256)
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert names == [f"{key}.{suffix}" for key in record.keys for suffix in ("npy", "json")]


def check_resumes(cache: Path, plan: Collection[int], *, format: StoreFormat, twice: bool = True) -> LatentStore:
    """The same job makes the store complete, and `twice` run it finds nothing to do."""
    job(cache, plan, format=format)
    store = check(cache, plan, format=format, complete=True)
    assert store is not None
    if not twice:
        return store
    before = files(store.path)
    assert job(cache, plan, format=format) == 0, "a second run did work"
    assert files(store.path) == before, "a second run left something behind"
    return store


def files(store: Path) -> dict[str, tuple[int, int]]:
    """What stands in a store: relative path -> inode and size."""
    found = {}
    for path in store.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[str(path.relative_to(store))] = (status.st_ino, status.st_size)
    return found


def broken(judge: Callable[[], object]) -> str:
    """What a checker finds wrong, in one line; empty where nothing is."""
    try:
        judge()
    except (AssertionError, StoreError, OSError) as error:
        return (str(error) or repr(error)).strip().splitlines()[0]
    return ""


def flip_bit(path: Path, draw: random.Random) -> int:
    """Flip one bit of a file, as an edit would: its time changes. Returns which."""
    content, status = bytearray(path.read_bytes()), path.stat()
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_007))
    return bit


def damage_in(store: Path) -> list[str]:
    """What `verify` says of each damaged thing, having read every byte, and where it is."""
    findings = verify(store, level="read").damage
    return [" ".join([finding.message, *map(str, finding.paths)]) for finding in findings]


class Cut(BaseException):
    """The process is dead from here on."""


class FileLayer:
    """`os` as atomic.py sees it. Subclasses decide what becomes of each operation on files.

    A function it does not know is refused, so that no write of atomic.py goes past the faults unnoticed.
    """

    OPERATIONS = frozenset({"open", "write", "fsync", "close", "link", "unlink", "mkdir", "replace"})
    HARMLESS = frozenset({"getpid", "fsencode", "fspath", "strerror", "fstat", "stat", "read"})

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name in self.OPERATIONS:
            return lambda *arguments, **options: self.operate(name, real, arguments, options)
        assert name in self.HARMLESS or name.startswith("O_"), f"the fault layer does not know os.{name}"
        return real

    def operate(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        raise NotImplementedError


class FaultyFileLayer(FileLayer):
    """An accident before the n-th file operation; n = 0 only counts.

    Attributes:
        count, names: operations so far.
        hit: name and arguments of the operation the accident befell.
    """

    def __init__(self, accident_at: int = 0, accident: Callable[[], None] | None = None) -> None:
        self.count = 0
        self.names: list[str] = []
        self.accident_at = accident_at
        self.accident = accident or self.die
        self.dead = False
        self.hit: tuple[str, tuple[Any, ...]] | None = None
        self._open: set[int] = set()

    def operate(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.count += 1
        self.names.append(name)
        if self.dead:
            raise Cut
        if name == "close":  # the kernel closes whatever happens
            self._open.discard(arguments[0])
            real(*arguments)
        if self.count == self.accident_at:
            self.hit = name, arguments
            self.accident()
        result = None if name == "close" else real(*arguments, **options)
        if name == "open":
            self._open.add(result)
        return result

    def die(self) -> None:
        """As SIGKILL: neither this nor any later operation happens, and no cleaning up but the kernel's."""
        self.dead = True
        while self._open:
            os.close(self._open.pop())
        raise Cut


@contextmanager
def layer(replacement: FileLayer) -> Iterator[None]:
    """Put a layer between the store and the file system."""
    before = atomic.os
    atomic.os = replacement  # type: ignore[assignment]
    try:
        yield
    finally:
        atomic.os = before


def operations(cache: Path, plan: Iterable[int], format: StoreFormat) -> list[str]:
    """The names of the file operations of a job that is left alone."""
    counting = FaultyFileLayer()
    with layer(counting):
        job(cache, plan, format=format)
    return counting.names


@contextmanager
def record_first(pause_s: float = 0.0) -> Iterator[None]:
    """Break the writer: the record appears before the payload it describes, `pause_s` before."""
    waiting: list[Callable[[], int]] = []
    place_payload, publish_record = shard_writer.place_payload, shard_writer.publish_record

    def note_payload(store: Place, temp: Path, name_of: Callable[[int], str], *, first: int, top: str) -> int:
        waiting.append(lambda: place_payload(store, temp, name_of, first=first, top=top))
        return first

    def publish_then_place(*arguments: Any) -> None:
        publish_record(*arguments)
        time.sleep(pause_s)
        waiting.pop()()

    shard_writer.place_payload, shard_writer.publish_record = note_payload, publish_then_place
    try:
        yield
    finally:
        shard_writer.place_payload, shard_writer.publish_record = place_payload, publish_record


def start(action: Callable[[Callable[[str], None]], object]) -> tuple[int, int]:
    """Run an action in a forked process.

    Args:
        action: gets a function that tells the parent a word.
    Returns:
        The process, and the end of a pipe where its words arrive, one a line; the text of an exception, too.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    status = 1
    try:
        os.close(read_end)
        action(lambda word: assert_written(write_end, word))
        status = 0
    except BaseException:
        assert_written(write_end, json.dumps(traceback.format_exc()))
    finally:
        os._exit(status)


class Holding(Progress):
    """A progress that says when the work has begun, and then never lets it end."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(None)
        self._tell = tell

    @contextmanager
    def bar(self, title: str, *, total: int, unit: str) -> Generator[Bar]:
        self._tell("at work")
        signal.pause()
        with super().bar(title, total=total, unit=unit) as bar:
            yield bar


def assert_written(fd: int, word: str) -> None:
    line = f"{word}\n".encode()
    assert os.write(fd, line) == len(line)


def finish(child: int, read_end: int, *, kill: bool = False) -> list[str]:
    """Wait for a forked process, or kill it, and return its words.

    Raises:
        AssertionError: it failed by itself; with the traceback.
    """
    if kill:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read_end) as pipe:
        words = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in ((0, -signal.SIGKILL) if kill else (0,)), "\n".join(json.loads(words[-1]).splitlines())
    return words


def in_child(action: Callable[[], object]) -> None:
    """Run an action in a process of its own, where limits and mounts may change; its exception is ours."""
    finish(*start(lambda _: action()))

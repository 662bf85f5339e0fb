"""A shard you can see is whole, is there once, and stays: under cuts, errors, races, and loss of power.

Every harness here is also run on a writer broken on purpose, and must notice. The stores lie in memory where the
machine allows: a cut process leaves the same files on any file system, and fsync costs nothing there.
"""

import errno
import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from theworld.pipeline import commit, shard_writer
from theworld.pipeline.errors import DamagedShardError, StoreError, StoreNotFoundError
from theworld.pipeline.latents import LatentSpec
from theworld.pipeline.ledger import Failure
from theworld.pipeline.recipe import Recipe
from theworld.pipeline.store import LatentStore, create_store, open_store

SPEC = LatentSpec(channels=2, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 2, std=(1.0,) * 2)
RECIPE = Recipe(world="sha256:" + "0" * 64, height=16, width=16, rollout_steps=1)
SHARD_SIZE = 2
BAD = Failure(source="bad.png", key=None, reason="decode", message="not an image", attempts=1)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def key(number: int) -> str:
    return f"{number:032x}"


def latent(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).integers(-2048, 2048, (2, 2, 2, 2)).astype(np.float32) / 256


def job(cache: Path, plan: Sequence[int]) -> None:
    """What precompute does to a store: see what is missing, write it shard by shard, then publish the shape."""
    store = create_store(cache, RECIPE, SPEC, label="tiny", shard_size=SHARD_SIZE)
    store.record_sources((f"{number}.png", key(number)) for number in plan)
    store.record_failure(BAD)
    missing = [number for number in plan if key(number) not in store]
    for start in range(0, len(missing), SHARD_SIZE):
        with store.new_shard() as shard:
            for number in missing[start : start + SHARD_SIZE]:
                shard.add(key(number), latent(number))
            shard.commit({})
    store.clear_failure(BAD)
    store.publish_shape()


def check(cache: Path, plan: Sequence[int], *, complete: bool) -> LatentStore | None:
    """Whatever is visible is planned, whole and right; with `complete`, everything is visible."""
    try:
        store = open_store(cache)
    except StoreNotFoundError:
        assert not complete
        return None
    numbers = [int(visible, 16) for visible in store.keys]
    assert set(numbers) <= set(plan)
    assert len(numbers) == len(set(numbers))
    for number, values in zip(numbers, store.read(store.keys), strict=True):
        np.testing.assert_array_equal(values, latent(number))
    for record in store.records():
        payload = store.payload_path(record.shard).read_bytes()
        assert (len(payload), hashlib.sha256(payload).hexdigest()) == (record.bytes, record.sha256)
    store.sources()
    store.failures()
    if complete:
        assert set(numbers) == set(plan)
        assert store.sources() == {f"{number}.png": (key(number),) for number in plan}
        assert store.failures() == []
    return store


class Cut(BaseException):
    """The process is dead from here on."""


class FaultyOs:
    """`os` as commit.py sees it, with an accident at the n-th file operation; n = 0 only counts."""

    OPERATIONS = frozenset({"open", "write", "fsync", "close", "link", "unlink", "mkdir", "replace"})

    def __init__(self, accident_at: int = 0, accident: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.accident_at = accident_at
        self.accident = accident
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.OPERATIONS:
            return real

        def operation(*arguments: Any, **options: Any) -> Any:
            if name == "close":  # the kernel closes whatever happens
                real(*arguments)
            self.count += 1
            if self.dead:
                raise Cut
            if self.count == self.accident_at:
                self.accident()
            return None if name == "close" else real(*arguments, **options)

        return operation

    def die(self) -> None:
        """As SIGKILL: neither this nor any later operation happens, and no cleaning up either."""
        self.dead = True
        raise Cut


def count_operations(cache: Path, plan: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> int:
    counting = FaultyOs()
    with monkeypatch.context() as patch:
        patch.setattr(commit, "os", counting)
        job(cache, plan)
    return counting.count


def cut_everywhere(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut a job before each of its file operations, check, resume, check."""
    plan = range(5)
    operations = count_operations(cache / "counted", plan, monkeypatch)
    assert operations > 100
    for cut_at in range(1, operations + 1):
        here = cache / str(cut_at)
        faulty = FaultyOs(cut_at)
        faulty.accident = faulty.die
        with monkeypatch.context() as patch, pytest.raises(Cut):  # noqa: PT012
            patch.setattr(commit, "os", faulty)
            job(here, plan)
        check(here, plan, complete=False)
        job(here, plan)
        check(here, plan, complete=True)


@pytest.mark.slow
def test_a_cut_before_any_file_operation_leaves_whole_shards_and_resumes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_everywhere(cache, monkeypatch)


def record_first(monkeypatch: pytest.MonkeyPatch, pause_s: float = 0.0) -> None:
    """Break the writer: the record appears before the payload it describes, `pause_s` before."""
    waiting: list[Callable[[], None]] = []
    place_payload, publish_record = shard_writer.place_payload, shard_writer.publish_record

    def note_payload(temp: Path, payload_of: Callable[[int], Path], first: int, top: Path) -> int:
        waiting.append(lambda: assert_equal(place_payload(temp, payload_of, first, top), first))
        return first

    def publish_then_place(*arguments: Any) -> None:
        publish_record(*arguments)
        time.sleep(pause_s)
        waiting.pop()()

    monkeypatch.setattr(shard_writer, "place_payload", note_payload)
    monkeypatch.setattr(shard_writer, "publish_record", publish_then_place)


def assert_equal(left: object, right: object) -> None:
    assert left == right


def test_the_cuts_notice_a_writer_that_publishes_the_record_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_first(monkeypatch)
    with pytest.raises(DamagedShardError, match="No such file"):
        cut_everywhere(cache, monkeypatch)


def cut_at_random(cache: Path, plan: Sequence[int], cuts: int) -> None:
    draw = random.Random(0)
    for cut in range(cuts):
        started, start = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(start, b".")
                job(cache, plan)
            finally:
                os._exit(0)
        os.read(started, 1)
        time.sleep(draw.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(started)
        os.close(start)
        if cut % 5 == 0:  # what is wrong stays wrong: records are never replaced
            check(cache, plan, complete=False)


@pytest.mark.slow
def test_forty_kills_at_random_times_lose_and_spoil_nothing(cache: Path) -> None:
    plan = range(1000)
    cut_at_random(cache, plan, 40)
    halfway = check(cache, plan, complete=False)
    assert halfway is not None
    assert 0 < len(halfway) < len(plan)
    assert list((halfway.path / "tmp").iterdir()), "no kill came in the middle of a shard"
    job(cache, plan)
    store = check(cache, plan, complete=True)
    assert store is not None
    assert sum(record.rows for record in store.records()) == len(plan)  # nothing was made twice


def test_the_kills_notice_a_writer_that_publishes_the_record_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_first(monkeypatch, pause_s=0.005)
    with pytest.raises(DamagedShardError, match="No such file"):
        cut_at_random(cache, range(1000), 40)


def outcome(action: Callable[[], None]) -> StoreError | None:
    try:
        action()
    except StoreError as error:
        return error
    return None


@pytest.mark.slow
def test_an_error_in_any_file_operation_surfaces_and_leaves_whole_shards(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = range(3)
    surfaced = 0
    operations = count_operations(cache / "counted", plan, monkeypatch)
    for fail_at in range(1, operations + 1):
        here = cache / str(fail_at)
        number = (errno.EIO, errno.ENOSPC)[fail_at % 2]

        def fail(number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(commit, "os", FaultyOs(fail_at, fail))
            error = outcome(lambda here=here: job(here, plan))
        if error is not None:
            surfaced += 1
            assert os.strerror(number) in str(error)
        check(here, plan, complete=error is None)  # only removing a temporary file may fail quietly
        job(here, plan)
        check(here, plan, complete=True)
    assert surfaced > 0.9 * operations


def test_writers_racing_for_the_same_keys_make_each_visible_once(cache: Path) -> None:
    plan = range(40)

    def writer(seed: int) -> None:
        job(cache, random.Random(seed).sample(plan, len(plan)))

    children: list[int] = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            try:
                writer(seed)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    store = check(cache, plan, complete=True)
    assert store is not None
    records = store.records()
    assert sum(record.rows for record in records) > len(plan)  # they did race
    assert store.publish_shape() == records[-1].shard * SHARD_SIZE + records[-1].rows


class PowerLoss(FaultyOs):
    """Follows what a power cut could still take: bytes not fsynced, names in folders not fsynced.

    `unsafe` collects what was visible or acknowledged too early.
    """

    def __init__(self, cache: Path, skipped: Callable[[Path], bool] = lambda _: False) -> None:
        super().__init__()
        self.cache = cache
        self.skipped = skipped
        self.paths: dict[int, Path] = {}
        self.unsynced_bytes: set[Path] = set()
        self.unsynced_names: set[Path] = set()
        self.unsafe: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        follow = getattr(type(self), f"after_{name}", None)
        if follow is None:
            return real

        def operation(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            follow(self, result, *arguments)
            return result

        return operation

    def after_open(self, fd: int, path: Path, *_: Any) -> None:
        self.paths[fd] = path

    def after_write(self, _: int, fd: int, *__: object) -> None:
        self.unsynced_bytes.add(self.paths[fd])

    def after_fsync(self, _: None, fd: int) -> None:
        path = self.paths[fd]
        if not self.skipped(path):
            self.unsynced_bytes.discard(path)
            self.unsynced_names -= {name for name in self.unsynced_names if name.parent == path}

    def after_mkdir(self, _: None, path: Path) -> None:
        self.unsynced_names.add(path)

    def after_link(self, _: None, source: Path, target: Path) -> None:
        if source in self.unsynced_bytes:
            self.unsafe.append(f"{target} appeared before its bytes were durable")
            self.unsynced_bytes.add(target)
        if target.parent.name == "commits":
            lost = [str(path) for path in self.unsynced_names if path.parent.name != "tmp"]
            if lost or any("latents" in path.parts for path in self.unsynced_bytes):
                self.unsafe.append(f"{target} appeared before {lost} were durable")
        self.unsynced_names.add(target)

    after_replace = after_link

    def acknowledged(self) -> None:
        lost = [str(path) for path in self.unsynced_names if path.parent.name != "tmp"]
        if lost:
            self.unsafe.append(f"acknowledged before {lost} were durable")


def follow_job(cache: Path, monkeypatch: pytest.MonkeyPatch, skipped: Callable[[Path], bool]) -> list[str]:
    power = PowerLoss(cache, skipped)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "os", power)
        job(cache, range(5))
    power.acknowledged()
    return power.unsafe


def test_nothing_is_visible_or_acknowledged_before_it_would_survive_a_power_cut(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow_job(cache, monkeypatch, lambda _: False) == []


@pytest.mark.parametrize(
    "skipped",
    [Path.is_file, Path.is_dir, lambda path: path.name == "commits", lambda path: path.name == "c"],
    ids=["files", "folders", "commits", "payload folders"],
)
def test_the_power_cut_model_notices_a_missing_fsync(
    cache: Path, monkeypatch: pytest.MonkeyPatch, skipped: Callable[[Path], bool]
) -> None:
    assert follow_job(cache, monkeypatch, skipped) != []

"""gc beside writers takes nothing a commit names; gc, repair and export, interrupted, lose nothing and go on."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from theworld.pipeline.store.folder import LatentStore, StoreFormat, open_store
from theworld.pipeline.store.upkeep import repair as maintenance
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.transfer import export

from ..patience import eventually, patience
from .harness import (
    Cut,
    FaultyFileLayer,
    amount,
    broken,
    check,
    check_resumes,
    create,
    damage_in,
    files,
    finish,
    flip_bit,
    job,
    key,
    layer,
    start,
)
from .test_errors import TEMPORARY

GRACE_S = patience(2.0)
"""Far more than a writer needs from one step to the next, even on a busy machine."""


def plant_garbage(store: LatentStore, number: int) -> list[Path]:
    """What a writer that died left: a torn file, and a payload without a record."""
    torn = store.path / "tmp" / f"{number}-dead"
    orphan = store.payload_path(number)
    orphan.parent.mkdir(parents=True, exist_ok=True)
    for path in (torn, orphan):
        path.write_bytes(b"torn")
    return [torn, orphan]


def gc_beside_writers(
    cache: Path, format: StoreFormat, samples: int, grace_s: float, garbage: Sequence[Path] = ()
) -> str:
    """Let gc run again and again beside two writers, until the garbage is gone; what is wrong with their commits."""
    store = create(cache, format)
    plans = [range(samples), range(samples, 2 * samples)]
    writers = [start(lambda tell, plan=plan: job(cache, plan, format=format, tell=tell)) for plan in plans]

    def collect(_: Callable[[str], None]) -> None:
        while True:
            gc(store.path, grace_s=grace_s, apply=True)

    collector = start(collect)
    words: list[str] = []
    failed = [broken(lambda writer=writer: words.extend(finish(*writer))) for writer in writers]
    eventually(lambda: not any(path.exists() for path in garbage))
    finish(*collector, kill=True)
    acknowledged = {word for word in words if word != "sources"}
    return next(filter(None, failed), "") or broken(
        lambda: check(cache, range(2 * samples), format=format, acknowledged=acknowledged)
    )


def test_gc_beside_writers_loses_no_commit_and_takes_what_is_old(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    samples, began = amount("GC", 60), time.monotonic()
    store = create(cache, format)
    garbage = plant_garbage(store, 5) + plant_garbage(store, 3 * samples)
    assert gc_beside_writers(cache, format, samples, GRACE_S, garbage) == ""
    assert [path for path in garbage if path.exists()] == []
    figure(f"gc in a loop beside 2 writers, {format}: {samples} commits, 0 lost, {time.monotonic() - began:.1f} s")


def test_the_writers_notice_a_gc_without_grace(cache: Path, format: StoreFormat) -> None:
    assert any(gc_beside_writers(cache / str(turn), format, 100, -1.0) for turn in range(3))


def fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def interrupt_everywhere(prepared: Path, act: Callable[[Path], object], judge: Callable[[Path], None]) -> int:
    """At each file operation of `act` on a copy of `prepared`, cut it before, or let the operation fail.

    Long: both at each; quick: in turn, at every other one.

    Returns:
        How often.
    """
    counting = FaultyFileLayer()
    with layer(counting):
        act(copy_of(prepared, "counted"))
    times, long = 0, amount("ERRORS", 1) > 1
    for number in range(1, counting.count + 1, 1 if long else 2):
        for accident in (None, fail) if long else ((None, fail)[number // 2 % 2],):
            here = copy_of(prepared, f"{number}-{times}")
            faulty = FaultyFileLayer(number, accident)
            with layer(faulty), suppress(Cut):
                check_error(broken(lambda here=here: act(here)), faulty)
            judge(here)
            times += 1
    return times


def check_error(said: str, faulty: FaultyFileLayer) -> None:
    name, arguments = faulty.hit or ("nothing", ())
    harmless = name == "close" or (name == "unlink" and TEMPORARY.fullmatch(Path(arguments[0]).name) is not None)
    assert os.strerror(errno.EIO) in said or harmless, f"an error of {name} {arguments} was swallowed"


def copy_of(prepared: Path, name: str) -> Path:
    return Path(shutil.copytree(prepared, prepared.parent / name))


def spoil(cache: Path, format: StoreFormat) -> None:
    """A store with a damaged payload, a damaged record and garbage; shards 0 and 3 are right."""
    job(cache, range(8), format=format)
    store = open_store(cache)
    flip_bit(store.payload_path(1), random.Random(0))
    flip_bit(store.path / "commits" / "2.json", random.Random(0))
    plant_garbage(store, 9)


@pytest.mark.slow
def test_repair_and_gc_interrupted_before_any_file_operation_lose_nothing_and_run_again(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    spoil(cache / "spoiled", format)
    right = [key(number) for number in (0, 1, 6, 7)]

    def right_files(here: Path) -> list[bytes]:
        store = open_store(here, tolerate_damage=True)
        assert set(right) <= set(store.keys)
        store.read(right)
        paths = [path for n in (0, 3) for path in (store.path / "commits" / f"{n}.json", store.payload_path(n))]
        return [path.read_bytes() for path in paths]

    before = right_files(cache / "spoiled")

    def maintain(here: Path) -> None:
        (store,) = here.iterdir()
        repair(store, apply=True)
        gc(store, grace_s=-1.0, apply=True)

    def judge(here: Path) -> None:
        assert right_files(here) == before
        maintain(here)
        assert right_files(here) == before
        assert damage_in(open_store(here).path) == []
        check_resumes(here, range(8), format=format, twice=False)

    times = interrupt_everywhere(cache / "spoiled", maintain, judge)
    figure(f"repair and gc interrupted before a file operation, {format}: {times}, broken promises 0")
    assert times > 30


@pytest.mark.slow
def test_an_export_interrupted_before_any_file_operation_goes_on_where_it_stopped(
    cache: Path, figure: Callable[[str], None]
) -> None:
    plan = range(3)
    job(cache / "source", plan, format="zarr")
    source = open_store(cache / "source")
    before = files(source.path)
    (cache / "empty").mkdir()

    def convert(here: Path) -> None:
        export(source, here, format="webdataset")

    def judge(here: Path) -> None:
        check(here, plan, format="webdataset")
        convert(here)
        check(here, plan, format="webdataset", complete=True)
        assert job(here, plan, format="webdataset") == 0

    times = interrupt_everywhere(cache / "empty", convert, judge)
    figure(f"export interrupted before a file operation, zarr to webdataset: {times}, broken promises 0")
    assert files(source.path) == before
    assert times > 30


def test_the_interruptions_notice_a_repair_that_moves_the_payload_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two moves a record would stand there without what it names."""
    moves = maintenance._moves
    monkeypatch.setattr(maintenance, "_moves", lambda *found: (moves(*found)[0][::-1], moves(*found)[1]))
    spoil(cache / "spoiled", "zarr")

    def judge(here: Path) -> None:
        store = open_store(here, tolerate_damage=True)
        for number in store.shards:
            assert store.payload_path(number).exists()

    with pytest.raises(AssertionError):
        interrupt_everywhere(cache / "spoiled", lambda here: repair(next(here.iterdir()), apply=True), judge)

"""Power lost at any moment: nothing half-visible, nothing acknowledged lost, and the job resumes.

The jobs are recorded once and replayed as disk states (power.py); each state is laid out, judged, and resumed.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path

import pytest

from theworld.pipeline.files import atomic
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.store import writer as shard_writer
from theworld.pipeline.store.folder import StoreFormat

from .harness import FORMATS, SEED, Cut, amount, broken, check, check_resumes, files, job, layer, record_first
from .power import Disk, Recorder, State, beside, cut_at, states

PLAN = range(5)
HAPPENINGS = ("alone", "after a cut", "beside another")
Skipped = Callable[[Path], bool]


def record(
    root: Path, format: StoreFormat, happening: str, moment: float, skipped: Skipped = lambda _: False
) -> Recorder:
    """The log of a job alone, of one that resumes what a cut left at `moment` (0 to 1), or of two interleaved then."""
    number = 0
    if happening != "alone":
        number = int(moment * len(record(root, format, "alone", 0.0).log))
        shutil.rmtree(root)
    root.mkdir()
    recorder = Recorder(root, skipped)

    def run(plan: range = PLAN) -> None:
        job(root / "cache", plan, format=format, tell=recorder.acknowledge)

    with layer(recorder), numbered_names():
        if happening == "after a cut":
            cut_at(number, recorder)
            with suppress(Cut):
                run()
            recorder.interrupt = lambda _: None
        elif happening == "beside another":
            beside(number, recorder, lambda: run(PLAN[:3]))
        run()
    return recorder


@contextmanager
def numbered_names() -> Iterator[None]:
    """Temporary files get names in order instead of by chance: the same seed draws the same states."""
    numbers = count()
    before, atomic.secrets.token_hex = atomic.secrets.token_hex, lambda size: f"{next(numbers):0{2 * size}x}"
    try:
        yield
    finally:
        atomic.secrets.token_hex = before


def judge(state: State, here: Path, format: StoreFormat) -> str:
    """What is wrong with a disk state, laid out at `here`, or with resuming from it."""

    def verdict() -> None:
        # what of the sources is durable belongs to one plan; two interleaved ones have two
        acknowledged = {word for word in state.acknowledged if word.isdecimal() or word == "store"}
        check(here / "cache", PLAN, format=format, acknowledged=acknowledged)
        check_resumes(here / "cache", PLAN, format=format, twice=state.digest < "4")

    state.lay_out(here)
    try:
        return broken(verdict)
    finally:
        shutil.rmtree(here)


def logs(cache: Path, formats: tuple[StoreFormat, ...], draw: random.Random) -> Iterator[tuple[StoreFormat, Recorder]]:
    """Logs without end, each format and happening in turn."""
    number = 0
    while True:
        for format in formats:
            for happening in HAPPENINGS:
                root = cache / f"log{number}"
                yield format, record(root, format, happening, draw.random())
                shutil.rmtree(root)
                number += 1


@pytest.mark.slow
def test_no_state_a_power_cut_may_leave_breaks_a_promise(cache: Path, figure: Callable[[str], None]) -> None:
    wanted, draw, began = amount("STATES", 150), random.Random(SEED), time.monotonic()
    per_log = min(250, max(25, wanted // 100))
    tried, resumed_from_nothing, found, judged = 0, 0, list[str](), set[str]()
    for format, recorder in logs(cache, FORMATS, draw):
        candidates = list(states(recorder.log, 1 + per_log // 60, draw, judged))
        for state in draw.sample(candidates, min(per_log, len(candidates), wanted - tried)):
            found.append(judge(state, cache / "state", format))
            judged.add(state.digest)
            resumed_from_nothing += not state.files
            tried += 1
        if tried >= wanted:
            break
    figure(
        f"power cuts: {tried} different disk states, seed {SEED}, broken promises {sum(map(bool, found))}, "
        f"{time.monotonic() - began:.0f} s"
    )
    assert [fault for fault in found if fault] == []
    assert resumed_from_nothing < tried / 10


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_the_log_holds_every_write_of_a_job(cache: Path, format: StoreFormat, happening: str) -> None:
    """Else a state would be legal for a job that did less."""
    recorder = record(cache / "log", format, happening, 0.4)
    disk = Disk()
    for operation in recorder.log:
        disk.apply(operation)
    replayed, real = disk.best(), cache / "log"
    assert {name: len(content) for name, content in replayed.files.items()} == {
        name: size for name, (_, size) in files(real).items()
    }
    assert all((real / name).read_bytes() == content for name, content in replayed.files.items())
    assert replayed.folders == {str(path.relative_to(real)) for path in real.rglob("*") if path.is_dir()}


def is_payload_folder(path: Path) -> bool:
    return path.name in ("c", "shards")


@pytest.mark.parametrize(
    ("skipped", "broken_writer"),
    [
        (Path.is_file, nullcontext),
        (Path.is_dir, nullcontext),
        (lambda path: path.name == "commits", nullcontext),
        (is_payload_folder, nullcontext),
        (lambda _: False, record_first),
    ],
    ids=["no file fsync", "no folder fsync", "no fsync of commits", "no fsync of payload folders", "record first"],
)
def test_the_power_cuts_notice_a_broken_writer(
    cache: Path,
    format: StoreFormat,
    figure: Callable[[str], None],
    request: pytest.FixtureRequest,
    skipped: Skipped,
    broken_writer: Callable[[], AbstractContextManager[None]],
) -> None:
    draw = random.Random(SEED)
    with broken_writer():
        recorder = record(cache / "log", format, "alone", 0.0, skipped)
    candidates = list(states(recorder.log, 1, draw))
    found = [judge(state, cache / "state", format) for state in draw.sample(candidates, min(25, len(candidates)))]
    figure(f"power cuts, {request.node.callspec.id}: {sum(map(bool, found))} of {len(found)} states noticed")
    assert any(found)


@pytest.mark.slow
def test_the_power_cuts_notice_a_writer_that_relies_on_folders_another_one_made(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that exists is not yet durable: whoever made it may not have come to its fsync."""

    def sync_only_what_is_mine(
        place: Folder, temp: Path, name_of: Callable[[int], str], *, first: int, **_: str
    ) -> int:
        number = first
        while not make_folders_and_place(temp, place.path / name_of(number)):
            number += 1
        atomic.sync_folder((place.path / name_of(number)).parent)
        return number

    def make_folders_and_place(temp: Path, payload: Path) -> bool:
        atomic.make_folders(payload.parent)  # syncs the names it makes
        return atomic.place(temp, payload)

    monkeypatch.setattr(shard_writer, "place_payload", sync_only_what_is_mine)
    draw = random.Random(SEED)
    alone = record(cache / "alone", "zarr", "alone", 0.0).log
    found = dict.fromkeys(("alone", "beside another"), 0)
    for happening in found:
        for number, operation in enumerate(alone):
            if operation.kind == "mkdir" and "/latents/c/0" in operation.path:
                recorder = record(cache / "log", "zarr", happening, (number + 1.5) / len(alone))
                shutil.rmtree(cache / "log")
                candidates = list(states(recorder.log, 1, draw))
                found[happening] += sum(
                    bool(judge(state, cache / "state", "zarr")) for state in draw.sample(candidates, 10)
                )
    assert found["alone"] == 0
    assert found["beside another"] > 0

"""A job that meets trouble: memory, poison, signals; and what it tells people and programs meanwhile."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.behaviour.precompute.test_precompute import all_latents, config, make_images
from tests.command_line import theworld
from tests.miniatures.world_model import save_mini_world
from tests.patience import patience
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import Interrupted, RecipeError, StoreError, WorldModelError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.machine import is_out_of_memory
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import create_store, open_store
from theworld.pipeline.store.writer import ShardWriter
from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.inputs.locations import File
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.throughput import ThroughputLog
from theworld.precompute.job.run import Report, run_precompute
from theworld.precompute.job.scheduler import SINGLE_ATTEMPTS, WHOLE_ATTEMPTS, next_tries
from theworld.precompute.job.signals import signal_behind
from theworld.precompute.job.workers.pool import Task
from theworld.precompute.job.workers.worker import Worker, WorkerSetup
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld

CPU_WORDS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_world(tmp_path_factory.mktemp("world") / "mini")


Engine = Callable[[list[str]], None]


@pytest.fixture
def meets(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], list[int]]:
    """Let a rollout meet something first, given the keys of its batch; the sizes of all batches so far."""
    rollout = CosmosWorld.rollout

    def replace(accident: Engine) -> list[int]:
        sizes: list[int] = []

        def met(self: CosmosWorld, pixels: torch.Tensor, keys: list[str], recipe: object) -> torch.Tensor:
            sizes.append(len(keys))
            accident(keys)
            return rollout(self, pixels, keys, recipe)

        monkeypatch.setattr(CosmosWorld, "rollout", met)
        return sizes

    return replace


def events_of(file: Path) -> list[dict[str, object]]:
    events = [json.loads(line) for line in file.read_text().splitlines()]
    return [event for event in events if event["event"] != "alive"]  # which a slow machine has more of


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_WORDS), MemoryError()]
)
def test_the_batch_that_fitted_is_remembered_by_later_shards_and_later_runs(
    tmp_path: Path,
    world: Path,
    meets: Callable[[Engine], list[int]],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def small(keys: list[str]) -> None:
        if len(keys) > 2:
            raise error

    sizes = meets(small)
    images = make_images(tmp_path / "in", 5)
    settings = config(images, tmp_path / "cache", world, batch_size=8, shard_size=2, events=tmp_path / "events")
    report = run_precompute(settings)
    assert (report.written, report.bad) == (5, 0)
    assert sizes == [8, 4, 2, 2, 2]
    told = [(event["event"], event.get("batch_size")) for event in events_of(tmp_path / "events")]
    assert told.count(("backoff", 2)) == 1
    assert [record.facts["batch_size"] for record in open_store(report.store).records()] == [2, 2, 2]
    del sizes[:]
    capsys.readouterr()
    make_images(tmp_path / "in", 7)
    again = run_precompute(settings.model_copy(update={"seed": 1}), progress=Progress.on_stderr())  # another store
    assert again.written == 7
    assert set(sizes) == {2}
    assert "machines.json" in capsys.readouterr().err


def test_a_run_s_only_batch_is_not_filled_up_and_a_resumed_run_keeps_its_batches(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]]
) -> None:
    sizes = meets(lambda _: None)
    images = make_images(tmp_path / "in", 3)
    run_precompute(config(images, tmp_path / "whole", world, batch_size=None))
    assert sizes == [3]
    (images / "002.png").rename(tmp_path / "later.png")
    settings = config(images, tmp_path / "parts", world, batch_size=None)
    run_precompute(settings)
    (tmp_path / "later.png").rename(images / "002.png")
    report = run_precompute(settings)
    assert sizes == [3, 2, 3]
    assert [record.facts["batch_size"] for record in open_store(report.store).records()] == [2, 3]


def test_a_memory_of_another_shape_or_a_broken_file_decides_nothing(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    (tmp_path / "cache").mkdir()
    rows = ("3", '{"fitted": "1", "inputs": "x"}', '{"fitted": 1, "inputs": Infinity}')
    for broken in ("", "[]", *(f'{{"shown": {{"x": {{"y": {row}}}}}}}' for row in rows)):
        (tmp_path / "cache" / "machines.json").write_text(broken)
        assert ThroughputLog.load(tmp_path / "cache").records == {}
    report = run_precompute(config(images, tmp_path / "cache", world))
    throughput = ThroughputLog.load(tmp_path / "cache")
    throughput.note_batch(report.recipe, "a card", 2)
    assert not throughput.note_batch(report.recipe, "a card", 4)
    other = report.recipe.model_copy(update={"rollout_steps": 9})
    same = report.recipe.model_copy(update={"seed": 9, "fit": "pad", "dtype": "float32"})
    assert (throughput.fitted(other), throughput.fitted(same)) == ({}, {"a card": 2})


def test_a_sample_that_does_not_fit_alone_is_set_aside_and_the_others_are_done(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]]
) -> None:
    images = make_images(tmp_path / "in", 6)
    large = key_of_file(images / "003.png")

    def fits_all_but_one(keys: list[str]) -> None:
        if large in keys:
            raise torch.OutOfMemoryError("CUDA out of memory")

    meets(fits_all_but_one)
    report = run_precompute(config(images, tmp_path / "cache", world, batch_size=2))
    assert [(failure.source, failure.reason) for failure in report.failures] == [("003.png", "oom")]
    assert report.written == 5
    assert "1 oom" in report.summary()


def test_where_not_even_one_fits_the_run_says_so_and_blames_no_sample(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]]
) -> None:
    def never(_: list[str]) -> None:
        raise RuntimeError(CPU_WORDS)

    meets(never)
    with pytest.raises(WorldModelError, match=r"(?s)allocate memory.*--size"):
        run_precompute(config(make_images(tmp_path / "in", 24), tmp_path / "cache", world, shard_size=1))
    assert open_store(tmp_path / "cache").failures() == []


def test_words_about_memory_are_told_from_other_errors() -> None:
    assert all(
        map(is_out_of_memory, (torch.OutOfMemoryError("x: out of memory"), RuntimeError(CPU_WORDS), MemoryError()))
    )
    assert not any(map(is_out_of_memory, (RuntimeError("illegal memory access"), ValueError("out of memory"))))


@pytest.mark.parametrize("place", [0, 37, 63])
def test_one_poison_sample_of_64_costs_about_two_tasks_for_each_halving(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]], place: int
) -> None:
    images = make_images(tmp_path / "in", 64)
    poison = key_of_file(images / f"{place:03d}.png")

    def breaks(keys: list[str]) -> None:
        if poison in keys:
            raise RuntimeError("an illegal memory access was encountered")

    meets(breaks)
    settings = config(
        images, tmp_path / "cache", world, steps=0, shard_size=64, batch_size=8, events=tmp_path / "events"
    )
    report = run_precompute(settings)
    assert (report.written, [failure.source for failure in report.failures]) == (63, [f"{place:03d}.png"])
    tasks = [event for event in events_of(tmp_path / "events") if event["event"] in ("shard", "retry", "failure")]
    assert len(tasks) - 1 <= 2 * math.log2(64) + WHOLE_ATTEMPTS  # all but the one that had to be
    assert report.failures[0].attempts == SINGLE_ATTEMPTS


def test_a_task_is_tried_whole_by_itself_then_in_halves_and_a_sample_three_times() -> None:
    samples = tuple(Sample(str(i), File(str(i)), f"{i:032x}") for i in range(3))
    first = Task(samples, 7)
    assert not first.runs_alone
    [second] = next_tries(first) or []
    assert (second.samples, second.shard, second.runs_alone) == (samples, 7, True)
    halves = next_tries(second) or []
    assert [(half.samples, half.shard, half.runs_alone) for half in halves] == [
        (samples[:1], 7, True),
        (samples[1:], None, True),
    ]
    [last] = next_tries(halves[0]) or []
    assert next_tries(last) is None
    assert last.attempts + 1 == SINGLE_ATTEMPTS


def test_events_tell_a_program_what_a_person_sees(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 20)
    (images / "bad.png").write_text("no image")
    settings = config(images, tmp_path / "cache", world, events=tmp_path / "events")
    report = run_precompute(settings)
    events = events_of(tmp_path / "events")
    names = [event["event"] for event in events]
    assert names == ["begun", "plan", "started", "shard", "shard", "failure", "shard", "finished"]
    assert all(isinstance(event["time"], float) for event in events)
    assert (events[1]["todo"], events[1]["tokens"]) == (21, {"spatial": 32, "patch": 2})
    assert [event["remaining"] for event in events if event["event"] == "shard"] == [13, 5, 0]
    assert events[-1] | {"time": 0, "event": ""} == report.to_json() | {"time": 0, "event": ""}
    assert report.to_json()["reasons"] == {"format": 1}
    run_precompute(settings)
    assert [event["event"] for event in events_of(tmp_path / "events")[len(events) :]] == ["begun", "plan", "finished"]


def test_a_plan_gives_tokens_arithmetic_and_the_time_this_machine_took_before(
    tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(make_images(tmp_path / "in", 16), tmp_path / "cache", world)
    run_precompute(settings, progress=Progress.on_stderr())
    said = capsys.readouterr().err
    assert "tokens  32 per image; 2 in patches of 4x4, the default of train" in said
    assert "TFLOP per image; " in said
    assert "for a worker that reaches 50 % of the" in said
    wanted = settings.model_copy(update={"seed": 3, "dry_run": True})
    dry = run_precompute(wanted, progress=Progress.on_stderr())
    assert "measured on" in capsys.readouterr().err
    assert dry.to_json()["estimate_from"] == "measured"
    assert dry.to_json()["estimated_s"] > 0


def cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout


def test_failures_are_listed_counted_accepted_and_retried(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 2)
    (images / "bad\n.png").write_text("no image")
    (images / "empty.png").touch()
    flags = "--steps 1 --size 32x32 --denoise-steps 3 --compute-dtype float32 --in-process --device cpu"
    command = ["precompute", images, "--cache", tmp_path / "cache", "--world", world, *flags.split()]
    assert cli(*command)[0] == 3
    assert cli(*command, "--max-bad", 1)[0] == 3
    assert cli(*command, "--max-bad", 2)[0] == 0
    code, said = cli("cache", "failed", tmp_path / "cache")
    assert (code, len(said.splitlines())) == (0, 2)
    assert "format      bad\\n.png  (1 attempt)  bad" in said
    assert cli(*command, "--retry-failed")[0] == 3
    rows = {row["source"]: row for row in json.loads(cli("cache", "failed", tmp_path / "cache", "--json")[1])}
    assert (rows["bad\n.png"]["reason"], rows["bad\n.png"]["attempts"]) == ("format", 2)
    for name in ("bad\n.png", "empty.png"):
        (images / name).write_bytes((images / "000.png").read_bytes())
    assert cli(*command)[0] == 0
    # the name now stands for other content; the ledger still holds what failed, until that content is gone for good
    assert {row["source"] for row in json.loads(cli("cache", "failed", tmp_path / "cache", "--json")[1])} <= {
        "bad\n.png"
    }


def test_settings_that_contradict_or_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one"):
        PrecomputeConfig(in_process=True, address="10.0.0.1:6379")
    with pytest.raises(ValueError, match="in_process is one worker, and workers says 2"):
        PrecomputeConfig(in_process=True, workers=2)
    assert PrecomputeConfig(in_process=True, workers=1).workers == 1
    with pytest.raises(ValueError, match="scenes are made where no images are given"):
        PrecomputeConfig(images=tmp_path, scenes=30)
    with pytest.raises(RecipeError, match=r"denoise_steps.*got 0"):  # and not the card's own
        run_precompute(PrecomputeConfig(cache=tmp_path / "c", denoise_steps=0))
    report: Report | None = None
    with pytest.raises(ValueError, match="--events"):
        report = run_precompute(PrecomputeConfig(cache=tmp_path / "c", events=tmp_path / "no" / "events"))
    assert report is None
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_text_is_told_all_the_same(tmp_path: Path, world: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    (images / os.fsdecode(b"\xff\x1b[2J.png")).write_text("no image")
    flags = "--steps 1 --size 32x32 --denoise-steps 3 --compute-dtype float32 --in-process --device cpu"
    command = ["precompute", images, "--cache", tmp_path / "cache", "--world", world, *flags.split()]
    done = theworld(*command)
    assert done.code == 3, done.stderr
    assert b"\xff" + rb"\x1b[2J.png" in done.stdout  # a script gets the bytes of the name
    assert b"\x1b" not in done.stdout
    absent = os.fsdecode(b"absent\xff")
    done = theworld("precompute", absent)
    assert done.code == 2, done.stderr
    assert rb"no folder or image at absent\udcff" in done.stderr


def test_the_summary_counts_inputs_that_are_alike_once_and_tells_nothing_made_from_nothing_to_do(
    tmp_path: Path, world: Path
) -> None:
    images = make_images(tmp_path / "in", 2)
    (images / "copy.png").write_bytes((images / "000.png").read_bytes())
    settings = config(images, tmp_path / "cache", world)
    run_precompute(settings)
    assert "nothing to do: 2 of 2 images have their latents; 1 more share them" in run_precompute(settings).summary()
    for file in images.iterdir():
        file.write_text("no image")
    summary = run_precompute(settings).summary()
    assert "none of 1 rollouts could be made" in summary
    assert "there are no others; --retry-failed tries these again" in summary
    assert "next:  theworld train" in summary  # what was made before is still there
    summary = run_precompute(config(images, tmp_path / "empty", world)).summary()
    assert summary.endswith("the store is empty, so there is nothing to train on yet")


def test_in_process_shows_where_a_world_model_breaks_and_once(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_: list[str]) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    meets(breaks)
    report = run_precompute(config(make_images(tmp_path / "in", 1), tmp_path / "cache", world))
    assert report.failures[0].attempts == SINGLE_ATTEMPTS
    [warning] = [line for line in caplog.messages if "Traceback" in line]
    assert warning.startswith("a task failed:\n    Traceback")
    assert "in breaks" in warning


def test_in_process_a_full_disk_is_said_once_and_in_words_as_with_ray(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StoreError("cannot write to the store: No space left on device")

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(StoreError, match="No space left"):
        run_precompute(config(make_images(tmp_path / "in", 1), tmp_path / "cache", world))
    assert not [line for line in caplog.messages if "Traceback" in line]


def test_a_writer_that_ran_out_of_main_memory_once_costs_no_input(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add, errors = ShardWriter.add, [MemoryError()]

    def added(self: ShardWriter, key: str, latent: NDArray[Any]) -> None:
        if errors:
            raise errors.pop()
        add(self, key, latent)

    monkeypatch.setattr(ShardWriter, "add", added)
    report = run_precompute(config(make_images(tmp_path / "in", 2), tmp_path / "cache", world))
    assert (report.written, report.failures, report.work.retries) == (2, (), 1)
    assert "a task ran out of main memory; it is tried again" in caplog.messages


def test_two_shards_in_one_worker_are_what_each_is_alone_and_share_the_world_model_in_turns(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]]
) -> None:
    images = make_images(tmp_path / "in", 16)
    settings = config(images, tmp_path / "a", world)
    reference = run_precompute(settings)
    store = create_store(tmp_path / "b", reference.recipe, open_store(reference.store).spec, label="two", shard_size=8)
    at_work = threading.Lock()

    def alone(_: list[str]) -> None:
        assert at_work.acquire(blocking=False)
        at_work.release()

    meets(alone)
    one = Worker(WorkerSetup(world_folder=str(world), store=str(store.path), device="cpu", batch_size=4))
    with ThreadPoolExecutor(2) as threads:
        todo = reference.plan.todo
        first, second = (threads.submit(one.process, part, n) for n, part in enumerate((todo[:8], todo[8:])))
        assert (first.result().written, second.result().written) == (8, 8)
    store.refresh()
    assert {key: store.read([key])[0].tobytes() for key in store.keys} == all_latents(reference)
    assert [(record.shard, record.facts["batch_size"]) for record in store.records()] == [(0, 4), (1, 4)]


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2], ids=lambda n: n.name
)
def test_at_a_signal_the_batch_in_hand_ends_and_the_short_shard_is_committed(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]], number: signal.Signals
) -> None:
    def second(_: list[str]) -> None:
        if len(sizes) == 2:
            os.kill(os.getpid(), number)

    sizes = meets(second)
    before = signal.getsignal(number)
    images = make_images(tmp_path / "in", 6)
    settings = config(images, tmp_path / "cache", world, shard_size=6, batch_size=2, events=tmp_path / "events")
    with pytest.raises(Interrupted, match=rf"interrupted by {number.name}: 4 rollouts were committed .* 2 remain"):
        run_precompute(settings)
    assert signal.getsignal(number) is before
    assert events_of(tmp_path / "events")[-1]["exit_code"] == 75
    again = run_precompute(settings)
    assert again.written == 2
    assert [record.rows for record in open_store(again.store).records()] == [4, 2]


def test_a_signal_during_the_last_batch_ends_a_run_that_is_done(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]]
) -> None:
    meets(lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert run_precompute(config(make_images(tmp_path / "in", 2), tmp_path / "cache", world)).written == 2


def test_inputs_that_were_hashed_before_a_signal_are_not_hashed_again(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, read = make_images(tmp_path / "in", 6), File.read
    for path in images.iterdir():
        os.utime(path, (0, 0))
    names: list[str] = []

    def third(self: File, limit: int) -> bytes:
        names.append(self.path)
        if len(names) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, limit)

    monkeypatch.setattr(File, "read", third)
    monkeypatch.setattr("theworld.pipeline.files.hash_cache._RACY_NS", 0)
    settings = config(images, tmp_path / "cache", world)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run_precompute(settings)
    assert len(names) == 3
    before = set(names[:2])
    del names[:]
    with pytest.raises(Interrupted):
        run_precompute(settings)
    assert not before & set(names)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_ignored(
    tmp_path: Path, world: Path, meets: Callable[[Engine], list[int]], number: signal.Signals
) -> None:
    meets(lambda _: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_IGN)  # as nohup does, or a script for what it starts with &
    try:
        assert run_precompute(config(make_images(tmp_path / "in", 4), tmp_path / "c", world, batch_size=1)).written == 4
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_shard_that_takes_its_time_is_committed_and_the_rest_of_its_task_goes_on(
    tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theworld.precompute.job.workers.worker.MOST_TASK_S", 0.0)
    report = run_precompute(config(make_images(tmp_path / "in", 5), tmp_path / "cache", world, batch_size=2))
    assert report.written == 5
    assert [record.rows for record in open_store(report.store).records()] == [2, 2, 1]


def test_a_signal_is_found_behind_the_error_that_compiled_code_makes_of_it() -> None:
    stop = Interrupted("interrupted by SIGTERM")
    error = SystemError("returned a result with an exception set")
    assert signal_behind(error) is None
    error.__cause__ = stop
    assert signal_behind(error) is stop
    assert signal_behind(stop) is stop


STUBBORN = """
import hashlib, sys, time
from theworld.precompute.job import signals
signals._ECHO_S = 0.0
with signals.Signals().caught():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("leaving", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes of compiled code, where Python handles no signal
"""


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_run_that_takes_its_time_to_stop(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for word in ("ready", "leaving"):
                assert process.stdout.readline().strip() == word
                os.kill(process.pid, number)
            _, said = process.communicate(timeout=patience(30))
        finally:
            process.kill()
    assert process.returncode == 75
    assert "second signal" in said

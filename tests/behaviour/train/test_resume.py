"""A training that is ended goes on as if it had not been, bit by bit, or says why it cannot."""

import errno
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.faults.harness import finish, start
from tests.miniatures.training import StopAt, lay_out, learned, same, settings
from theworld.pipeline.errors import ConfigError, Interrupted, RunError, StoreLockedError
from theworld.pipeline.progress import Progress
from theworld.train.reader.model import TheWorld, WorldOutput
from theworld.train.runs import partial as unfinished
from theworld.train.runs.folder import load_run, save_run
from theworld.train.runs.meta import read_meta
from theworld.train.runs.partial import find_partial, open_partial, read_facts, resumed_config
from theworld.train.training import checkpoint as checkpoints
from theworld.train.training.signals import Stop
from theworld.train.training.train import train


@pytest.fixture
def house(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


class Heard(Progress):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say

    def about(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lm", "cache"}


def go_on(path: Path, **changes: Any) -> Path:
    return train(resumed_config(path, changes), resume=path).run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch": 2, "group_by_length": True},
        {"validate_every": 2},
        {"gradient_checkpointing": True, "arm": "text"},
        {"shuffle": "blocks", "shuffle_window": 1},
    ],
    ids=["plain", "pieces", "validated", "checkpointed", "blocks"],
)
def test_a_training_interrupted_again_and_again_is_the_one_that_was_not(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    house = lay_out(tmp_path, validation=3)
    train(settings(house, out=house / "straight", **changes))
    config = settings(house, **changes)
    with pytest.raises(Interrupted, match=r"after update 1 \(SIGTERM\); run `theworld train --resume .*run\.partial`"):
        train(config, stop=StopAt(1))
    assert names(house) == {"straight", "run.partial"}
    with pytest.raises(Interrupted, match="after update 4") as caught:
        train(resumed_config(house / "run.partial", {}), resume=house / "run.partial", stop=StopAt(3))
    assert caught.value.exit_code == 75
    assert go_on(house / "run.partial") == house / "run"
    assert names(house) == {"straight", "run"}
    assert same(house / "straight", house / "run")
    assert json.loads((house / "run" / "metrics.json").read_text())["resumed"] == 2


def test_a_run_states_its_shuffle_and_a_training_is_resumed_with_its_own(house: Path) -> None:
    def shuffles(run: Path) -> tuple[str, str]:
        files = [json.loads((run / name).read_text()) for name in ("metrics.json", "theworld.json")]
        return files[0]["shuffle"], files[1]["config"]["shuffle"]

    assert shuffles(train(settings(house, out=house / "usual")).run) == ("full", "full")
    with pytest.raises(Interrupted):
        train(settings(house, shuffle="blocks", shuffle_window=2), stop=StopAt(2))
    with pytest.raises(ConfigError, match="shuffle 'blocks' there, 'full' here"):
        resumed_config(house / "run.partial", {"shuffle": "full"})
    assert shuffles(go_on(house / "run.partial")) == ("blocks of 2 shards", "blocks")


def test_the_comparison_notices_another_dropout(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with random numbers that go on instead of following from the update, it would."""
    train(settings(house, out=house / "straight"))
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(3))
    monkeypatch.setattr("theworld.train.training.loop.seed_of", lambda *_: 1)
    go_on(house / "run.partial")
    assert not same(house / "straight", house / "run")


def test_a_checkpoint_holds_numbers_and_json_and_nothing_that_could_run(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    assert names(house / "run.partial") == {"training.json", "checkpoint.safetensors"}
    held = checkpoints.read_checkpoint(house / "run.partial" / "checkpoint.safetensors")
    trained = {name.rpartition("/")[0] for name in held.part("optimizer")}
    assert trained == held.part("weights").keys()
    assert all("lora_" in name or name.startswith("reader.") for name in trained)  # the frozen model is not in it
    json.dumps(held.state)


def test_a_killed_training_is_found_again_without_a_name(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    with pytest.raises(RunError, match="no unfinished training under runs/"):
        find_partial()
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(settings(house, out=None), stop=StopAt(2))
    with pytest.raises(RunError, match=r"runs/1\.partial, runs/2\.partial are unfinished: name one"):
        find_partial()
    assert go_on(find_partial(Path("runs/2"))) == Path("runs/2")
    assert go_on(find_partial()) == Path("runs/1")
    with pytest.raises(RunError, match="is finished: there is nothing to resume"):
        find_partial(Path("runs/1"))
    assert names(house / "runs") == {"1", "2"}


def test_a_killed_training_without_a_checkpoint_begins_anew(house: Path) -> None:
    train(settings(house, out=house / "straight"))

    class Die(Stop):
        @property
        def signal_name(self) -> str:  # type: ignore[override]
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        @signal_name.setter
        def signal_name(self, _: str) -> None: ...

    child = start(lambda _: train(settings(house), stop=Die()))
    with pytest.raises((AssertionError, IndexError)):
        finish(*child)
    assert names(house / "run.partial") == {"training.json"}
    assert same(house / "straight", go_on(house / "run.partial"))


def test_other_settings_are_refused_by_name_and_those_that_change_nothing_are_not(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    path = house / "run.partial"
    with pytest.raises(ConfigError, match=r"learning_rate 0\.002 there, 0\.1 here; seed 0 there, 3 here"):
        resumed_config(path, {"learning_rate": 0.1, "seed": 3, "train_steps": 8})
    with pytest.raises(ConfigError, match="train_steps 8 there, 9 here"):
        resumed_config(path, {"train_steps": 9})
    (house / "cache").rename(house / "moved")
    changes = {"store": house / "moved", "questions": house / "moved" / "questions.jsonl", "checkpoint_every": 2}
    assert go_on(path, **changes) == house / "run"
    assert Path(read_meta(house / "run").store.path).parent == house / "moved"


def test_other_questions_than_it_was_begun_with_are_refused(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    questions = house / "cache" / "questions.jsonl"
    questions.write_text(questions.read_text().replace("where is the ball now?", "where is the ball?"))
    with pytest.raises(RunError, match="was begun on questions with the SHA-256"):
        go_on(house / "run.partial")


def test_a_name_in_use_is_not_taken_twice_and_one_process_at_a_time_goes_on(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    with pytest.raises(RunError, match=r"run\.partial is there already.*--resume"):
        train(settings(house, lm="nowhere"))  # said before anything is loaded
    path = house / "run.partial"
    facts = read_facts(path)
    with (
        open_partial(facts, None, resume=path, writes=True, say=print),
        pytest.raises(StoreLockedError, match="another process trains"),
    ):
        go_on(path)
    assert go_on(path) == house / "run"


def test_a_damaged_checkpoint_is_named_and_not_trained_from(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    file = house / "run.partial" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunError, match="its bytes have changed"):
        go_on(house / "run.partial")
    file.write_bytes(content[:100])
    with pytest.raises(RunError, match="cannot be read"):
        go_on(house / "run.partial")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    house: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    train(settings(house, out=house / "straight"))
    real, seen, heard = checkpoints.replace, list[bytes](), Heard()

    def full(folder: Path, target: Path, content: bytes, **options: Any) -> None:
        if target.name == "checkpoint.safetensors" and len(seen) in (2, 3):
            seen.append(target.read_bytes())
            raise OSError(number, os.strerror(number))
        real(folder, target, content, **options)
        seen.append(target.read_bytes())

    monkeypatch.setattr(checkpoints, "replace", full)
    train(settings(house, checkpoint_every=1), progress=heard)
    assert seen[1] == seen[2] == seen[3] != seen[4], "the last good one was not kept"
    told = heard.about("no checkpoint at update")
    assert [f"at update {n}" in line for n, line in zip((3, 4), told, strict=True)] == [True] * 2
    assert "the last one is kept, training goes on. Free some space" in told[0]
    assert json.loads((house / "run" / "metrics.json").read_text())["checkpoints"] == 5
    assert same(house / "straight", house / "run")


def test_an_error_leaves_the_checkpoint_and_says_so(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings(house, out=house / "straight"))
    heard = Heard()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("theworld.train.training.train.save_run", no_space)
        with pytest.raises(OSError, match="No space"):
            train(settings(house, checkpoint_every=3), progress=heard)
    assert "run.partial holds the last checkpoint; `theworld train --resume" in heard.lines[-1]
    assert same(house / "straight", go_on(house / "run.partial"))


def test_a_finished_run_is_kept_where_its_name_was_taken_meanwhile(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_be_late(folder: Path, *arguments: Any) -> None:
        save_run(folder, *arguments)
        (house / "run").mkdir()
        (house / "run" / "other").touch()

    monkeypatch.setattr("theworld.train.training.train.save_run", save_and_be_late)
    with pytest.raises(RunError, match=r"cannot name the finished run .*run\.partial/run: move it"):
        train(settings(house, train_steps=2))
    assert load_run(house / "run.partial" / "run", lm=str(house / "lm"), device="cpu").meta.config["train_steps"] == 2


def test_other_libraries_than_it_was_begun_with_are_said(house: Path) -> None:
    with pytest.raises(Interrupted):
        train(settings(house), stop=StopAt(2))
    file, heard = house / "run.partial" / "training.json", Heard()
    about = json.loads(file.read_text())
    about["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(about))
    train(resumed_config(house / "run.partial", {}), resume=house / "run.partial", progress=heard)
    assert len(heard.about("was begun with torch 1.0: the results will not be the same bit by bit")) == 1


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: set[int], value: float = math.nan) -> None:
    """Make the loss of some updates, counted from 1, not finite."""
    forward, count = TheWorld.forward, [0]

    def poison(self: TheWorld, *args: Any, **kwargs: Any) -> WorldOutput:
        output = forward(self, *args, **kwargs)
        count[0] += 1
        return WorldOutput(output.loss * value if count[0] in bad else output.loss, output.logits)

    monkeypatch.setattr(TheWorld, "forward", poison)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused_counted_and_named(
    house: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    heard, kept = Heard(), []
    write = checkpoints.write_checkpoint

    def keep(path: Path, checkpoint: checkpoints.Checkpoint) -> None:
        kept.append(checkpoint)
        write(path, checkpoint)

    monkeypatch.setattr("theworld.train.training.loop.write_checkpoint", keep)
    poisoned(monkeypatch, {4, 5}, value)
    train(settings(house, checkpoint_every=1), progress=heard)
    before, at_5, after = (kept[n].part("weights") for n in (2, 4, 5))
    assert all(torch.equal(before[name], at_5[name]) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    moments = [kept[n].part("optimizer") for n in (2, 4)]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])
    text = (house / "run" / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in metrics.json"))
    assert metrics["refused_updates"] == 2
    assert [entry["update"] for entry in metrics["refused"]] == [4, 5]
    assert all(key in heard.about("refused")[0] for key in metrics["refused"][0]["images"][:3])
    assert all(tensor.isfinite().all() for tensor in learned(house / "run").values())


def test_too_many_in_a_row_end_the_training_and_keep_the_checkpoint(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {4, 5, 6, 7, 8})
    with pytest.raises(RunError, match=r"up to update 6, 3 updates in a row .* Lower learning_rate"):
        train(settings(house, max_bad_steps=3, checkpoint_every=3))
    assert names(house / "run.partial") == {"training.json", "checkpoint.safetensors"}


def test_validation_keeps_the_best_weights_and_may_end_early(tmp_path: Path) -> None:
    house = lay_out(tmp_path, validation=3)
    train(settings(house, train_steps=60, learning_rate=0.2, validate_every=2, patience=2))  # which soon overshoots
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    losses = {entry["step"]: entry["loss"] for entry in metrics["validation"]}
    assert metrics["stopped_early"]
    assert metrics["train_steps"] < 60
    assert metrics["best_step"] == min(losses, key=losses.__getitem__) == metrics["train_steps"] - 4
    train(settings(house, out=house / "until", train_steps=60, learning_rate=0.2, validate_every=2))
    assert not same(house / "run", house / "until")


def test_patience_needs_something_to_look_at(house: Path) -> None:
    with pytest.raises(ValueError, match="set validate_every"):
        settings(house, patience=2)
    with pytest.raises(Exception, match="validation"):
        train(settings(house, validate_every=1))
    assert names(house) == set()


def test_the_first_signal_waits_for_the_update_and_the_handlers_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop().on_signals() as stop:
        stop.wait_for_updates()
        assert not stop.signal_name
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        signal.raise_signal(signal.SIGTERM)  # SLURM signals a whole job, and torchrun in it passes it on
        signal.raise_signal(signal.SIGHUP)
    assert capfd.readouterr().err.count("a second signal stops at once") == 1
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_of_a_scheduler_or_a_closed_terminal_ends_a_training_too(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stop().on_signals() as stop:
        stop.wait_for_updates()
        signal.raise_signal(number)
        assert stop.signal_name == number.name
    monkeypatch.setenv("RANK", "0")
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by a script, for torchrun, which would die of it
    with Stop().on_signals() as stop:
        stop.wait_for_updates()
        signal.raise_signal(signal.SIGUSR1)
        assert stop.signal_name == "SIGUSR1"
    signal.signal(signal.SIGUSR1, before)
    with Stop().on_signals() as stop:
        stop.wait_for_updates()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of a launcher, which hears Ctrl-C as well
        assert stop.signal_name == "SIGINT"


@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_a_training_is_prepared_ends_it_at_once_and_leaves_nothing(
    house: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, there = signal.getsignal(number), names(house)

    def interrupted(*_: object, **__: object) -> NoReturn:
        try:
            signal.raise_signal(number)
        except Exception:  # as a reader that counts bad records
            pytest.fail("the signal was taken for an error of a record")
        pytest.fail("the training went on")

    monkeypatch.setattr("theworld.train.training.train.encode_split", interrupted)
    said = rf"stopped while the training was prepared \({number.name}\); nothing is lost"
    with pytest.raises(Interrupted, match=said), Stop().on_signals() as stop:
        train(settings(house, out=house / "early"), stop=stop)
    assert signal.getsignal(number) == before
    assert names(house) == there


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with Stop().on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.signal_name
    finally:
        signal.signal(signal.SIGHUP, before)


def test_trainings_side_by_side_on_one_store_give_what_each_gives_alone(house: Path) -> None:
    for seed in (1, 2):
        train(settings(house, out=house / f"alone{seed}", seed=seed))
    both = [
        start(lambda _, seed=seed: train(settings(house, out=house / f"beside{seed}", seed=seed))) for seed in (1, 2)
    ]
    for child in both:
        finish(*child)
    assert all(same(house / f"alone{seed}", house / f"beside{seed}") for seed in (1, 2))


def test_unnamed_trainings_side_by_side_take_different_numbers(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    both = [start(lambda _: train(settings(house, out=None, train_steps=2))) for _ in range(2)]
    for child in both:
        finish(*child)
    assert names(house / "runs") == {"1", "2"}
    assert unfinished.PARTIAL not in str(names(house / "runs"))

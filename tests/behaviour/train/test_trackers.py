"""Who follows a training is told the same of each update, once, in one run, however often the training was ended.

The libraries themselves write and their files are read back, where they are installed; a stand-in, which writes down
what it is told, shows the same of what is ours anywhere. W&B runs offline: what its server makes of it is not seen.
"""

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.train.test_resume import Heard
from tests.faults.harness import finish, start
from tests.miniatures.training import StopAt, lay_out, settings
from tests.patience import patience
from theworld.pipeline.errors import ConfigError, Interrupted, RunError
from theworld.train.runs.partial import resumed_config
from theworld.train.training.signals import Stop
from theworld.train.training.trackers import NAMES
from theworld.train.training.train import train

Told = dict[int, dict[str, float]]
"""Update -> what was said of it."""
Run = tuple[str, dict[str, Any], Told]
"""Name, settings and points of one run."""

STAND_IN = """
import json, pathlib

class Run:
    def __init__(self, said):
        self.file = pathlib.Path("told.jsonl").open("a")
        self.write({"begin": said})

    def write(self, line):
        self.file.write(json.dumps(line) + "\\n")
        self.file.flush()

    def log(self, values, step):
        if pathlib.Path("broken").exists():
            raise ConnectionError("nobody is there")
        self.write({"step": step, "values": values})

    def finish(self):
        self.write({"end": True})

def init(**said):
    print("a library's own words")
    if pathlib.Path("locked").exists():
        raise PermissionError("who are you?")
    return Run(said)
"""


class KillAt(Stop):
    """The process dies during its n-th update."""

    def __init__(self, update: int) -> None:
        self._left = update

    @property
    def signal_name(self) -> str:  # type: ignore[override]
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return ""


def of_stand_in(house: Path) -> list[Run]:
    runs: dict[str, tuple[dict[str, Any], Told]] = {}
    for line in map(json.loads, (house / "told.jsonl").read_text().splitlines()):
        if "begin" in line:
            now = line["begin"]["name"]
            assert line["begin"]["project"] == "theworld"
            runs.setdefault(now, (line["begin"]["config"], {}))
        elif "step" in line:
            assert line["step"] not in runs[now][1], "told twice"
            runs[now][1][line["step"]] = line["values"]
    return [(name, *rest) for name, rest in runs.items()]


def of_tensorboard(house: Path) -> list[Run]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = [path for path in (house / "run", house / "run.partial") if path.exists()]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    told: Told = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in told.setdefault(event.step, {}), "told twice"
            told[event.step][tag] = event.value
    [text] = events.Tensors("config/text_summary")[-1].tensor_proto.string_val
    return [("", json.loads(text.decode().removeprefix("```json\n").removesuffix("\n```")), dict(sorted(told.items())))]


def records(file: Path) -> Iterator[Any]:
    """Of an offline run's file: LevelDB's log format behind 7 bytes, a protocol buffer each."""
    kind_of_record = import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = kind_of_record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def of_wandb(house: Path) -> list[Run]:
    """As `wandb sync` joins them: files of one id, in the order of their beginning."""
    runs: dict[str, tuple[str, dict[str, Any], Told]] = {}
    for file in sorted(house.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            if record.HasField("run"):
                assert record.run.project == "theworld"
                _, config, told = runs.setdefault(record.run.run_id, (record.run.display_name, {}, {}))
            if record.HasField("config"):
                config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
            if record.HasField("history"):
                point = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                assert point["_step"] not in told, "told twice"
                told[point["_step"]] = {name: value for name, value in point.items() if not name.startswith("_")}
    return list(runs.values())


def of_trackio(house: Path) -> list[Run]:
    with sqlite3.connect(house / "trackio" / "theworld.db") as table:
        runs: dict[str, Told] = {}
        for run, step, values in table.execute("select run_id, step, metrics from metrics order by id"):
            told = runs.setdefault(run, {})
            assert step not in told, "told twice"
            told[step] = json.loads(values)
        said = {run: (name, json.loads(text)) for run, name, text in table.execute(
            "select run_id, run_name, config from configs")}  # fmt: skip
    return [(*said[run], told) for run, told in runs.items()]


READERS: dict[str, Callable[[Path], list[Run]]] = {
    "stand-in": of_stand_in, "tensorboard": of_tensorboard, "wandb": of_wandb, "trackio": of_trackio
}  # fmt: skip


def there(name: str) -> bool:
    return name == "stand-in" or ((spec := find_spec(name)) is not None and spec.origin is not None)


TRACKERS = [
    pytest.param(name, marks=pytest.mark.skipif(not there(name), reason=f"{name} is not installed")) for name in READERS
]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package called trackio that writes down what it is told, in the working folder."""
    package = folder / "packages" / "trackio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "trackio", raising=False)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small training's place, which is the working folder, and where the trackers write."""
    monkeypatch.chdir(lay_out(tmp_path, validation=3))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def told_by(tracker: str, house: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings that make `tracker` follow; trainings then run in processes of their own."""
    if tracker == "stand-in":
        stand_in(house, monkeypatch)
    return {"report_to": "trackio" if tracker == "stand-in" else tracker, "validate_every": 4}


def in_a_process(work: Callable[[], object], *, killed: bool = False) -> None:
    child, pipe = start(lambda _: work())
    if killed:
        os.waitpid(child, 0)
        os.close(pipe)
    else:
        finish(child, pipe)


def check(run: Run, house: Path) -> None:
    """Every point of metrics.json, under the names all trackers share, and the settings it was made with."""
    name, config, told = run
    assert name in ("", f"run-{name.removeprefix('run-')}")
    assert config["report_to"] in READERS
    assert (config["learning_rate"], config["batch_size"], config["train_steps"]) == (2e-3, 5, 8)
    assert config["store"] == str(house / "cache")
    assert config["lm_identity"].startswith("sha256:")
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    assert list(told) == [point["step"] for point in metrics["loss"]] == list(range(1, 9))
    for point in metrics["loss"]:
        there = told[point["step"]]
        assert there["train/loss"] == pytest.approx(point["loss"], rel=1e-6)
        assert there["train/learning_rate"] == pytest.approx(point["learning_rate"], rel=1e-6)
        assert there["train/tokens_per_second"] > 0
        assert set(there) <= set(NAMES.values())
    looks = {update: values["eval/loss"] for update, values in told.items() if "eval/loss" in values}
    assert looks == pytest.approx({look["step"]: look["loss"] for look in metrics["validation"]}, rel=1e-6)
    assert list(looks) == [4, 8]
    assert [told[look["step"]]["eval/accuracy"] for look in metrics["validation"]] == pytest.approx(
        [look["accuracy"] for look in metrics["validation"]], rel=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_has_each_update_of_a_training_once(
    tracker: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told_by(tracker, house, monkeypatch)
    in_a_process(lambda: train(settings(house, **said)))
    [run] = READERS[tracker](house)
    check(run, house)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_training_that_was_stopped_and_killed_stays_one_run(
    tracker: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, path = told_by(tracker, house, monkeypatch), house / "run.partial"

    def stopped() -> None:
        with pytest.raises(Interrupted, match="after update 3"):
            train(settings(house, **said), stop=StopAt(3))

    in_a_process(stopped)
    in_a_process(lambda: train(resumed_config(path, {}), resume=path, stop=KillAt(4)), killed=True)  # in update 7
    [(_, _, told)] = READERS[tracker](house)
    assert max(told) >= (3 if tracker in ("wandb", "trackio") else 6)  # these two write later than they are told
    in_a_process(lambda: train(resumed_config(path, {}), resume=path))
    [run] = READERS[tracker](house)
    check(run, house)


def test_who_follows_from_the_middle_on_is_told_the_beginning(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, path = told_by("stand-in", house, monkeypatch), house / "run.partial"
    with pytest.raises(Interrupted):
        train(settings(house, **{**said, "report_to": "none"}), stop=StopAt(3))
    assert not (house / "told.jsonl").exists()
    train(resumed_config(path, {"report_to": "trackio"}), resume=path)
    [(_, _, told)] = of_stand_in(house)
    assert list(told) == list(range(1, 9))


def test_trainings_of_one_name_are_two_runs(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {**told_by("stand-in", house, monkeypatch), "train_steps": 2}
    train(settings(house, **said))
    (house / "run").rename(house / "before")
    train(settings(house, **said))
    one, other = of_stand_in(house)
    assert one[0] != other[0]
    assert one[2].keys() == other[2].keys() == {1, 2}


def test_what_a_library_prints_stays_out_of_the_results(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(house, **told_by("stand-in", house, monkeypatch), train_steps=2))
    said = capsys.readouterr()
    assert said.out == ""
    assert "a library's own words" in said.err


def test_a_tracker_that_fails_on_the_way_is_named_once_and_costs_nothing(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, heard = told_by("stand-in", house, monkeypatch), Heard()
    (house / "broken").touch()
    train(settings(house, **said), progress=heard)
    [line] = heard.about("follows no longer")
    assert "trackio follows no longer (ConnectionError: nobody is there); training goes on" in line
    assert (house / "run" / "theworld.json").exists()


def test_a_tracker_that_does_not_begin_is_said_before_the_first_update(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = told_by("stand-in", house, monkeypatch)
    (house / "locked").touch()
    with pytest.raises(ConfigError, match=r"trackio: it did not begin a run \(PermissionError: who are you\?\)"):
        train(settings(house, **said))
    assert not list(house.glob("run*"))


@pytest.mark.parametrize(
    ("name", "install"),
    [("tensorboard", r"pip install -e '\.\[tracking\]'"), ("wandb", "pip install wandb"), ("trackio", "'pillow>=13'")],
)
def test_an_absent_tracker_is_refused_with_what_to_install(
    name: str, install: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as an import finds it that is not there
    with pytest.raises(ConfigError, match=install):
        train(settings(house, report_to=name))
    assert not list(house.glob("run*"))


def test_a_folder_called_as_the_tracker_is_not_it(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (house / "wandb").mkdir()  # W&B leaves one where it was run
    monkeypatch.setattr(sys, "path", [str(house), *(path for path in sys.path if not Path(path, "wandb").exists())])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="is a folder of that name"):
        train(settings(house, report_to="wandb"))


def test_by_default_nobody_is_told_and_no_connection_opened(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    train(settings(house, train_steps=2))
    assert {path.name for path in house.iterdir()} == {"lm", "cache", "run"}
    assert not list((house / "run").glob("*track*"))


def test_w_and_b_s_offline_mode_puts_no_line_into_the_results() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import theworld.train.training.train"],
        env={**os.environ, "WANDB_MODE": "offline"}, stdout=subprocess.PIPE, check=True, timeout=patience(120),
    )  # fmt: skip
    assert said.stdout == b""


def test_a_training_that_diverged_is_told_to_the_end(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = told_by("stand-in", house, monkeypatch)
    with pytest.raises(RunError, match="diverged"):
        train(settings(house, **said, learning_rate=1e38, max_grad_norm=1e38, max_bad_steps=2))
    assert '"end"' in (house / "told.jsonl").read_text()

"""Tokens of the environment reach no file and no command line: of a job, over Ray too, of a training, of an upload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.command_line import theworld
from tests.miniatures.image_store import make_images
from tests.miniatures.training import lay_out, settings
from tests.miniatures.world_model import save_mini_world
from tests.patience import patience
from theworld.precompute.job.watching.events import Events
from theworld.train.runs.hub import prepare_upload

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HTTPS_PROXY")
MARK = "PLANTED-SECRET"
PLANTED = {name: f"{MARK}-{name}" for name in NAMES} | {"HTTPS_PROXY": f"http://me:{MARK}@127.0.0.1:9"}


def files_with_a_secret(*folders: Path) -> list[str]:
    found: list[str] = []
    for folder in folders:
        for path in [folder] if folder.is_file() else folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and MARK.encode() in path.read_bytes():
                    found.append(str(path))
    return found


def family_of(process: psutil.Process) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        yield from (process, *process.children(recursive=True))


class Watcher(threading.Thread):
    """Looks at command lines and names of a process and its children, and at Ray's folder, until it ends."""

    def __init__(self, process: subprocess.Popen[str], temp: Path) -> None:
        super().__init__(daemon=True)
        self._process, self._temp = process, temp
        self.found: list[str] = []
        self.names: set[str] = set()
        self.open_to_children: set[str] = set()

    def run(self) -> None:
        root = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            for process in family_of(root):
                with suppress(psutil.Error):
                    line = " ".join(process.cmdline()) + process.name()
                    self.names.add(process.name())
                    self.found += [line] if MARK in line else []
                    if "raylet" in process.name() or process.name().startswith("ray::"):
                        values = process.environ()
                        self.open_to_children |= {name for name in values if MARK in values[name]}
            self.found += files_with_a_secret(*self._temp.glob("tw-*"))
            time.sleep(0.05)


@pytest.fixture
def temp() -> Iterator[Path]:
    """Where Ray keeps its files; its sockets want short names."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        yield Path(name)


def job_words(place: Path) -> list[str]:
    """A job over six images, and one that is none, with all that it writes in `place`."""
    world, images = save_mini_world(place / "world"), make_images(place / "in", 6)
    (images / "broken.png").write_bytes(b"no image")
    words = ["precompute", images, "--world", world, "--cache", place / "cache", "--events", place / "events.jsonl"]
    words += ["--size", "32x32", "--steps", "1", "--denoise-steps", "2", "--device", "cpu", "--max-bad", "1"]
    return list(map(str, words))


@pytest.mark.slow
def test_no_token_is_written_by_a_job_or_shown_among_its_processes(tmp_path: Path, temp: Path) -> None:
    command = [sys.executable, "-m", "theworld.pipeline.cli", *job_words(tmp_path), "--workers", "1"]
    log = tmp_path / "log"
    with log.open("w") as out:
        env = {**os.environ, **PLANTED, "TMPDIR": str(temp)}
        with subprocess.Popen(command, stdout=out, stderr=out, text=True, env=env) as job:
            watcher = Watcher(job, temp)
            watcher.start()
            try:
                assert job.wait(timeout=patience(180)) == 0, log.read_text()
            finally:
                job.kill()
                watcher.join()
    assert watcher.found == []
    assert watcher.open_to_children == set(), "workers get no secrets of the environment"
    assert any(name.startswith("ray::") for name in watcher.names)
    assert files_with_a_secret(tmp_path / "cache", tmp_path / "events.jsonl", log, temp) == []
    assert (tmp_path / "events.jsonl").stat().st_size


def test_no_token_is_written_by_a_job_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    (temp := tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    done = theworld(*job_words(tmp_path), "--in-process")
    assert done.code == 0, done.err
    assert MARK.encode() not in done.stdout + done.stderr
    assert files_with_a_secret(tmp_path / "cache", tmp_path / "events.jsonl", temp) == []
    assert (tmp_path / "events.jsonl").stat().st_size


def test_no_token_is_written_by_a_training_or_into_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    from theworld.train.evaluation.evaluate import evaluate
    from theworld.train.training.train import train

    house = lay_out(tmp_path)
    train(settings(house, train_steps=2, report_to="tensorboard"))
    evaluate(house / "run", device="cpu")
    (tmp_path / "upload").mkdir()
    prepare_upload(house / "run", tmp_path / "upload", "a/b")
    assert files_with_a_secret(tmp_path) == []


def test_an_event_shows_no_password(tmp_path: Path) -> None:
    events = Events(tmp_path / "e.jsonl")
    events.write("failed", message=f"cannot reach http://me:{MARK}@proxy:80/x")
    events.close()
    [line] = (tmp_path / "e.jsonl").read_text().splitlines()
    assert json.loads(line)["message"] == "cannot reach http://***@proxy:80/x"

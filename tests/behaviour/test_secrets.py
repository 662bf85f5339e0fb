"""Tokens of the environment reach no file and no command line: of a job, over Ray too, of a training, of an upload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.patience import patience
from theworld.precompute.job.events import Events
from theworld.precompute.job.ray_local import ray_session
from theworld.train.runs.hub import prepare_upload

from ..miniatures.image_store import make_images
from ..miniatures.training import lay_out, settings
from ..miniatures.world_model import save_mini_world

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


@pytest.mark.parametrize("over_ray", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_token_is_written_by_a_job_or_shown_among_its_processes(over_ray: bool, tmp_path: Path) -> None:
    world, images = save_mini_world(tmp_path / "world"), make_images(tmp_path / "in", 6)
    (images / "broken.png").write_bytes(b"no image")
    temp = Path("/tmp") / f"t{os.getpid()}"
    temp.mkdir()
    command = [sys.executable, "-m", "theworld.pipeline.cli", "precompute", str(images), "--world", str(world)]
    command += ["--size", "32x32", "--steps", "1", "--denoise-steps", "2", "--device", "cpu", "--max-bad", "1"]
    command += ["--cache", str(tmp_path / "cache"), "--events", str(tmp_path / "events.jsonl")]
    command += ["--workers", "1"] if over_ray else ["--in-process"]
    log = tmp_path / "log"
    try:
        with log.open("w") as out:
            job = subprocess.Popen(
                command, stdout=out, stderr=out, text=True, env={**os.environ, **PLANTED, "TMPDIR": str(temp)}
            )
            watcher = Watcher(job, temp)
            watcher.start()
            assert job.wait(timeout=patience(180)) == 0, log.read_text()
            watcher.join()
        assert watcher.found == []
        assert watcher.open_to_children == set(), "workers get no secrets of the environment"
        assert any(name.startswith("ray::") for name in watcher.names) == over_ray
        assert files_with_a_secret(tmp_path / "cache", tmp_path / "events.jsonl", log, temp) == []
        assert (tmp_path / "events.jsonl").stat().st_size
    finally:
        for path in sorted(temp.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        temp.rmdir()


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


@pytest.mark.slow
def test_a_session_leaves_the_callers_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    with ray_session(cpus=1):
        assert os.environ["HF_TOKEN"] == PLANTED["HF_TOKEN"], "the caller still has it"
    assert {name: os.environ.get(name) for name in NAMES} == PLANTED


def test_an_event_shows_no_password(tmp_path: Path) -> None:
    events = Events(tmp_path / "e.jsonl")
    events.write("failed", message=f"cannot reach http://me:{MARK}@proxy:80/x")
    events.close()
    [line] = (tmp_path / "e.jsonl").read_text().splitlines()
    assert json.loads(line)["message"] == "cannot reach http://***@proxy:80/x"

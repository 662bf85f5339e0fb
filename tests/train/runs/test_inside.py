"""What is read of a run or of an unfinished training lies in its folder; a run that lacks a file is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from theworld.pipeline.errors import Interrupted, RunError, TheWorldError
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.live_answer import ADAPTIVE, read_gate
from theworld.train.evaluation.results.saved import read_evaluation
from theworld.train.runs.folder import load_run
from theworld.train.runs.hub import CARD, TEXTS, WEIGHTS, card, copy_run, prepare_upload
from theworld.train.runs.partial import CHECKPOINT, FACTS, TRACKER, PartialRun, read_facts, resumed_config
from theworld.train.training.checkpoint import read_checkpoint
from theworld.train.training.trackers import _read_records
from theworld.train.training.train import train

from ...miniatures.training import StopAt, lay_out, settings
from ...pipeline.store.test_inside import at_once

RUN_FILES = [*WEIGHTS, *TEXTS, "evaluation.json"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out(tmp_path_factory.mktemp("house"))
    train(settings(house, train_steps=2))
    evaluate(house / "run", device="cpu")
    with pytest.raises(Interrupted):
        train(settings(house, train_steps=4, out=house / "more"), stop=StopAt(2))
    return house


@pytest.fixture
def run(house: Path, tmp_path: Path) -> Path:
    return shutil.copytree(house / "run", tmp_path / "run")


@pytest.fixture
def partial(house: Path, tmp_path: Path) -> Path:
    return shutil.copytree(house / "more.partial", tmp_path / "more.partial")


def become_a_link(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    if path.exists():
        shutil.move(path, outside)
    else:
        outside.write_text("{}")
    path.symlink_to(outside)


def become_a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def become_a_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def vanish(path: Path) -> None:
    path.unlink()


HARMS = [become_a_link, become_a_pipe, become_a_device]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_run_with_a_file_of_elsewhere_is_neither_copied_nor_pushed(
    run: Path, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(run / name)
    (tmp_path / "upload").mkdir()
    with at_once():
        with pytest.raises(RunError):
            copy_run(run, tmp_path / "copy")
        with pytest.raises(RunError):
            prepare_upload(run, tmp_path / "upload", "a/b")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", [*WEIGHTS, "adapter_config.json", "theworld.json"])
def test_a_run_that_lacks_a_file_is_neither_copied_nor_pushed(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).unlink()
    (tmp_path / "upload").mkdir()
    with pytest.raises(RunError):
        copy_run(run, tmp_path / "copy")
    with pytest.raises(RunError):
        prepare_upload(run, tmp_path / "upload", "a/b")


@pytest.mark.parametrize("harm", [*HARMS, vanish])
@pytest.mark.parametrize("name", [*WEIGHTS, "adapter_config.json", "theworld.json"])
def test_a_run_with_such_a_file_or_without_one_is_not_loaded(
    house: Path, run: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(run / name)
    with at_once(), pytest.raises(TheWorldError):
        load_run(run, lm=str(house / "lm"), device="cpu")


@pytest.mark.parametrize("harm", HARMS)
def test_figures_of_elsewhere_are_not_read(run: Path, harm: Callable[[Path], None]) -> None:
    for name, read in (
        ("evaluation.json", read_evaluation),
        ("metrics.json", lambda run: card(run, "a/b")),
        (ADAPTIVE, lambda run: read_gate(run, 3)),
    ):
        harm(run / name)
        with at_once(), pytest.raises(RunError):
            read(run)


def test_a_card_of_elsewhere_is_not_copied(run: Path, tmp_path: Path) -> None:
    become_a_link(run / CARD)
    with pytest.raises(RunError, match="link out of its folder"):
        copy_run(run, tmp_path / "copy")


@pytest.mark.parametrize("harm", HARMS)
def test_a_training_in_progress_is_resumed_from_its_own_files(partial: Path, harm: Callable[[Path], None]) -> None:
    facts = read_facts(partial)
    harm(partial / CHECKPOINT)
    with at_once(), pytest.raises(RunError):
        read_checkpoint(partial / CHECKPOINT)
    harm(partial / TRACKER)
    with at_once():
        assert _read_records(PartialRun(partial, facts)) == {}
    harm(partial / FACTS)
    with at_once(), pytest.raises(TheWorldError):
        resumed_config(partial, {})


def test_a_link_to_a_whole_run_is_fine(house: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(house / "run")
    load_run(tmp_path / "link", lm=str(house / "lm"), device="cpu")
    copy_run(tmp_path / "link", tmp_path / "copy")
    assert read_evaluation(tmp_path / "link").predictions

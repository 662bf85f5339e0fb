"""The folder of a training in progress: what is kept when it ends early, and what it may be resumed with."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from theworld.pipeline.errors import ConfigError, Interrupted, RunError
from theworld.pipeline.files.atomic import TempFile
from theworld.train.runs.partial import (
    CHECKPOINT,
    FACTS,
    RUN,
    TRACKED,
    TRACKER,
    PartialRun,
    TrainingFacts,
    is_partial,
    open_partial,
    partial_of,
    read_facts,
    require_free,
    resumed_config,
)
from theworld.train.training.trackers import _read_records

from ...miniatures.training import settings

FACTS_OF = TrainingFacts(
    config={}, numbered=False, recipe_id="a" * 64, images_sha256="b" * 64, questions_sha256="c" * 64,
    lm="sha256:" + "d" * 64, versions={"torch": "2.9"}, started="2026-01-01T00:00:00Z",
)  # fmt: skip


@contextmanager
def opened(
    out: Path | None, facts: TrainingFacts = FACTS_OF, *, resume: Path | None = None, said: list[str] | None = None
) -> Iterator[PartialRun]:
    with open_partial(facts, out, resume=resume, writes=True, say=(said if said is not None else []).append) as one:
        yield one


def ended(training: AbstractContextManager[PartialRun], error: Exception, *files: str, remove: bool = False) -> Path:
    """The folder of a training that ends with an error when these files are in it, or when somebody removed it."""
    path = Path()

    def run() -> None:
        nonlocal path
        with training as unfinished:
            path = unfinished.path
            for name in files:
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).write_text(name)
            if remove:
                shutil.rmtree(path)
            raise error

    with pytest.raises(type(error), match=str(error)):
        run()
    return path


def interrupted(out: Path, *files: str) -> Path:
    """A training that a signal ended when these files were in its folder."""
    return ended(opened(out), Interrupted("SIGTERM"), *files)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_resuming_keeps_the_checkpoint_and_the_tracker_and_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    being_written = TempFile(tmp_path).path.name
    path = interrupted(tmp_path / "run", CHECKPOINT, TRACKER, being_written, "log of the user's own.txt")
    (path / TRACKED).mkdir()
    with opened(None, resume=tmp_path / "run") as run:
        assert names(path) == {FACTS, CHECKPOINT, TRACKER, TRACKED, "log of the user's own.txt"}
        assert run.checkpoint.read_text() == CHECKPOINT
        assert run.tracker.read_text() == TRACKER


def test_another_process_of_the_same_training_removes_nothing(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", "being written")
    with open_partial(FACTS_OF, None, resume=path, writes=False, say=print) as run:
        assert (run.path, run.facts) == (path, FACTS_OF)
    assert names(path) == {FACTS, "being written"}
    with open_partial(FACTS_OF, tmp_path / "new", resume=None, writes=False, say=print) as run:
        assert run.path == tmp_path / "new.partial"
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("recipe_id", "latents of the recipe"),
        ("images_sha256", "latents with the digest"),
        ("questions_sha256", "questions with the SHA-256"),
        ("lm", "the language model"),
    ],
)
def test_a_training_goes_on_only_with_the_content_it_was_begun_on(tmp_path: Path, field: str, words: str) -> None:
    path = interrupted(tmp_path / "run", CHECKPOINT)
    here = FACTS_OF.model_copy(update={field: "other"})
    before = f"begun on {words} {getattr(FACTS_OF, field)}, now there is other"
    with pytest.raises(RunError, match=before), opened(None, here, resume=path):
        pytest.fail("resumed")
    assert names(path) == {FACTS, CHECKPOINT}


def test_only_other_versions_than_before_are_said(tmp_path: Path) -> None:
    path, said = interrupted(tmp_path / "run"), list[str]()
    with opened(None, resume=path, said=said):
        assert said == []
    newer = FACTS_OF.model_copy(update={"versions": {"torch": "3.0", "peft": "1"}})
    with opened(None, newer, resume=path, said=said):
        assert said == [f"{path} was begun with torch 2.9: the results will not be the same bit by bit"]
    assert read_facts(path) == FACTS_OF


def test_a_training_that_fails_leaves_a_folder_only_if_something_can_be_resumed_from_it(tmp_path: Path) -> None:
    said: list[str] = []
    ended(opened(tmp_path / "run", said=said), OSError("full"))
    assert (names(tmp_path), said) == (set(), [])
    path = ended(opened(tmp_path / "run", said=said), OSError("full"), CHECKPOINT)
    assert names(path) == {FACTS, CHECKPOINT}
    assert said == [f"{path} holds the last checkpoint; `theworld train --resume {path}` resumes from it"]
    removed = opened(tmp_path / "removed", said=said)
    ended(removed, OSError("full"), remove=True)  # and not the error that there is nothing to remove
    (path / CHECKPOINT).unlink()
    ended(opened(None, resume=path), OSError("full"))
    assert names(path) == {FACTS}  # it was there before


def test_a_whole_run_that_only_lacks_its_name_is_kept_and_half_a_one_is_not(tmp_path: Path) -> None:
    path = ended(opened(tmp_path / "whole"), OSError("full"), f"{RUN}/theworld.json")
    assert names(path) == {FACTS, RUN}
    assert not ended(opened(tmp_path / "half"), OSError("full"), f"{RUN}/adapter_config.json").exists()


def test_a_finished_run_takes_its_name_and_the_tracker_s_files_with_it(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        (run.new_run() / "of a process that was killed").touch()
        run.tracked.mkdir()
        (run.tracked / "events").touch()
        assert names(run.new_run()) == {TRACKED}
        assert run.finish() == tmp_path / "run"
    assert names(tmp_path) == {"run"}
    assert names(tmp_path / "run" / TRACKED) == {"events"}


def test_the_tracker_s_files_outlive_a_process_that_ends_while_it_finishes(tmp_path: Path) -> None:
    """The disk is full when the run is written, say: the same curve goes on, and is whole in the end."""

    def finish(run: PartialRun) -> None:
        run.checkpoint.touch()
        run.tracked.mkdir()
        (run.tracked / "first").touch()
        run.new_run()
        raise OSError("full")

    with pytest.raises(OSError, match="full"), opened(tmp_path / "run") as run:
        finish(run)
    with opened(None, resume=tmp_path / "run") as run:
        (run.tracked / "second").touch()
        run.new_run()
        run.finish()
    assert names(tmp_path / "run" / TRACKED) == {"first", "second"}


def test_files_of_the_user_s_own_outlive_the_folder_of_a_training(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.checkpoint.touch()
        (run.path / "log.txt").write_text("all that was said")
        run.new_run()
        run.finish()
    assert names(tmp_path / "run.partial") == {"log.txt"}
    assert not is_partial(tmp_path / "run")


def test_a_numbered_run_takes_the_next_free_number_and_a_named_one_only_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for taken in ("runs/1", "runs/2.partial"):
        Path(taken).mkdir(parents=True)
    numbered = FACTS_OF.model_copy(update={"numbered": True})
    with opened(None, numbered) as run:
        assert run.path == Path("runs/3.partial")
        (run.new_run() / "theworld.json").touch()
        (Path("runs/3")).mkdir()
        (Path("runs/3") / "of another").touch()
        assert run.finish() == Path("runs/4")
    assert names(Path("runs")) == {"1", "2.partial", "3", "4"}
    with opened(Path("named")) as run:
        (run.new_run() / "theworld.json").touch()
        Path("named").mkdir()
        (Path("named") / "of another").touch()
        with pytest.raises(RunError, match=r"cannot name the finished run named: .*move it"):
            run.finish()
        assert (run.path / RUN / "theworld.json").exists()


def test_a_new_folder_is_whole_open_to_others_and_takes_no_name_in_use(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    path = interrupted(out)
    assert path == out.with_name("run.partial")
    assert path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(RunError, match=r"run\.partial is there already.*--resume"), opened(out):
        pytest.fail("opened")
    assert names(out.parent) == {"run.partial"}  # no folder half made
    with pytest.raises(RunError, match=r"run\.partial is there already"):
        require_free(out, begins=True)
    require_free(out, begins=False)
    out.mkdir()
    for begins in (True, False):
        with pytest.raises(RunError, match="exists already; runs are never overwritten"):
            require_free(out, begins=begins)


def test_a_partial_folder_is_found_by_either_of_its_names() -> None:
    assert partial_of(Path("runs/7")) == partial_of(Path("runs/7.partial")) == Path("runs/7.partial")


@pytest.mark.parametrize("length", [{"train_steps": 8}, {"epochs": 2, "train_steps": 800}], ids=["steps", "epochs"])
def test_settings_that_decide_what_is_learned_may_not_change(tmp_path: Path, length: dict[str, int]) -> None:
    config = settings(tmp_path).model_copy(update=length).model_dump(mode="json")
    path = interrupted(tmp_path / "run")
    (path / FACTS).write_text(FACTS_OF.model_copy(update={"config": config}).model_dump_json())
    assert resumed_config(path, {"seed": None}).model_dump(mode="json") == config
    assert resumed_config(path, {"micro_batch": 1, "seed": 0}).micro_batch == 1
    with pytest.raises(ConfigError, match="seed 0 there, 1 here"):
        resumed_config(path, {"seed": 1})
    with pytest.raises(ConfigError, match=r"cannot resume .*run\.partial: .*Settings that you leave out stay"):
        resumed_config(path, {"batch_size": 0})


def test_a_description_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run")
    known = json.loads((path / FACTS).read_text())
    for content in ("{", json.dumps({**known, "format": 2}), json.dumps({**known, "unknown": 1})):
        (path / FACTS).write_text(content)
        with pytest.raises(RunError, match=r"training\.json cannot be read as a training.*remove .* and train again"):
            read_facts(path)


def test_facts_that_are_no_regular_file_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FACTS)
    with pytest.raises(RunError, match="not a regular file"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[]", b"[" * 10_000, b'{"wandb": 3, "trackio": {"id": 1, "name": "", "told": 2}}']
)
def test_a_tracker_file_that_is_not_ours_is_as_if_none_had_followed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRACKER).write_bytes(content)
    assert _read_records(PartialRun(tmp_path, FACTS_OF)) == {}

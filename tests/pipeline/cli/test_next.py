"""Every command that a command offers on a line `next:` can be typed as it stands, spaces in paths included."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.precompute.media.video_writing import write_video
from theworld.train.runs.summary import RunSummary

from ...miniatures.image_store import make_images
from ...miniatures.lm import SMALL_TRAINING, save_mini_lm, save_mini_store
from ...miniatures.world_model import save_mini_world

ODD = "it's a $HOME; 100%"
"""Part of every path: what a shell would take for something else."""
SMALL = ["--size", "32x32", "--steps", "2", "--device", "cpu", "--in-process"]


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done


def next_of(text: str) -> list[str]:
    """The words of the command on the line `next:`, as a shell splits them."""
    [line] = re.findall(r"^next: +(.+)$", text, re.MULTILINE)
    program, *words = shlex.split(line)
    assert program == "theworld"
    return words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / ODD
    place.mkdir()
    monkeypatch.chdir(place)
    save_mini_lm(place / "lm")
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in SMALL_TRAINING.items())
    (place / "small.toml").write_text(f'[train]\nlm = "lm"\ntrain_steps = 1\n{table}\n')
    return place


def write_questions(names: list[str], splits: list[str | None]) -> Path:
    lines: list[str] = []
    for name in names:
        for split in splits:
            asked: dict[str, Any] = {"image": name, "question": "where is the ball now?", "answer": "left"}
            asked["choices"] = ["left", "right"]
            lines.append(json.dumps(asked | ({"split": split} if split else {})))
    Path("QUESTIONS.jsonl").write_text("\n".join(lines))
    return Path("QUESTIONS.jsonl")


@pytest.mark.parametrize("inputs", ["images", "list", "videos"])
@pytest.mark.parametrize("splits", [[None], ["train", "test"]], ids=["no splits", "splits"])
def test_what_comes_next_after_precompute_and_train_runs(inputs: str, splits: list[str | None], folder: Path) -> None:
    world = save_mini_world(folder.parent / "mini")
    more = [*SMALL, "--world", world]
    if inputs == "videos":
        (folder / "my videos").mkdir()
        for n in range(2):
            write_video(folder / "my videos" / f"{n}.mp4", np.full((9, 32, 32, 3), 90 * n, np.uint8), 16)
        names, place, more = ["0.mp4", "1.mp4"], "my videos", [*more, "--kind", "frames"]
    else:
        make_images(folder / "my images", 2)
        names, place = ["000.png", "001.png"], "my images"
        more += ["--denoise-steps", 2]
    if inputs == "list":
        names = [f"my images/{name}" for name in names]
        Path("my list.jsonl").write_text("\n".join(json.dumps({"image": name}) for name in names))
        place = "my list.jsonl"
    write_questions(names if inputs == "list" else [f"{place}/{name}" for name in names], splits)
    made = run("precompute", place, *more, "--cache", folder / "my latents")
    trained = run(*next_of(made.stdout), "--config", "small.toml", "--out", folder / "my run")
    words = next_of(trained.stdout)
    assert "--split" not in words
    evaluated = run(*words, "--device", "cpu")
    assert "not a test" not in evaluated.stderr
    assert ("held out" in trained.stderr) == ("held out" in evaluated.stderr) == (splits == [None])


@pytest.mark.slow
def test_what_comes_next_after_scenes_runs(folder: Path) -> None:
    few = ["--scenes", 12, "--steps", 1, "--in-process", "--device", "cpu"]
    made = run("precompute", *few, "--cache", folder / "my latents")
    words = [*next_of(made.stdout), "--train-steps", 1, "--batch-size", 2, "--device", "cpu", "--out", "my run"]
    assert "--questions" not in words
    trained = run(*words)
    assert next_of(trained.stdout) == ["evaluate", "my run"]
    run(*next_of(trained.stdout), "--device", "cpu")


@pytest.mark.parametrize(
    ("splits", "asked"),
    [
        (["train"], "train"),
        (["train", "test"], "test"),
        (["train", "validation"], "validation"),
        ([None, "hard"], "hard"),
    ],
)
def test_the_split_that_is_evaluated_next_is_one_that_was_not_learned_from(
    splits: list[str | None], asked: str, folder: Path
) -> None:
    save_mini_store(folder / "latents")
    questions = write_questions([f"latents/{n}.png" for n in range(4)], splits)
    trained = run("train", "latents", "--questions", questions, "--config", "small.toml", "--out", "run", "--json")
    assert json.loads(trained.stdout)["evaluation_split"] == asked
    words = shlex.split(json.loads(trained.stdout)["next_command"])[1:]
    [evaluation] = json.loads(run(*words, "--device", "cpu", "--json").stdout)
    assert (evaluation["split"], evaluation["overall"]["total"]) == (asked, 4)


def test_a_summary_quotes_its_run() -> None:
    summary = RunSummary(Path(ODD), 1, 1.0, 1.0, 1.0, 1, 1, 1, 1)
    assert next_of(summary.summary()) == ["evaluate", ODD]


def test_the_repair_that_damage_asks_for_can_be_typed(folder: Path) -> None:
    store, _ = save_mini_store(folder / "my latents")
    store.payload_path(0).write_bytes(b"damage")
    done = CliRunner().invoke(app, ["cache", "verify", "--read", str(store.path)])
    assert done.exit_code == 1
    [repair] = re.findall(r"`(theworld [^`]+)`", done.stdout)
    run(*shlex.split(repair)[1:])
    run("cache", "verify", "--read", store.path)

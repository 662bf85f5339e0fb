"""Options that several commands take mean the same in each, and what would change nothing is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.command_line import theworld
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.progress import Progress
from theworld.precompute.worldlet.training import build as world_build
from theworld.train.worldlet import build as lm_build

from ...commands_page import walk

_OWN_MEANING = """--batch-size --cache --deep --device --draws --dry-run --dtype --format --futures --images
--jobs --labels --layout --lm --max-bad --out --questions --samples --scenes --seed
--shard-size --show-choices --split --steps --store --train-steps --world"""
OWN_MEANING = set(_OWN_MEANING.split())
"""Options whose meaning or default is each command's own; all others say the same wherever they are."""


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_an_option_of_several_commands_says_the_same_in_all_of_them() -> None:
    said: dict[str, dict[str, list[str]]] = {}
    for command, one in walk():
        for param in one.params:
            if param.param_type_name == "option" and param.name not in ("help", "version"):
                said.setdefault(param.opts[0], {}).setdefault(param.help or "", []).append(command)
    assert all(text for texts in said.values() for text in texts), "an option without help"
    assert {name for name, texts in said.items() if len(texts) > 1} - OWN_MEANING == set()
    # these differ in the default alone, but for the inputs of precompute
    for name in ("--max-bad", "--jobs", "--futures", "--show-choices"):
        words = {text.partition(" (default")[0] for text, where in said[name].items() if "precompute" not in where[0]}
        assert len(words) == 1, words


@pytest.mark.parametrize("words", [[], ["cache"], ["worldlet"], ["cache", "verify"]])
def test_no_help_names_a_type_for_a_switch(words: list[str]) -> None:
    text = run(*words, "--help").output
    assert "--help" in text
    assert "<bool>" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tokens", "--pool-steps", "2"], "--layout patch --pool-steps"),
        (["train", "--world", "in"], "belongs to --no-cache"),
        (["cache", "verify", "--world", "w"], "add --recompute N"),
        (["ask", "run", "x.png", "where?", "--device", "gpu"], "--device must be auto, cpu or cuda, got 'gpu'"),
    ],
)
def test_what_would_change_nothing_is_refused_before_anything_is_read(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latents" / "scenes").mkdir(parents=True)
    (tmp_path / "latents" / "scenes" / "questions.jsonl").touch()
    done = run(*words)
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)
    assert done.stdout == ""


def test_scenes_show_how_far_they_are_and_quiet_ones_only_where_they_are(tmp_path: Path) -> None:
    few = ["--train", 2, "--test", 0, "--families", "tower", "--jobs", 1]
    loud, quiet = run("scenes", tmp_path / "a", *few), run("scenes", tmp_path / "b", *few, "-q")
    assert "scenes: 2 of 2" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == f"2 scenes; their questions: {tmp_path / 'b' / 'questions.jsonl'}\n"
    again = run("scenes", tmp_path / "b", *few, "-q", "--json")
    counts = {"train": 2, "validation": 0, "test": 0, "ood": 0}
    assert json.loads(again.stdout) == {"questions": str(tmp_path / "b" / "questions.jsonl"), "scenes": counts}


def test_a_build_tells_what_its_trainings_log_unless_it_is_to_be_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = logging.getLogger("theworld")
    monkeypatch.setattr(ours, "level", ours.level)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def build_world(*_: Path, progress: Progress | None = None, **__: object) -> None:
        (progress or Progress.to_logger()).say("vae: step 1")

    monkeypatch.setattr(world_build, "build_world", build_world)
    kept: list[Path] = []
    monkeypatch.setattr(lm_build, "build_lm", lambda *_, scratch, **__: kept.append(scratch))
    quiet = run("worldlet", "build", tmp_path / "w", "-q", "--json")
    assert json.loads(quiet.stdout) == {"world": str(tmp_path / "w" / "world"), "lm": str(tmp_path / "w" / "lm")}
    assert quiet.stderr == ""
    assert run("worldlet", "build", tmp_path / "w").stderr == "vae: step 1\n"
    run("worldlet", "build", tmp_path / "w", "--seed", 1)
    assert kept[0] == kept[1] != kept[2]  # the same command goes on, that of another seed begins anew


def test_a_wrong_value_is_said_of_the_flag_that_was_typed_or_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nlora_rank = 0\n")
    typed = run("train", "s", "--questions", "q", "--train-steps", 0, "--config", file)
    assert isinstance(typed.exception, ConfigError)
    assert "c.toml, [train]: " in str(typed.exception)
    assert "lora_rank should be greater than or equal to 1, got 0" in str(typed.exception)
    assert "--train-steps should be greater than or equal to 1, got 0" in str(typed.exception)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["precompute", "photos", "--fp16"], "--dtype float16"),
        (["train", "--gpu"], "--device cuda"),
        (["resume"], "theworld train --resume"),
        (["train", "--nosuch"], "--epochs"),
        (["precompute", "--denoise-step", "3"], "--denoise-steps"),
    ],
)
def test_a_word_of_another_tool_or_a_misspelt_one_is_answered_by_ours(args: list[str], hint: str) -> None:
    done = theworld(*args)
    assert done.code == 2
    assert hint in " ".join(done.err.replace("│", " ").split())

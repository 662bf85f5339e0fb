"""What docs/conventions.md says of all commands is so; the pages of commands and of settings are what there is."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from tests.commands_page import commands_page, walk
from tests.miniatures.image_store import make_images
from tests.miniatures.lm import save_mini_lm, save_mini_store
from tests.miniatures.world_model import save_mini_world
from tests.patience import patience
from tests.settings_page import settings_page
from theworld.pipeline.cli.doctor import checks as doctor
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import TheWorldError
from theworld.pipeline.progress import Progress, print_error, print_result
from theworld.precompute.job.config import PrecomputeConfig
from theworld.train.config import TrainConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "conventions.md").read_text()
COMMANDS = dict(walk())


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_page_of_commands_is_what_the_command_line_says() -> None:
    stale = "the commands have changed: python -m tests.commands_page > docs/commands.md"
    assert (ROOT / "docs" / "commands.md").read_text() == commands_page(), stale


def test_the_page_of_settings_is_what_the_settings_are() -> None:
    stale = "a setting, or a file that reads one, has changed: python -m tests.settings_page > docs/settings.md"
    page = settings_page()
    assert (ROOT / "docs" / "settings.md").read_text() == page, stale
    unread = [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert unread == [], "a setting that no file reads has no effect"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_loses_what_it_says_in_brackets(name: str) -> None:
    command = COMMANDS[name]
    texts = [command.help, *(text for param in command.params for text in (param.help, param.rich_help_panel))]
    for text in filter(None, texts):
        assert Text.from_markup(text).plain == text, "a word in brackets is markup to Typer: say it without"


@pytest.mark.parametrize(("name", "config"), [("precompute", PrecomputeConfig), ("train", TrainConfig)])
def test_the_default_that_a_help_names_is_the_one_that_holds(name: str, config: type[Any]) -> None:
    for param in COMMANDS[f"theworld {name}"].params:
        field = config.model_fields.get(param.name)
        if field is None or not isinstance(field.default, int | float | str | Path) or isinstance(field.default, bool):
            continue
        said = re.search(r"\(default: ([^),;]+)", param.help or "")
        value = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        assert said is not None, param.name
        assert said[1] == value, param.name


def test_what_can_be_read_by_a_script_takes_json_and_what_takes_long_takes_quiet() -> None:
    options = {name: {word for param in one.params for word in param.opts} for name, one in COMMANDS.items()}
    runs = {name: words for name, words in options.items() if not hasattr(COMMANDS[name], "commands")}
    assert {name for name, words in runs.items() if "--json" not in words} == set()
    at_once = {"worlds", "doctor", "tokens", "status"}
    at_once |= {f"cache {name}" for name in ("list", "info", "failed", "gc", "explain")}
    assert {name.removeprefix("theworld ") for name, words in runs.items() if "--quiet" not in words} == at_once
    files = [*(ROOT / "pipeline" / "cli").glob("*.py")]
    assert len(files) > 10
    for file in files:
        assert "on_stderr()" not in file.read_text(), f"{file.name}: a command with progress has --quiet"


def test_quiet_keeps_the_result_and_what_went_wrong(tmp_path: Path) -> None:
    world, images = save_mini_world(tmp_path / "mini"), make_images(tmp_path / "in", 3)
    (images / "broken.png").write_bytes(b"no image")
    ours = ["--world", world, "--steps", 1, "--size", "32x32", "--denoise-steps", 2, "--in-process", "--device", "cpu"]
    loud = run("precompute", images, *ours, "--cache", tmp_path / "loud")
    quiet = run("precompute", images, *ours, "--cache", tmp_path / "quiet", "--quiet")
    assert (loud.exit_code, quiet.exit_code) == (3, 3), (loud.exception, quiet.exception)
    assert "broken.png" in quiet.stdout
    assert quiet.stdout.splitlines()[-1].startswith("next:")
    assert len(quiet.stdout.splitlines()) == len(loud.stdout.splitlines())
    notes = [line for line in quiet.stderr.splitlines() if not line.startswith("warning: ")]
    assert (len(loud.stderr) > len(quiet.stderr) + 100, notes) == (True, [])
    planned = run("precompute", images, *ours, "--cache", tmp_path / "quiet", "--dry-run", "-q")
    assert "images  4" in planned.stderr  # the plan is what is asked for
    assert run("cache", "verify", tmp_path / "quiet", "--read", "-q").stderr == ""


def test_quiet_training_and_evaluation_say_what_they_found_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_mini_lm(tmp_path / "lm")
    _, questions = save_mini_store(tmp_path / "latents")
    settings = 'lm = "lm"\npatch = 2\nbatch_size = 4\ndevice = "cpu"\ntrain_steps = 2\n'
    (tmp_path / "small.toml").write_text(f"[train]\n{settings}")
    trained = run("train", "latents", "--questions", questions, "--config", "small.toml", "--out", "run", "--quiet")
    assert trained.exit_code == 0, (trained.output, trained.exception)
    assert "run" in trained.stdout
    assert not re.search(r"train:|questions", trained.stderr), trained.stderr
    asked = run("evaluate", "run", "--device", "cpu", "-q", "--json")
    assert asked.exit_code == 0, (asked.output, asked.exception)
    assert json.loads(asked.stdout)[0]["run"] == "run"
    assert "evaluate:" not in asked.stderr


def test_a_quiet_progress_tells_what_must_not_be_missed(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress.on_stderr(quiet=True)
    progress.say("the plan")
    with progress.bar("work", total=1, unit="images") as bar:
        bar.advance(1)
    progress.warn("warning: [the] disk is full")
    progress.warn("warning: [the] disk is full")  # of the same, once
    assert capsys.readouterr() == ("", "warning: [the] disk is full\n")


def test_a_python_caller_without_a_progress_hears_warnings_from_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="theworld")
    progress = Progress.to_logger()
    progress.say("100 % of it")
    progress.warn("warning: the disk is full")
    assert caplog.record_tuples == [
        ("theworld", logging.INFO, "100 % of it"),
        ("theworld", logging.WARNING, "warning: the disk is full"),
    ]


def test_a_line_of_progress_says_what_is_known_by_then(capsys: pytest.CaptureFixture[str]) -> None:
    for count in (0, 2):
        with Progress.on_stderr().bar("copy", total=count, unit="samples") as bar:
            if count:
                bar.advance(count, failed=1, note="loss 0.5")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "copy: 0 of 0"
    told = r"copy: 2 of 2 \(100 %\), [\d.]+ samples/s, 0:00:0\d elapsed, 1 failed, loss 0\.5"
    assert re.fullmatch(told, second), second


def test_an_address_of_ray_that_lies_about_is_not_followed_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.255.0.1:6379")  # that no local job does: tests/faults/test_jobs.py
    world, images = save_mini_world(tmp_path / "mini"), make_images(tmp_path / "in", 2)
    plan = ["precompute", images, "--world", world, "--size", "32x32", "--cache", tmp_path / "c", "--dry-run"]
    told = run(*plan)
    assert told.exit_code == 0, (told.output, told.exception)
    assert "RAY_ADDRESS is not followed" in told.stderr
    assert "--address" in told.stderr
    assert "RAY_ADDRESS" not in run(*plan, "--in-process").output  # where there is no Ray at all


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colors_follow_the_environment(
    variables: dict[str, str],
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"TERM": "xterm-256color"}).items():
        monkeypatch.setenv(name, value)
    print_error("error: [no] such file")
    said = capsys.readouterr().err
    assert "error: [no] such file" in said
    assert ("\x1b[31m" in said) == colored


def test_a_name_too_long_for_a_column_is_told_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = Table("run")
    table.add_row("/scratch/somebody/experiments/runs/17")
    print_result(table)
    said = capsys.readouterr().out
    assert "…" not in said
    assert "/scratch/somebody/experiments/runs/17" in re.sub(r"[\s│]", "", said)


def test_names_may_have_brackets_and_colons(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("run", title="[a]")
    table.add_row("runs/[b]:car:")
    print_result(table)
    print_error("list.jsonl:100: [no] image")
    Progress.on_stderr().warn("list.jsonl:100: [no] image")
    said = capsys.readouterr()
    assert "[a]" in said.out
    assert "runs/[b]:car:" in said.out
    assert said.err == "list.jsonl:100: [no] image\n" * 2


COMPLETE = "import sys; sys.argv = ['theworld']; from theworld.pipeline.cli.main import main; main()"


@pytest.mark.parametrize(
    ("variables", "offered"),
    [
        ({"_THEWORLD_COMPLETE": "complete_bash", "COMP_WORDS": "theworld cache ver", "COMP_CWORD": "2"}, "verify"),
        ({"_THEWORLD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "theworld train --che"}, "--checkpoint-every"),
        ({"_THEWORLD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "theworld tokens --layout hi"}, "hierarchical"),
        ({"_THEWORLD_COMPLETE": "source_bash"}, "_THEWORLD_COMPLETE=complete_bash"),
    ],
)
def test_a_shell_completes_commands_flags_and_layouts(
    variables: dict[str, str], offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", COMPLETE], capture_output=True, text=True, timeout=patience(60))
    assert offered in done.stdout, (done.stdout, done.stderr)


def test_the_page_has_every_exit_code_and_every_variable_that_the_code_reads() -> None:
    todo, codes = [TheWorldError], {0, 3}
    while todo:
        one = todo.pop()
        codes.add(one.exit_code)
        todo += one.__subclasses__()
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert said == codes | {130}
    files = [file for room in ("pipeline", "precompute", "train") for file in (ROOT / room).rglob("*.py")]
    read = {name for file in files for name in re.findall(r"environ\.get\(\"(\w+)\"", file.read_text())}
    assert {"RANK", "RAY_AUTH_TOKEN_PATH"} < read
    for name in read | {*doctor._HEARD} - {"SLURM_JOB_ID"}:
        assert f"`{name}`" in PAGE, name

"""Each setting of a training can be typed, and a typed one wins over a file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.train.config import TrainConfig

from ...commands_page import walk
from ...miniatures.lm import SMALL_TRAINING, save_mini_lm, save_mini_store


@pytest.mark.parametrize(
    ("command", "settings", "others"),
    [
        ("precompute", PrecomputeConfig, set[str]()),
        ("train", TrainConfig, {"steps_drawn"}),  # typed as --steps 0,8
        ("study", TrainConfig, {"steps_drawn", "arm", "seed", "max_bad", "holdout"}),
    ],
)
def test_each_setting_of_a_job_is_a_flag(command: str, settings: type[BaseModel], others: set[str]) -> None:
    flags = {param.name for param in dict(walk())[f"theworld {command}"].params}
    assert set(settings.model_fields) - flags == others


def test_cache_explain_takes_each_flag_of_precompute_that_decides_the_latents() -> None:
    commands = dict(walk())
    of_recipe = {
        param.name for param in commands["theworld precompute"].params if "recipe" in (param.rich_help_panel or "")
    }
    assert {"seed", "kind", "guidance"} < of_recipe
    assert of_recipe <= {param.name for param in commands["theworld cache explain"].params}


def test_a_default_in_help_is_the_default() -> None:
    help = {param.name: param.help for param in dict(walk())["theworld train"].params}
    assert help["lora_rank"] == f"Rank of the LoRA adapters. (default: {TrainConfig.model_fields['lora_rank'].default})"
    assert help["group_by_length"].endswith("Changes their order."), "a switch that is off needs no default"


@pytest.mark.parametrize(("name", "command"), [(n, c) for n, c in walk() if not hasattr(c, "commands")])
def test_each_command_shows_an_example_that_can_be_typed_and_its_page(name: str, command: Any) -> None:
    (example, typed), (docs, page) = (line.split(": ", 1) for line in (command.epilog or "").split("\n\n"))
    words = shlex.split(typed)
    assert (example, docs) == ("Example", "Docs")
    assert (Path(__file__).parents[3] / page).is_file()
    assert " ".join(words).startswith(name)
    command.make_context(name, words[len(name.split()) :])  # raises where a word is none of its options


def test_a_typed_setting_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_mini_lm(tmp_path / "lm")
    _, questions = save_mini_store(tmp_path / "latents")
    table: dict[str, Any] = {"lm": "lm", "lora_alpha": 4, "warmup": 0.25, **SMALL_TRAINING}
    (tmp_path / "c.toml").write_text("\n".join(["[train]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]))
    words = ["train", "latents", "--questions", str(questions), "--config", "c.toml", "--out", "run"]
    done = CliRunner().invoke(app, [*words, "--warmup", "0.5", "--max-steps", "1", "--lr", "0.01"])
    assert done.exit_code == 0, (done.output, done.exception)
    config = json.loads((tmp_path / "run" / "theworld.json").read_text())["config"]
    assert (config["warmup"], config["lora_alpha"], config["lora_dropout"]) == (0.5, 4, 0.0)
    assert (config["train_steps"], config["learning_rate"]) == (1, 0.01)


def test_a_wrong_value_names_its_flag_and_nothing_else() -> None:
    done = CliRunner().invoke(app, ["train", "s", "--questions", "q", "--warmup", "3"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "--warmup should be less than 1, got 3.0"


@pytest.mark.parametrize("command", ["precompute", "train"])
def test_a_number_that_is_none_is_refused_in_words(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--batch-size", "eight"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "--batch-size must be a whole number, got 'eight'"

"""Each setting of a training can be typed, and a typed one wins over a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.train.config import TrainConfig

from ...commands_page import walk
from ...miniatures.lm import SMALL_TRAINING, save_mini_lm, save_mini_store

STUDY = {"arm", "futures"}
"""Settings that a controlled comparison sets; `theworld evaluate --arms` is their command."""
FILE_ALONE = {"group_by_length", "steps_drawn"}
"""`steps_drawn` is typed as --steps 0,8."""


def test_each_setting_of_a_training_is_a_flag() -> None:
    flags = {param.name for param in dict(walk())["theworld train"].params}
    assert set(TrainConfig.model_fields) - flags == STUDY | FILE_ALONE


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

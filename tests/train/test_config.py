"""Settings of a training: several steps, and what goes together."""

from pathlib import Path
from typing import Any

from theworld.train.config import TrainConfig


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(store=Path("s"), questions=Path("q"), **settings)


def test_several_steps_in_any_order_read_up_to_the_most() -> None:
    for steps in ("8,0", [8, 0]):
        assert (config(steps=steps).steps, config(steps=steps).steps_drawn) == (8, (0, 8))


def test_flash_attention_takes_one_question_a_row() -> None:
    assert config(attention="flash_attention_2", pack=1).pack == 1

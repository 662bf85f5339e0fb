"""What follows from the number of an update: no rate is zero, and the same numbers draw the same."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from transformers import get_cosine_schedule_with_warmup

from theworld.train.config import TrainConfig
from theworld.train.training.schedule import draw_steps, learning_rate, seed_of


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"store": "s", "questions": "q", "learning_rate": 0.5, **changes})


@settings(max_examples=25)
@given(st.integers(1, 100), st.floats(0, 0.99))
def test_each_update_has_a_rate_and_it_rises_to_the_peak_and_falls(total: int, warmup: float) -> None:
    rates = [learning_rate(update, total, config(warmup=warmup)) for update in range(total)]
    rise = math.ceil(warmup * total)
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[: rise + 1] == sorted(rates[: rise + 1])
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    if rise < total:
        assert rates[rise] == 0.5


def test_a_training_of_one_update_has_half_the_peak_and_one_of_twenty_begins_so() -> None:
    assert learning_rate(0, 1, config()) == learning_rate(0, 20, config()) == 0.25
    assert [learning_rate(update, 40, config()) for update in range(3)] == pytest.approx([0.5 / 3, 1 / 3, 0.5])


@pytest.mark.parametrize("total", [1, 7, 800])
def test_the_cosine_is_that_of_transformers(total: int) -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    stock = get_cosine_schedule_with_warmup(optimizer, 0, total)
    for update in range(total):
        assert learning_rate(update, total, config(warmup=0)) == stock.get_last_lr()[0]
        optimizer.step()
        stock.step()


def test_each_pass_of_each_process_has_a_seed_of_its_own() -> None:
    places = list(product((0, 1), repeat=4))
    seeds = [seed_of(*place) for place in places]
    assert len(set(seeds)) == 16
    assert seeds == [seed_of(*place) for place in places]
    assert draw_steps((0, 8), 0, 3) in (0, 8)

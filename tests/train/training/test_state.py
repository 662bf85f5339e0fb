"""The counts of a training: which refusals are named, which evaluation is the best, what the curve is."""

import dataclasses
import json

from theworld.train.training.state import State


def test_twenty_refused_updates_are_kept_by_name_and_all_are_counted() -> None:
    state = State(update=4)
    named = [state.refuse(["key"]) for _ in range(25)]
    assert named == [True] * 20 + [False] * 5
    assert (state.refused, state.refused_in_a_row, len(state.refused_updates)) == (25, 25, 20)
    assert state.refused_updates[0] == {"update": 5, "images": ["key"]}


def test_the_lowest_loss_is_the_best_and_an_equal_one_is_not_better() -> None:
    state, best = State(), []
    for step, loss in enumerate((3.0, 2.0, 2.0, 1.0, 1.5, 1.0)):
        state.update = step
        best.append(state.compare(loss, 0.5))
    assert best == [True, True, False, True, False, False]
    assert (state.best_step, state.best_loss, state.worse_in_a_row) == (3, 1.0, 2)
    assert [look["step"] for look in state.validation] == list(range(6))


def test_a_state_comes_back_from_json_and_its_curve_leaves_evaluations_out() -> None:
    state = State(update=3, loss_sum=0.1, summed=2)
    state.history = [
        {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 1},
        {"eval_loss": 1.0, "eval_accuracy": 0.5, "epoch": 0.5, "step": 1},
    ]
    again = State(**json.loads(json.dumps(dataclasses.asdict(state))))
    assert again == state
    assert again.curve == [{"step": 1, "loss": 2.0, "learning_rate": 0.1}]

"""A run that answers no better than one shown no image and no future is told so, in the terminal and on the page."""

from tests.train.evaluation.test_report import evaluation
from theworld.train.evaluation.blind import blind_notes
from theworld.train.evaluation.report import run_page


def test_a_run_as_good_without_image_and_future_is_told() -> None:
    reader, unseeing = evaluation("runs/1", 15), evaluation("runs/1", 14, arm="text")
    [(run, note)] = blind_notes([reader, unseeing])
    assert run == "runs/1"
    assert "75% correct, and shown no image and no future it has 72% correct" in note
    assert "no use of what it sees is shown" in note
    assert "no use of what it sees is shown" in run_page([reader, unseeing])


def test_a_run_of_its_own_without_image_is_a_baseline_too_and_is_named() -> None:
    reader = evaluation("runs/1", 15)
    unseeing = evaluation("runs/text", 14, arm="text", trained_arm="text", steps=0, trained_steps=0)
    [(_, note)] = blind_notes([reader, unseeing])
    assert "no image and no future runs/text has" in note


def test_a_clear_difference_other_ablations_and_no_baseline_are_not_told() -> None:
    reader = evaluation("runs/1", 20)
    assert blind_notes([reader, evaluation("runs/1", 2, arm="text")]) == []
    assert blind_notes([reader, evaluation("runs/1", 20, arm="frozen")]) == []
    assert blind_notes([reader]) == []

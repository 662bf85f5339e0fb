"""The picture of an answer says the question and the answers as they were typed."""

import numpy as np
import pytest
import torch
from PIL import Image

from theworld.precompute.preview.answer_cards import answer_picture


def picture(question: str, answer: str, probability: float | None = 0.5) -> bytes:
    source, video = Image.new("RGB", (64, 64)), torch.zeros(3, 9, 64, 64)
    answers = [(answer, probability), ("right", probability)]
    labels = ["now", "+0.25 s", "+0.50 s"]
    drawn = answer_picture(source, video, question, answers, labels=labels, temporal_stride=4)
    return np.asarray(drawn).tobytes()


@pytest.mark.parametrize("probability", [0.5, None])
def test_letters_beyond_ascii_are_drawn_and_not_boxes(probability: float | None) -> None:
    assert picture("où ?", "là", probability) != picture("oû ?", "là", probability)
    assert picture("où ?", "là", probability) != picture("où ?", "lâ", probability)


def test_a_question_of_two_lines_stays_above_its_answers() -> None:
    assert picture("where\nwill it land?", "left") == picture("where will it land?", "left")

"""Questions that leave exactly enough room are kept, and exactly `max_bad` may be left out."""

from pathlib import Path

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.progress import Progress
from theworld.train.data.batches import Example
from theworld.train.data.limits import examples_that_fit
from theworld.train.language.lm import LanguageModel
from theworld.train.language.weights import Weights
from theworld.train.questions.record import Question

from ...miniatures.lm import mini_lm, mini_tokenizer


def test_a_question_of_exactly_the_room_is_kept_and_max_bad_longer_ones_are_left_out() -> None:
    lm = LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    questions = [Question(id=name, image="a.png", question="?", answer="left") for name in ("fits", "long")]
    examples = [Example("k", (1,) * (length - 2), (5, 2)) for length in (10, 11)]
    warnings: list[str] = []
    progress = Progress.keeping(warnings)
    kept, _ = examples_that_fit(
        questions, examples, lm, world_tokens=lm.context - 10, max_bad=1, progress=progress
    )
    assert [question.id for question in kept] == ["fits"]
    assert warnings == ["warning: 1 questions too long are left out: long (9 tokens of prompt, 2 of answer)"]
    with pytest.raises(QuestionError, match="--max-bad 1"):
        examples_that_fit(questions, examples, lm, world_tokens=lm.context - 10, max_bad=0, progress=progress)

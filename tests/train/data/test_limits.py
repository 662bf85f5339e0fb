"""Questions that leave exactly enough room are kept, and exactly `max_bad` may be left out."""

from pathlib import Path

import pytest

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.progress import Progress
from theworld.train.data.batches import Example
from theworld.train.data.limits import examples_that_fit, questions_that_fit, questions_with_latents
from theworld.train.language.lm import LanguageModel
from theworld.train.language.weights import Weights
from theworld.train.questions.record import Question, read_questions

from ...miniatures.lm import mini_lm, mini_tokenizer, save_mini_store


def test_a_question_of_exactly_the_room_is_kept_and_max_bad_longer_ones_are_left_out() -> None:
    lm = LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))
    questions = [Question(id=name, image="a.png", question="?", answer="left") for name in ("fits", "long")]
    examples = [Example("k", (1,) * (length - 2), (5, 2)) for length in (10, 11)]
    warnings: list[str] = []
    progress = Progress.keeping(warnings)
    kept, _ = examples_that_fit(questions, examples, lm, world_tokens=lm.context - 10, max_bad=1, progress=progress)
    assert [question.id for question in kept] == ["fits"]
    assert warnings == ["warning: 1 questions too long are left out: long (9 tokens of prompt, 2 of answer)"]
    with pytest.raises(QuestionError, match="--max-bad 1"):
        examples_that_fit(questions, examples, lm, world_tokens=lm.context - 10, max_bad=0, progress=progress)


def lm() -> LanguageModel:
    return LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))


def test_where_every_question_is_too_long_the_layout_is_and_all_are_kept() -> None:
    questions = [Question(id=name, image="a.png", question="?", answer="left") for name in ("one", "two")]
    examples = [Example("k", (1,) * 9, (5, 2))] * 2
    room = {"world_tokens": lm().context - 10, "max_bad": 0}
    kept, same = examples_that_fit(questions, examples, lm(), **room, progress=Progress.silent())
    assert (kept, same) == (tuple(questions), examples)


def test_a_question_fits_if_its_longest_choice_fills_the_room_exactly() -> None:
    warnings: list[str] = []
    progress = Progress.keeping(warnings)
    short = Question(id="short", image="a.png", question="where ?", answer="left")
    long = Question(id="long", image="a.png", question="where ?", answer="left", choices=("left", "the right corner"))
    model = lm()
    length = len(model.prompt_ids("where ?")) + len(model.answer_ids("the right corner"))
    room = {"world_tokens": model.context - length}
    assert questions_that_fit([short, long], model, **room, max_bad=0, progress=progress) == (short, long)
    less = {"world_tokens": model.context - length + 1}
    assert questions_that_fit([short, long], model, **less, max_bad=1, progress=progress) == (short,)
    assert "1 questions too long are left out: long" in "".join(warnings)
    with pytest.raises(QuestionError, match="1 of 2 questions are too long"):
        questions_that_fit([short, long], model, **less, max_bad=0, progress=progress)
    with pytest.raises(QuestionError, match="1 of 1 questions are too long"):  # however many may be left out
        questions_that_fit([long], model, **less, max_bad=5, progress=progress)


def test_up_to_max_bad_questions_without_latents_are_left_out_but_never_all(
    tmp_path: Path,
) -> None:
    warnings: list[str] = []
    progress = Progress.keeping(warnings)
    store, file = save_mini_store(tmp_path, images=2)
    known = read_questions(file)
    lost = [Question(id=f"lost{n}", image="lost.png", question="?", answer="left") for n in range(2)]
    assert questions_with_latents([*known, *lost], file, store, max_bad=2, progress=progress) == known
    assert "2 questions without latents are left out: lost0 (lost.png is neither" in "".join(warnings)
    for asked, max_bad in (([*known, *lost], 1), (lost, 9)):
        with pytest.raises(QuestionError, match=rf"2 of {len(asked)} questions .* have no latents"):
            questions_with_latents(asked, file, store, max_bad=max_bad, progress=progress)

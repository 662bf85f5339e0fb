"""A look at questions finds what would spoil a training or a result, before either is paid for."""

import dataclasses
import json
from pathlib import Path

import pytest

from theworld.train.language.lm import load_tokenizer_only
from theworld.train.language.weights import find_weights
from theworld.train.questions.inspect import inspect_questions
from theworld.train.questions.record import Question
from theworld.train.questions.report import (
    QuestionReport,
    asked_by_type,
    blind_warning,
    kinds_of,
    measure,
    training_lines,
)

from ...miniatures.lm import save_mini_lm, save_mini_store

ASKED = "where will the ball land?"


def question(number: int, **changes: object) -> Question:
    record = {"id": f"q{number}", "image": f"{number}.png", "question": ASKED, "answer": "left", **changes}
    return Question.model_validate(record)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    save_mini_store(tmp_path / "cache")
    save_mini_lm(tmp_path / "lm")
    return tmp_path


def seen(house: Path, *extra: dict[str, object], **settings: object) -> QuestionReport:
    file = house / "cache" / "questions.jsonl"
    with file.open("a") as lines:
        lines.writelines(json.dumps({"image": "0.png", "question": ASKED, **record}) + "\n" for record in extra)
    return inspect_questions(file, house / "cache", {"lm": str(house / "lm"), "patch": 2, **settings})


def test_what_a_sound_file_holds(house: Path) -> None:
    report = seen(house)
    assert not report.refused
    assert (report.questions, report.images, report.splits) == (24, 12, {"test": 8, "train": 16})
    assert (report.with_latents, report.without_latents) == (24, {})
    assert {name: kind.questions for name, kind in report.kinds.items()} == {"temporal": 12, "untyped": 12}
    tokens = report.tokens
    assert tokens is not None
    assert (tokens.world, tokens.context, tokens.prompt, tokens.answer) == (24, 4096, (11, 11.0, 11), (2, 2.0, 4))
    assert (tokens.longest_tokens, tokens.too_long, tokens.unknown) == (15, (), {})
    assert json.loads(json.dumps(report.to_json()))["kinds"]["untyped"]["answers"] == {"left": 12}
    assert seen(house, steps=0).tokens.world == 6  # type: ignore[union-attr]


def test_choices_that_the_prompt_shows_count_as_tokens_of_the_prompt(house: Path) -> None:
    choices = {"id": "c", "answer": "left", "choices": ["left", "right"]}
    hidden, shown = seen(house, choices).tokens, seen(house, show_choices="list").tokens
    assert hidden is not None
    assert shown is not None
    assert shown.prompt[2] > hidden.prompt[2] + 2, "each choice and the words around"


def test_blind_is_what_the_wording_alone_gives_away() -> None:
    told = [question(n, question="left?", answer="left") for n in range(20)]
    told += [question(100 + n, question="right?", answer="right") for n in range(20)]
    kind = kinds_of(told)["untyped"]
    assert (kind.majority, kind.blind) == (0.5, 1.0)
    own_words = [question(n, question=f"where is ball {n}?", answer=("left", "right")[n % 2]) for n in range(40)]
    assert kinds_of(own_words)["untyped"].blind == 0.5  # a wording that comes once gives nothing away
    assert str(kind) == "40: left 50%, right 50%; blind 100%"
    assert "100% of all questions together" in blind_warning(asked_by_type(told))
    assert blind_warning(asked_by_type(own_words)) == ""
    one = [question(n, type="static", question="red?", answer="yes") for n in range(10)]
    both = blind_warning(asked_by_type([*own_words, *one]))
    assert both.startswith("the commonest answer to each wording is correct for 100% of questions of type static. So")
    assert blind_warning(asked_by_type([*own_words, *one[:9]])) == "", "too few to say"


def test_what_would_be_refused_is_named_before_anything_is_spent(house: Path) -> None:
    report = seen(
        house,
        {"id": "gone", "image": "gone.png", "answer": "left"},
        {"id": "empty", "answer": ""},
        {"id": "zebra", "answer": "a zebra"},
        {"id": "long", "question": "left " * 4100, "answer": "left"},
    )
    assert report.refused
    assert list(report.without_latents) == ["gone"]
    assert report.bad == ("line 26: answer is empty",)
    assert report.tokens is not None
    assert report.tokens.unknown == {"zebra": ("a", "zebra")}
    assert (report.tokens.too_long, report.tokens.longest) == (("long",), "long")
    text = "\n".join(report.lines())
    for words in (
        "of 26 questions there are, of 1 not",
        "gone: gone.png is neither",
        "too long for it: long",
        "line 26",
    ):
        assert words in text
    assert "no token for 'a', 'zebra' in answers to zebra" in text


def test_what_contradicts_repeats_or_leaks_is_named(house: Path) -> None:
    report = seen(
        house,
        {"id": "same", "question": f" {ASKED.upper()}", "answer": "left", "split": "train"},
        {"id": "other", "answer": "right", "split": "train"},
        {"id": "leak", "question": "where?", "answer": "left", "split": "test"},
    )
    assert report.repeated == ("same",)
    assert report.contradictions == (("0-land", "other"),)
    assert report.leaks == {"test and train": 1}


def test_a_training_says_it_in_a_few_lines(house: Path) -> None:
    book = load_tokenizer_only(find_weights(str(house / "lm")))
    asked = [question(1, type="temporal"), question(2, type="temporal", before=(("where is the ball?", "left"),))]
    lines = training_lines(asked, measure(asked, book, world_tokens=24))
    assert lines[0] == "2 questions about 2 images"
    assert lines[1] == "  temporal 2: left 100%; blind 100%"
    assert lines[2].startswith("tokens: prompts 11 to 22 (median 16.5), answers 2 to 2; longest q2: 24 world")


def test_words_of_questions_without_a_token_are_told_and_refuse_nothing(house: Path) -> None:
    extra: list[dict[str, object]] = [
        {"id": f"cat {n}", "question": "where is the cat now?", "answer": "left"} for n in range(2)
    ]
    report = seen(house, *extra, {"id": "dog", "question": "where is the dog?", "answer": "right"})
    assert report.tokens is not None
    assert report.tokens.unread == {"cat": 2, "dog": 1}
    assert not report.refused
    assert any("no token for, and reads as one and the same: 'cat', 'dog'" in line for line in report.lines())


def test_a_question_that_fills_the_context_exactly_is_not_too_long(house: Path) -> None:
    book = load_tokenizer_only(find_weights(str(house / "lm")))
    asked = [question(1), question(2, choices=("left", "the right corner"))]
    longest = len(book.prompt_ids(ASKED)) + len(book.answer_ids("the right corner"))
    assert measure(asked, book, world_tokens=book.context - longest).too_long == ()
    assert measure(asked, book, world_tokens=book.context - longest + 1).too_long == ("q2",)
    assert measure(asked, book, world_tokens=None).too_long == ()


def test_as_many_as_max_bad_are_left_out_for_each_reason_and_one_more_is_refused(house: Path) -> None:
    bad: list[dict[str, object]] = [
        {"id": "gone", "image": "gone.png", "answer": "left"},
        {"id": "empty", "answer": ""},
        {"id": "long", "question": "left " * 4100, "answer": "left"},
    ]
    report = seen(house, *bad, max_bad=1)
    assert (len(report.bad), len(report.without_latents), len(report.tokens.too_long)) == (1, 1, 1)  # type: ignore
    assert not report.refused
    assert dataclasses.replace(report, max_bad=0).refused
    assert dataclasses.replace(report, questions=0).refused


def test_each_kind_counts_its_questions_that_offer_choices() -> None:
    asked = [question(1, type="a", choices=("left", "right")), question(2, type="a"), question(3, type="b")]
    assert {name: kind.with_choices for name, kind in kinds_of(asked).items()} == {"a": 1, "b": 0}

"""The small language model of the worldlet: its words, its texts, its shipped weights."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import theworld.train.worldlet
from theworld.train.worldlet import build
from theworld.train.worldlet.build import GATE, build_lm, collate, score_lm
from theworld.train.worldlet.grammar import FACTS, alike, sample_text, sample_things
from theworld.train.worldlet.words import (
    ANSWERS,
    FAMILIES,
    QUESTIONS,
    STATEMENTS,
    THINGS,
    format_question,
    new_tokenizer,
    questions_of,
    state,
    vocabulary,
)

WEIGHTS = Path(theworld.train.worldlet.__file__).parent / "weights"


def test_no_word_of_a_question_a_statement_or_an_answer_is_unknown() -> None:
    tokenizer = new_tokenizer()
    for about in QUESTIONS:
        told = [
            state(form, thing, ANSWERS[about][-1]) for form in STATEMENTS[about] for thing in THINGS.get(about, "-")
        ]
        for text in (*map(format_question, questions_of(about)), *told, *ANSWERS[about]):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_no_two_kinds_of_question_share_a_wording() -> None:
    wordings = [wording for about in QUESTIONS for wording in questions_of(about)]
    assert len(set(wordings)) == len(wordings)
    assert all(wording.endswith("?") and " ?" not in wording and "{" not in wording for wording in wordings)


def test_natural_writing_and_spaced_writing_are_the_same_tokens() -> None:
    tokenizer = new_tokenizer()
    natural = tokenizer(format_question("Where will the ball land?"))["input_ids"]
    spaced = tokenizer("question : where will the ball land ? answer :")["input_ids"]
    assert natural == spaced
    assert natural[0] == tokenizer.bos_token_id


def test_a_near_question_is_read_without_unknown_words() -> None:
    tokenizer = new_tokenizer()
    for question in ("Which bucket will it fall into?", "Does the ball hit the left wall?", "What happens next?"):
        assert tokenizer.unk_token_id not in tokenizer(question)["input_ids"]


def test_every_answer_is_one_token_of_its_own() -> None:
    tokenizer = new_tokenizer()
    words = sorted({word for answers in FAMILIES for word in answers})
    tokens = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert all(len(token) == 1 for token in tokens)
    assert len({token[0] for token in tokens}) == len(words)
    assert len(set(vocabulary())) == len(vocabulary())


def test_labels_cover_the_answers_and_the_ends_and_nothing_else() -> None:
    tokenizer = new_tokenizer()
    texts = [sample_text(Random(seed)) for seed in range(8)]
    batch = collate(tokenizer, texts)
    for row, labels, text in zip(batch["input_ids"], batch["labels"], texts, strict=True):
        counted = labels[labels != -100]
        expected = " ".join(f"{question.answer} <eos>" for question in text.questions)
        assert tokenizer.decode(counted) == expected
        assert torch.equal(counted, row[labels != -100])


@pytest.mark.parametrize("seed", range(30))
def test_every_answer_of_a_text_is_stated_in_it(seed: int) -> None:
    rng = Random(seed)
    for text in (sample_text(rng), sample_text(rng, level=3), sample_text(rng, level=2, plain=True)):
        for question in text.questions:
            about, thing = question.fact
            assert any(state(form, thing, question.answer) in text.context for form in STATEMENTS[about])
            assert question.text.replace(" ?", "?") in questions_of(about)


@pytest.mark.parametrize(
    ("fact", "others"),
    [
        (("land", ""), {"below", "side"}),
        (("first", ""), {"lower", "left", "color"}),
        (("color", "top block"), {"first", "lower", "left", "color"}),
        (("count", "ramps"), {"count"}),
        (("fall", ""), {"above", "touch", "toward"}),
    ],
)
def test_all_that_an_answer_could_be_mistaken_for_stands_beside_it(fact: tuple[str, str], others: set[str]) -> None:
    assert {about for about, _ in alike(fact) if (about, _) != fact} == others
    rng, asked = Random(0), 0
    while asked < 5:
        text = sample_text(rng, questions=1)
        if text.questions[0].fact != fact:
            continue
        asked += 1
        for about, thing in alike(fact):
            told = {state(form, thing, answer) for form in STATEMENTS[about] for answer in ANSWERS[about]}
            assert any(statement in text.context for statement in told), (about, thing)


def test_the_same_is_told_of_several_things_and_only_their_names_tell_answers_apart() -> None:
    for seed in range(30):
        text = sample_things(Random(seed))
        about, asked = text.questions[0].fact
        forms = [
            form.replace("{o}", "([a-z ]+)").replace("{a}", "[a-z]+") for form in sorted(STATEMENTS[about], key=len)
        ]
        told = [f"{line.strip()} ." for line in text.context.split(".")]
        matches = [[match[1] for form in forms if (match := re.fullmatch(form, line))] for line in told]
        things = {names[-1] for names in matches if names}  # the longest form that fits: "the color of the ball is red"
        assert asked in things
        assert len(things) > len(text.questions)


def test_no_fact_of_a_text_tells_anything_about_another() -> None:
    rng, same, both = Random(0), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for _ in range(12000):
        answers = {question.fact: question.answer for question in sample_text(rng, questions=15).questions}
        for about, other in [("land", "below"), ("first", "lower"), ("fall", "above"), ("touch", "toward")]:
            if (about, "") in answers and (other, "") in answers:
                both[about, other] += 1
                same[about, other] += answers[about, ""] == answers[other, ""]
    for about, other in both:
        assert both[about, other] > 1000
        assert same[about, other] / both[about, other] == pytest.approx(1 / len(ANSWERS[about]), abs=0.05)


def test_the_shipped_model_loads_by_the_stock_classes_and_passes_its_gate() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()
    assert type(model).__name__ == "Gemma2ForCausalLM"
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == new_tokenizer().get_vocab()
    gate = json.loads((WEIGHTS / "card.json").read_text())["gate"]
    scores = score_lm(model, tokenizer, texts=1000, seed=2)
    assert set(scores) == {*FAMILIES.values(), *(" of ".join(filter(None, fact)) for fact in FACTS)}
    assert set(gate["scores"]) == set(scores)
    assert gate["passed"]
    assert min(scores.values()) >= GATE


@pytest.mark.slow
def test_a_short_training_is_saved_and_says_that_it_missed_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "score_lm", partial(score_lm, texts=300))
    monkeypatch.setattr(build, "_SAVE_EVERY_S", 0.0)
    card = build_lm(tmp_path / "lm", minutes=0.02, scratch=tmp_path / "scratch")
    assert card["gate"]["required"] == GATE
    assert not card["gate"]["passed"]  # a second is not enough, and the card says so
    AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    saved = json.loads((tmp_path / "scratch" / "progress.json").read_text())
    again = build_lm(tmp_path / "lm", minutes=0.04, scratch=tmp_path / "scratch")  # and is gone on with
    assert again["train_steps"] >= saved["step"] >= card["train_steps"] - 1 > 0
    assert again["cpu_seconds"] >= 2

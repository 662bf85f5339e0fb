"""The small language model of the worldlet: its words, its texts, its shipped weights."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import theworld.train.worldlet
from theworld.precompute.worldlet.scenes import make_scene, scene_questions
from theworld.train.worldlet.build import GATE, build_lm, collate, score_lm
from theworld.train.worldlet.grammar import sample_text
from theworld.train.worldlet.words import QUESTIONS, format_question, new_tokenizer, vocabulary

WEIGHTS = Path(theworld.train.worldlet.__file__).parent / "weights"


def test_no_word_of_a_scene_is_unknown() -> None:
    tokenizer = new_tokenizer()
    for index in range(60):
        for record in scene_questions(make_scene(index % 9), "train"):
            for text in (format_question(record["question"]), f" {record['answer']}", *record["choices"]):
                assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_the_scenes_ask_in_the_words_the_model_was_trained_on() -> None:
    tokenizer = new_tokenizer()
    known = {
        tuple(tokenizer(template.format(o=thing))["input_ids"])
        for templates in QUESTIONS.values()
        for template in templates
        for thing in ("ball", "ramps")
    }
    for index in range(9):
        for record in scene_questions(make_scene(index), "train"):
            assert tuple(tokenizer(record["question"])["input_ids"]) in known


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


def test_an_answer_is_one_token() -> None:
    tokenizer = new_tokenizer()
    for word in ("left", "middle", "right", "red", "black", "one", "three"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    assert len(set(vocabulary())) == len(vocabulary())


def test_labels_cover_the_answers_and_the_ends_and_nothing_else() -> None:
    tokenizer = new_tokenizer()
    texts = [sample_text(Random(seed)) for seed in range(8)]
    batch = collate(tokenizer, texts)
    for row, labels, text in zip(batch["input_ids"], batch["labels"], texts, strict=True):
        counted = labels[labels != -100]
        expected = " ".join(f"{answer} <eos>" for _, answer, _ in text.questions)
        assert tokenizer.decode(counted) == expected
        assert torch.equal(counted, row[labels != -100])


def test_every_answer_of_a_text_is_stated_in_it() -> None:
    for seed in range(50):
        text = sample_text(Random(seed))
        for _, answer, _ in text.questions:
            assert f" {answer} " in f" {text.context} "


def test_where_a_thing_starts_tells_nothing_about_where_it_lands() -> None:
    pairs = {"same": 0, "other": 0}
    rng = Random(0)
    for _ in range(3000):
        answers = {
            q: a
            for q, a, family in sample_text(rng, questions=6, second_thing=0).questions
            if family == "places" and "ball" in q
        }
        if len(answers) == 2:
            pairs["same" if len(set(answers.values())) == 1 else "other"] += 1
    assert pairs["same"] / sum(pairs.values()) == pytest.approx(1 / 3, abs=0.06)


def test_the_shipped_model_loads_by_the_stock_classes_and_passes_its_gate() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS).eval()
    assert type(model).__name__ == "Gemma2ForCausalLM"
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == new_tokenizer().get_vocab()
    scores = score_lm(model, tokenizer, texts=300, seed=2)
    assert set(scores) == {"places", "colors", "counts"}
    assert min(scores.values()) >= GATE
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["gate"]["passed"]
    assert min(card["gate"][family] for family in scores) >= GATE


@pytest.mark.slow
def test_a_short_training_is_saved_and_says_that_it_missed_the_gate(tmp_path: Path) -> None:
    card = build_lm(tmp_path / "lm", minutes=0.1)
    assert card["gate"]["required"] == GATE
    assert not card["gate"]["passed"]  # six seconds are not enough, and the card says so
    AutoModelForCausalLM.from_pretrained(tmp_path / "lm")

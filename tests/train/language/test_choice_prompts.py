"""Prompts show choices in the words of three benchmarks' own evaluations, reproduced here by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from theworld.train.data.batches import encode
from theworld.train.language.choice_prompts import letters
from theworld.train.language.prompt_format import TokenizerOnly
from theworld.train.questions.record import Question, read_questions
from theworld.train.questions.shown_choices import as_shown

from .test_chat_template import GEMMA_3, book, gemma_tokenizer

ROW = {"id": "1", "image": "a.png", "question": "Which way did it move?"}
CHOICES = ["left", "right", "it did not move"]


def question(folder: Path, **fields: Any) -> Question:
    (folder / "q.jsonl").write_text(json.dumps({**ROW, "choices": CHOICES, "answer": "right", **fields}) + "\n")
    return read_questions(folder / "q.jsonl")[0]


def asked(lm: TokenizerOnly, question: Question) -> tuple[str, str]:
    """The text of the prompt as the language model gets it, and the text of the answer that is learned."""
    example = encode(question, "key", lm, answer=question.answer)  # type: ignore[arg-type]
    return lm.tokenizer.decode(example.prompt), lm.tokenizer.decode(example.answer)


def chat(text: str) -> str:
    return f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"


def test_by_default_the_question_stands_alone(tmp_path: Path) -> None:
    lm, one = book(gemma_tokenizer(GEMMA_3)), question(tmp_path)
    assert as_shown(one, "none") is one
    assert asked(lm, as_shown(one, "none")) == (chat("Which way did it move?"), "right<end_of_turn>")


def test_a_list_is_what_sat_asks(tmp_path: Path) -> None:
    """custom_datasets/dataloaders.py, `format_prompts`: the choices in quotes, joined by `or`."""
    lm = book(gemma_tokenizer(GEMMA_3))
    assert asked(lm, as_shown(question(tmp_path), "list")) == (
        chat(
            "Answer in natural language. Which way did it move? Answer the question using a single word or phrase. "
            'Choose between the following options: "left" or "right" or "it did not move".'
        ),
        "right<end_of_turn>",
    )


def test_letters_are_what_llava_asks_of_mmbench_and_the_answer_is_the_letter(tmp_path: Path) -> None:
    """llava/eval/model_vqa_mmbench.py --single-pred-prompt."""
    lm = book(gemma_tokenizer(GEMMA_3))
    shown = as_shown(question(tmp_path), "letters")
    assert asked(lm, shown) == (
        chat(
            "Which way did it move?\nA. left\nB. right\nC. it did not move\n"
            "Answer with the option's letter from the given choices directly."
        ),
        "B<end_of_turn>",
    )
    assert shown.choices == ("A", "B", "C")


def test_blink_brings_its_own_prompt(tmp_path: Path) -> None:
    """The column `prompt` of BLINK's table, and answers such as (B): nothing is added to it."""
    lm = book(gemma_tokenizer(GEMMA_3))
    prompt = "Which way did it move?\nSelect from the following choices.\n(A) left\n(B) right"
    one = question(tmp_path, question=prompt, choices=["(A)", "(B)"], answer="(B)")
    assert asked(lm, as_shown(one, "none")) == (chat(prompt), "(B)<end_of_turn>")


@pytest.mark.parametrize("show", ["list", "letters"])
def test_a_question_without_choices_shows_none(tmp_path: Path, show: Any) -> None:
    one = question(tmp_path, choices=None)
    assert as_shown(one, show) is one


def test_letters_go_on_behind_z() -> None:
    assert letters(2) == ["A", "B"]
    assert letters(703)[24:28] + letters(703)[701:] == ["Y", "Z", "AA", "AB", "ZZ", "AAA"]

"""How a question shows its choices in the prompt: the wordings of the benchmarks, so that figures can be compared.

    none      the question alone; the choices are only ranked
    list      the question in the words of SAT's own evaluation; the answer is the text of a choice
    letters   the question and lettered choices in the words of LLaVA's evaluation on MMBench; the answer is a letter

Sources: `format_prompts` in custom_datasets/dataloaders.py of github.com/arijitray1993/SAT; llava/eval/
model_vqa_mmbench.py with --single-pred-prompt of github.com/haotian-liu/LLaVA. VLMEvalKit asks LLaVA in the same words
on all sets of multiple choice, BLINK among them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import ShowChoices

_LIST = (
    "Answer in natural language. {question} Answer the question using a single word or phrase. "
    "Choose between the following options: {choices}."
)
_LETTERS = "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."


def prompt_with_choices(question: str, choices: Sequence[str], show: ShowChoices) -> str:
    """The question as it stands in the prompt."""
    if show == "list":
        return _LIST.format(question=question, choices=" or ".join(f'"{choice}"' for choice in choices))
    if show == "letters":
        lines = zip(letters(len(choices)), choices, strict=True)
        return _LETTERS.format(question=question, choices="\n".join(f"{letter}. {choice}" for letter, choice in lines))
    return question


def letters(count: int) -> list[str]:
    """A to Z, then AA, AB, …"""
    names: list[str] = []
    for number in range(count):
        name, rest = "", number + 1
        while rest:
            rest, place = divmod(rest - 1, 26)
            name = chr(ord("A") + place) + name
        names.append(name)
    return names

"""Questions as the language model reads them, where the prompt shows the choices."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import ShowChoices
from ..language.choice_prompts import letters, prompt_with_choices
from .record import Question


def as_shown(question: Question, show: ShowChoices) -> Question:
    """The question with its choices in its text; with letters these are the answers. Without choices as it is."""
    if show == "none" or not question.choices:
        return question
    changes: dict[str, object] = {"question": prompt_with_choices(question.question, question.choices, show)}
    if show == "letters":
        labels = tuple(letters(len(question.choices)))
        changes |= {"choices": labels, "answer": labels[question.choices.index(question.answer)]}
    return question.model_copy(update=changes)


def all_as_shown(questions: Sequence[Question], show: ShowChoices) -> Sequence[Question]:
    """Each question `as_shown`, in their order."""
    return questions if show == "none" else [as_shown(question, show) for question in questions]

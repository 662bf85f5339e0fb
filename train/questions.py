"""Questions about images: one record, read from JSONL, and which of them have latents in a store.

Lives here: the record, the reader, the coverage. Elsewhere: text to token ids (lm.py), latents to tensors (batches.py).
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..pipeline.errors import QuestionError
from ..pipeline.keys import key_of_file
from ..pipeline.store import LatentStore

UNTYPED = "untyped"
"""Stands in tables for questions that state no type."""

SourceField = Literal["image", "future"]
"""Which of a question's files latents are of."""

_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
_NAMED = 3  # problems spelled out in one message; the rest are counted


class Question(BaseModel):
    """One question about one image. Many questions may share an image, and so its rollout.

    Other fields are left alone, unless one looks like a misspelling of ours.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: _Text
    """Names its results; the line number where the file gives none."""
    image: _Text
    """Path relative to the questions file, or the source name precompute recorded."""
    question: _Text
    answer: _Text
    choices: Annotated[tuple[_Text, ...], Field(min_length=2, strict=False)] | None = None
    """Possible answers, the right one among them. Without them the model answers in its own words."""
    type: _Text | None = None
    """Accuracy is reported per type."""
    prompt: _Text | None = None
    """The image's own prompt, where latents were made with one each: which of the image's futures is asked about."""
    split: _Text | None = None
    """Training takes "train" and questions without a split; evaluation takes the split it is asked for."""

    # What controlled comparisons need to know (arms.py, findings.py); nothing else reads these.
    scene: _Text | None = None
    """What the image shows; several questions share it. The image where the file names none."""
    future: _Text | None = None
    """Video of what truly happened: a path relative to the questions file, or the source name precompute recorded."""
    family: _Text | None = None
    """Kind of scene; futures are only ever exchanged within one."""
    about: _Text | None = None
    """Which of its family's questions this is."""
    pair: _Text | None = None
    """Shared by scenes that differ in one element and have different answers."""
    heuristic: _Text | None = None
    """What a rule of thumb answers to the scene's question about the future."""
    shift: str = ""
    """How an out-of-distribution scene differs from those of training."""

    @property
    def scene_id(self) -> str:
        """Its scene: the one named, else the image."""
        return self.scene or self.image

    @model_validator(mode="before")
    @classmethod
    def _spelled_right(cls, record: dict[str, Any]) -> dict[str, Any]:
        for name in record.keys() - cls.model_fields.keys():
            if near := difflib.get_close_matches(name, cls.model_fields.keys() - record.keys(), n=1, cutoff=0.75):
                raise ValueError(f"{name}: unknown field; did you mean {near[0]!r}?")
        return record

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if self.choices is not None:
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"choices: {list(self.choices)} names one choice twice")
            if self.answer not in self.choices:
                raise ValueError(f"answer: {self.answer!r} is not among the choices {list(self.choices)}")
        return self


def read_questions(path: Path) -> tuple[Question, ...]:
    """All questions of a JSONL file, in its order. Blank lines are skipped.

    Raises:
        QuestionError: the file is missing, empty or not UTF-8; a line is not a JSON object; a field is missing,
            misspelt or of the wrong type (each named with its line); two questions have the same id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise QuestionError(f"cannot read the questions file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise QuestionError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8 JSON lines") from error
    questions: list[Question] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _parse(line, number, f"{path}, line {number}")
        if question.id in line_of:
            raise QuestionError(
                f"{path}, line {number}: id: {question.id!r} is already the id of line {line_of[question.id]}; "
                "ids name results, so each must be unique"
            )
        line_of[question.id] = number
        questions.append(question)
    if not questions:
        raise QuestionError(f"{path} holds no question: write one JSON object per line")
    return tuple(questions)


def _parse(line: str, number: int, where: str) -> Question:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise QuestionError(f"{where}: not JSON ({reason}); write one JSON object per line") from error
    if not isinstance(record, dict):
        raise QuestionError(f"{where}: expected a JSON object, got {type(record).__name__}")
    try:
        return Question.model_validate({"id": str(number), **record})
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            field = ".".join(map(str, problem["loc"]))
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {message}" if field else message)
        raise QuestionError(f"{where}: {'; '.join(problems)}") from error


def select_split(questions: Sequence[Question], split: str | None, where: Path) -> tuple[Question, ...]:
    """The questions of one split; None selects all. "train" includes questions that state no split.

    Raises:
        QuestionError: there are none; the message counts the splits there are.
    """
    chosen = tuple(
        question
        for question in questions
        if split is None or question.split == split or (split == "train" and question.split is None)
    )
    if not chosen:
        counts = Counter(question.split or "no split" for question in questions)
        there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        raise QuestionError(f"{where} has no question of split {split!r}; it has {there}. Ask for one of those")
    return chosen


def first_scenes(questions: Sequence[Question], scenes: int | None) -> tuple[Question, ...]:
    """All questions of the first so many scenes, in the order of the file; None keeps every scene.

    Raises:
        QuestionError: there are fewer scenes.
    """
    if scenes is None:
        return tuple(questions)
    wanted = list(dict.fromkeys(question.scene_id for question in questions))
    if len(wanted) < scenes:
        raise QuestionError(
            f"{scenes} labelled scenes are asked for, the questions have {len(wanted)}. "
            f"Ask for at most {len(wanted)}, or make more scenes"
        )
    first = set(wanted[:scenes])
    return tuple(question for question in questions if question.scene_id in first)


@dataclass(frozen=True, slots=True)
class Uncovered:
    """One question without latents, and why."""

    question: Question
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which questions have latents in a store, and which not."""

    keys: dict[str, str]
    """Question id -> key of its image's latents, or of its future's."""
    missing: tuple[Uncovered, ...]
    questions_file: Path
    store_path: Path
    field: SourceField = "image"

    def require_complete(self) -> None:
        """Refuse to go on with questions that have no latents.

        Raises:
            QuestionError: some have none; names a few of them, counts all, says what to do.
        """
        if not self.missing:
            return
        images = {getattr(missing.question, self.field) for missing in self.missing}
        named = "; ".join(f"{item.question.id} ({item.reason})" for item in self.missing[:_NAMED])
        more = f"; and {len(self.missing) - _NAMED} more" if len(self.missing) > _NAMED else ""
        raise QuestionError(
            f"{len(self.missing)} of {len(self.keys) + len(self.missing)} questions in {self.questions_file} have no "
            f"latents in {self.store_path} ({len(images)} {self.field}s): {named}{more}. "
            f"Precompute these {self.field}s into this store with the same recipe, or take their questions out of the "
            "file"
        )


def resolve_keys(
    questions: Iterable[Question], questions_file: Path, store: LatentStore, *, field: SourceField = "image"
) -> Coverage:
    """Find the latents of each question's image, or of its future.

    An image that exists beside the questions file is found by the hash of its bytes; one that does not, by the source
    name that precompute recorded in the store. So training does not need the images.
    """
    sources, prompts = store.sources(), store.prompts()
    found: dict[tuple[str, str | None], tuple[str | None, str]] = {}  # image, prompt -> (key, or None and why)
    keys: dict[str, str] = {}
    missing: list[Uncovered] = []
    for question in questions:
        source = question.image if field == "image" else question.future
        if source is None:
            missing.append(Uncovered(question, "it names no future"))
            continue
        prompt = question.prompt if store.recipe.prompts == "sample" else None
        if (source, prompt) not in found:
            found[source, prompt] = _resolve(source, prompt, questions_file.parent, store, sources, prompts)
        key, reason = found[source, prompt]
        if key is None:
            missing.append(Uncovered(question, reason))
        else:
            keys[question.id] = key
    return Coverage(keys, tuple(missing), questions_file, store.path, field)


def _resolve(
    image: str,
    prompt: str | None,
    folder: Path,
    store: LatentStore,
    sources: dict[str, tuple[str, ...]],
    prompts: dict[str, str],
) -> tuple[str | None, str]:
    path = folder / image
    own = store.recipe.prompts == "sample"  # a key is then of image and prompt together
    try:
        key = key_of_file(path, prompt) if path.is_file() and (prompt is not None or not own) else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return None, f"{image} cannot be read: {error}"
    if key is not None:
        asked = "" if prompt is None else f" with the prompt {prompt!r}"
        return (key, "") if key in store else (None, f"no latent for the content of {image}{asked}, key {key}")
    known = tuple(key for key in sources.get(image, ()) if prompt in (None, prompts.get(key)))
    if own and len(known) > 1 and prompt is None:
        return None, f"{image} was rolled out with {len(known)} prompts; say in the question's `prompt` which is meant"
    if len(known) > 1:
        return None, f"{image} stands for {len(known)} different images in the store; put the one meant beside the file"
    if not known:
        return None, f"{image} is neither a file beside the questions nor a source named in the store"
    return (known[0], "") if known[0] in store else (None, f"{image} was source of key {known[0]}, which has no latent")

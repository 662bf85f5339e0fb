"""The record of a question, and reading it from any layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unicodedata import normalize

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...pipeline.errors import QuestionError
from ...pipeline.files import limits
from ...pipeline.messages import list_problems, name_some
from ...pipeline.progress import Progress
from .columns import misspelt
from .coverage import Coverage as Coverage
from .coverage import resolve_keys as resolve_keys
from .readers import read_rows
from .turns import EarlierTurns

UNTYPED = "untyped"
"""The type of questions that state none, in tables."""

_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]

_Choices = Annotated[tuple[_Text, ...], Field(min_length=2, max_length=limits.MAX_CHOICES, strict=False)]


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
    choices: _Choices | None = None
    """Possible answers, the right one among them. Without them the model answers in its own words."""
    type: _Text | None = None
    """Accuracy is reported per type."""
    prompt: _Text | None = None
    """The image's own prompt, where latents were made with one each: which of the image's futures is asked about."""
    anchor: Annotated[float, Field(ge=0, le=1e6, strict=False)] | None = None
    """Second of the video at which the picture or clip begins that is asked about: what `--anchor` chose."""
    before: EarlierTurns = Field(default=())
    """Earlier questions and answers of the same conversation, which stand in front of this one."""
    image_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the image's bytes, where the file holds them itself, or the image is elsewhere: finds its latents alone."""
    split: _Text | None = None
    """Training takes "train" and questions without a split; evaluation takes the split it is asked for."""

    # For controlled comparisons only (data/arms.py, study/findings.py).
    scene: _Text | None = None
    """What the image shows; several questions share it. The image where the file names none."""
    future: _Text | None = None
    """Video of the true future: a path relative to the questions file, or the source name precompute recorded."""
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

    @property
    def cluster(self) -> str:
        """What was drawn by chance: its minimal pair, else its scene; questions of one are not independent."""
        return self.pair or self.scene_id

    @property
    def asks(self) -> tuple[str, str, str]:
        """What it asks, in whatever words its family has for it; the words themselves where the file does not say."""
        return self.type or UNTYPED, self.family or "", self.about or self.question

    @model_validator(mode="before")
    @classmethod
    def _spelled_right(cls, record: dict[str, Any]) -> dict[str, Any]:
        if len(record) > limits.MAX_FIELDS:
            raise ValueError(f"it has {len(record):,} fields; the limit is {limits.MAX_FIELDS:,}")
        others = record.keys() - cls.model_fields.keys()
        if others and (misspelt_fields := misspelt(others, cls.model_fields.keys() - record.keys())):
            raise ValueError(f"{misspelt_fields[0]}: unknown field; did you mean {misspelt_fields[1]!r}?")
        return record

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if self.choices is not None:
            if len({normalize("NFC", choice) for choice in self.choices}) < len(self.choices):
                raise ValueError(f"choices: {list(self.choices)} names one choice twice")
            if self.answer not in self.choices:
                raise ValueError(f"answer: {self.answer!r} is not among the choices {list(self.choices)}")
        return self


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a valid question, and why."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True, slots=True)
class QuestionFile:
    """The content of a questions file or folder."""

    path: Path
    layout: str
    unit: str
    """What a row is called: line, row, conversation, simulation."""
    questions: tuple[Question, ...]
    bad: tuple[BadRow, ...]
    skipped: dict[str, int]
    """Why rows were skipped -> how many rows."""
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """What was changed in rows, or taken in one of two ways -> how many times."""

    def require(self, max_bad: int, progress: Progress | None = None) -> tuple[Question, ...]:
        """The questions, if at most `max_bad` rows are wrong; these are left out with a warning.

        Raises:
            QuestionError: more rows are wrong; the message names a few and counts all.
        """
        progress = progress or Progress.to_logger()
        if self.bad:
            named = name_some(self.bad, between="; ")
            if len(self.bad) > max_bad:
                start = (
                    f"{self.path}, " if len(self.bad) == 1 else f"{self.path}: {len(self.bad)} {self.unit}s are wrong: "
                )
                raise QuestionError(f"{start}{named}. Correct them, or go on without them: --max-bad {len(self.bad)}")
            progress.warn(f"warning: {self.path}: {len(self.bad)} wrong {self.unit}s are left out: {named}")
        if not self.questions:
            reasons = "; ".join(f"{count} {self.unit}s: {reason}" for reason, count in self.skipped.items())
            raise QuestionError(
                f"{self.path} holds no question{f' ({reasons})' if reasons else ''}: write one JSON object per line"
            )
        for reason, count in self.skipped.items():
            rows = (
                f"1 {self.unit} is passed over: it" if count == 1 else f"{count:,} {self.unit}s are passed over: each"
            )
            progress.warn(f"warning: {self.path}: {rows} {reason}")
        for note, count in self.notes.items():
            progress.say(f"{self.path}: {count:,} {note}")
        return self.questions


def read_questions(
    path: Path | str, *, columns: Mapping[str, str] | None = None, max_bad: int = 0, progress: Progress | None = None
) -> tuple[Question, ...]:
    """All questions of a file or folder, in its order, in any layout that readers.py lists.

    Args:
        columns: field -> column, for a table whose columns have names of their own.
        max_bad: how many rows may be wrong; they are left out with a warning.
        progress: where the warning goes; None is `Progress.to_logger()`.
    Raises:
        QuestionError: it is missing, empty or in an unsupported layout; more rows are wrong than allowed: not a JSON
            object, a field missing, misspelt or of the wrong type, an id that another question has.
    """
    return read_question_file(Path(path), columns=columns).require(max_bad, progress)


def read_question_file(path: Path, *, columns: Mapping[str, str] | None = None) -> QuestionFile:
    """All rows of a questions file or folder, wrong ones too. Raises as `read_questions`, but not for wrong rows."""
    table = read_rows(path, columns)
    questions: list[Question] = []
    bad: list[BadRow] = []
    skipped: Counter[str] = Counter()
    row_of: dict[str, str] = {}
    fields_set: dict[frozenset[str], set[str]] = {}
    letters = 0
    for row in table.rows:
        letters += _letters(row.record)
        if letters > limits.MAX_QUESTION_TEXTS:
            raise QuestionError(
                f"the questions of {path} have more than {limits.MAX_QUESTION_TEXTS:,} letters together. Split it into "
                "several files"
            )
        if len(questions) + len(bad) >= limits.MAX_QUESTIONS:
            raise QuestionError(f"{path} has more than {limits.MAX_QUESTIONS:,} questions. Split it into several files")
        if row.skipped:
            skipped[row.skipped] += 1
        elif row.record is None:
            bad.append(BadRow(row.where, _short(row.problem)))
        elif isinstance(question := _validated(row.record, fields_set), str):
            bad.append(BadRow(row.where, _short(question)))
        elif question.id in row_of:
            problem = (
                f"id: {question.id!r} is already the id of {row_of[question.id]}; ids name results, so each must be"
            )
            bad.append(BadRow(row.where, _short(f"{problem} unique")))
        else:
            row_of[question.id] = row.where
            questions.append(question)
    return QuestionFile(path, table.layout, table.unit, tuple(questions), tuple(bad), dict(skipped), dict(table.notes))


def _letters(record: Mapping[str, Any] | None) -> int:
    """Letters of the fields that are kept. Earlier turns of LLaVA's are the questions of other rows."""
    kept = 0
    for name in Question.model_fields.keys() & (record or {}).keys():
        value: Any = (record or {})[name]
        if isinstance(value, str):
            kept += len(value)
        elif name == "choices" and isinstance(value, list | tuple):
            kept += sum(len(choice) for choice in value if isinstance(choice, str))
        elif name == "before" and isinstance(value, list):
            kept += sum(len(str(turn)) for turn in value)
    return kept


def _short(problem: str) -> str:
    """What is wrong with a row, without all of a row that is long."""
    return problem if len(problem) <= limits.MAX_PROBLEM else f"{problem[: limits.MAX_PROBLEM]}…"


def _validated(record: Mapping[str, Any], fields_set: dict[frozenset[str], set[str]]) -> Question | str:
    """The question, or what is wrong with it.

    Args:
        fields_set: of the questions so far; pydantic's own set for each takes as much memory as all the rest.
    """
    try:
        question = Question.model_validate(record)
    except ValidationError as error:
        return list_problems(error)
    given = question.model_fields_set
    object.__setattr__(question, "__pydantic_fields_set__", fields_set.setdefault(frozenset(given), given))
    return question


def evaluation_split(questions: Sequence[Question]) -> str:
    """The split to evaluate after training: `test`, else another that was not learned from, else `train`."""
    splits = {question.split or "train" for question in questions} - {"train"}
    return "test" if "test" in splits else min(splits, default="train")


def select_split(questions: Sequence[Question], split: str | None, source: Path) -> tuple[Question, ...]:
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
        available = name_some([f"{name} ({count})" for name, count in sorted(counts.items())], most=16)
        raise QuestionError(
            f"{source} has no question of split {split!r}; it has {available}. Ask for one of those: --split train has "
            "those of no split, too, --split all has everything"
        )
    return chosen


def first_scenes(questions: Sequence[Question], scenes: int | None) -> tuple[Question, ...]:
    """All questions of the first so many scenes, in the order of the file; None keeps every scene.

    Raises:
        QuestionError: there are fewer scenes.
    """
    if scenes is None:
        return tuple(questions)
    scene_ids = list(dict.fromkeys(question.scene_id for question in questions))
    if len(scene_ids) < scenes:
        raise QuestionError(
            f"{scenes} labelled scenes are asked for, the questions have {len(scene_ids)}. "
            f"Ask for at most {len(scene_ids)}, or make more scenes"
        )
    chosen_ids = set(scene_ids[:scenes])
    return tuple(question for question in questions if question.scene_id in chosen_ids)

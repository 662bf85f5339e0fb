"""Make the record of a question from a row: one reader of fields and values for all layouts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...pipeline.files import limits
from .columns import ANSWERS, NEEDED, Columns, misspelt, plain_name
from .conversations import Conversation, read_conversation
from .markers import Markers
from .turns import Turn, Turns
from .values.answers import Given, most_frequent, read_answer
from .values.choices import Choices, read_choices, shuffle_choices
from .values.images import Images
from .values.text import Skipped, WrongValue, is_absent, text_of

Keep = Callable[[str, bytes], None]

_PLAIN = (
    *("type", "split", "prompt", "anchor", "scene", "future", "family", "about", "pair", "heuristic", "shift"),
    "image_sha256",
)
"""Fields whose value is a text, whatever it is."""
_HOW_GIVEN: dict[Given, str] = {
    "place": "answers given by place, from 0",
    "either": "answers that are one choice and the letter or place of another, taken as the choice",
    "case": "answers written in another case than their choice",
    "look": "answers with other blanks than their choice, or in another form of Unicode",
}
_MARKERS = "questions with a marker of the image in their text, which is taken out"
_ABSENT_CHOICES = "questions with an empty choice, which is left out"
LETTERED = "questions whose choices begin with their letters, which are taken off"
_OF_SEVERAL = "answers that are the most frequent of several"
_WORDS = frozenset({"NA", "N/A", "n/a", "NULL", "null", "None"})
_WORD_CHOICES = "questions with a choice that is written NA, N/A, null or None, taken as a word"
_UNREAD_HINT = "rows with a hint beside the question, which is not read"
_UNREAD_VIDEO = "rows with a video beside the image, which is not read"
_MOST_LAYOUTS = 1000
_ONE_ROW = Path("a row")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a record with the fields of `Question`, or what is wrong with it, or why it is skipped."""

    where: str
    """Where the row is, for messages: `line 17`, `train.parquet, row 3`."""
    record: dict[str, Any] | None = None
    problem: str = ""
    skipped: str = ""
    """Why it is skipped: it is not wrong, but does not ask about exactly one image."""


class RowReader:
    """Reads the rows of one questions file."""

    def __init__(
        self,
        *,
        columns: Columns | None = None,
        keep: Keep | None = None,
        labels: Mapping[str, list[str]] | None = None,
        shuffled: bool = False,
        ours: bool = False,
    ) -> None:
        """
        Args:
            columns: of a table; None chooses them for each row, by the names of its fields.
            keep: called with SHA-256 and bytes of each image in the rows themselves, once for each.
            labels: column -> the names its numbers stand for.
            shuffled: choices in an order drawn from the question's id, for tables whose right one has a place of its
                own.
            ours: ids are ours, so none comes twice, and a field of ours may be misspelt.
        """
        self.notes: Counter[str] = Counter()
        """What was changed or taken in one of two ways -> how many times."""
        self._columns = columns
        self._labels = labels or {}
        self._shuffled, self._is_ours = shuffled, ours
        self._images = Images(keep=keep)
        self._used_ids: set[str] = set()
        self._columns_of: dict[tuple[str, ...], Columns] = {}

    def read(self, where: str, row: Mapping[str, Any], number: int) -> Iterator[Row]:
        """The rows made of one: a conversation has one for each answer.

        Args:
            number: names a question that has no id.
        """
        notes: Counter[str] = Counter()
        try:
            columns = self._columns or self._choose(row)
            if columns.is_conversations:
                records = self._conversation(row, columns, where, number, notes)
            else:
                records = [self._question(row, columns, where, number, notes)]
        except Skipped as reason:
            yield Row(where, skipped=str(reason))
        except WrongValue as error:
            yield Row(where, problem=str(error))
        else:
            if notes:
                self.notes += notes
            for record in records:
                yield Row(where, record)

    def _choose(self, row: Mapping[str, Any]) -> Columns:
        if len(row) > limits.MAX_FIELDS:
            raise WrongValue(f"it has {len(row):,} fields; the limit is {limits.MAX_FIELDS:,}")
        names = tuple(row)
        columns = self._columns_of.get(names)
        if columns is None:
            columns = Columns.choose(_ONE_ROW, names, None, needed=())
            if self._is_ours and not columns.is_conversations:
                self._require_ours(names, columns)
            if len(self._columns_of) < _MOST_LAYOUTS:
                self._columns_of[names] = columns
        return columns

    def _require_ours(self, names: tuple[str, ...], columns: Columns) -> None:
        others = [name for name in names if name not in columns.all()]
        unfilled = [field for field in (*NEEDED, "choices", "before", *_PLAIN) if field not in columns.by_field]
        if misspelt_fields := misspelt(others, unfilled):
            raise WrongValue(f"{misspelt_fields[0]}: unknown field; did you mean {misspelt_fields[1]!r}?")
        if missing := next((field for field in NEEDED if field not in columns.by_field), None):
            raise WrongValue(f"{missing} is missing")

    def _question(
        self, row: Mapping[str, Any], columns: Columns, where: str, number: int, notes: Counter[str]
    ) -> dict[str, Any]:
        markers = Markers()
        if is_absent(columns.value(row, "question")):
            self._image(row, columns, (), markers, where, notes)  # a row without both is skipped, and not wrong
        question = _text(columns.value(row, "question"), "question", markers)
        if any(plain_name(name) == "hint" and not is_absent(value) for name, value in row.items()):
            notes[_UNREAD_HINT] += 1
        record = self._image(row, columns, (), markers, where, notes)
        system = columns.value(row, "system")
        if isinstance(system, str) and not is_absent(system):
            question = f"{_text(system, 'system', markers)}\n\n{question}"
        choices = self._choices(row, columns, markers, notes)
        record |= {"question": question, "answer": self._answer(row, columns, choices, markers, notes)}
        before = columns.value(row, "before")
        if not is_absent(before) and ("before" in columns.by_field["before"] or _are_pairs(before)):
            record["before"] = _before(before, markers)
        record["id"] = self._id(row, columns, str(number) if self._is_ours else where, number)
        if offered := choices.offered:
            record["choices"] = shuffle_choices(record["id"], offered) if self._shuffled else offered
        return self._completed(record, row, columns, markers, notes)

    def _conversation(
        self, row: Mapping[str, Any], columns: Columns, where: str, number: int, notes: Counter[str]
    ) -> list[dict[str, Any]]:
        markers = Markers()
        system = columns.value(row, "system")
        system = system if isinstance(system, str) else None
        talk = read_conversation(columns.value(row, "conversations"), system, markers)
        record = self._image(row, columns, talk.images, markers, where, notes)
        choices = self._choices(row, columns, markers, notes)
        offers = _offered_to(talk, choices, notes)
        turns = tuple(
            (question, answer if given is None else given)
            for (question, answer), given in zip(talk.turns, offers, strict=True)
        )
        name = self._id(row, columns, str(number), number)
        record = self._completed(record, row, columns, markers, notes)
        return [
            {
                **record,
                "id": name if len(turns) == 1 else f"{name}.{turn + 1}",
                "question": question,
                "answer": answer,
                "before": Turns(turns, turn),
                **({} if offers[turn] is None else {"choices": choices.offered}),
            }
            for turn, (question, answer) in enumerate(turns)
        ]

    def _image(
        self,
        row: Mapping[str, Any],
        columns: Columns,
        named: tuple[Any, ...],
        markers: Markers,
        where: str,
        notes: Counter[str],
    ) -> dict[str, Any]:
        values = [value for value in (*columns.values(row, "image"), *named) if not _is_empty(value)]
        others = {name: row[name] for name in columns.other_images if not _is_empty(row.get(name))}
        if not values:
            return self._images.take([*others.values()][:1] or markers.names, where)
        record = self._images.take(values, where)
        if any(isinstance(value, list) and len(cast(list[Any], value)) > 1 for value in others.values()):
            raise Skipped("shows several images")
        if any(plain_name(name).startswith("video") for name in others):
            notes[_UNREAD_VIDEO] += 1
        return record

    def _choices(self, row: Mapping[str, Any], columns: Columns, markers: Markers, notes: Counter[str]) -> Choices:
        choices = read_choices(columns.value(row, "choices"), most=limits.MAX_CHOICES)
        offered = choices.offered
        if not offered:
            return Choices({})
        texts = {name: None if text is None else markers.take(text) for name, text in choices.texts.items()}
        if "" in texts.values():
            raise Skipped("offers images as choices")
        if len(offered) < len(texts):
            notes[_ABSENT_CHOICES] += 1
        if choices.lettered:
            notes[LETTERED] += 1
        if not _WORDS.isdisjoint(offered):
            notes[_WORD_CHOICES] += 1
        return Choices(texts, choices.numbers)

    def _answer(
        self, row: Mapping[str, Any], columns: Columns, choices: Choices, markers: Markers, notes: Counter[str]
    ) -> str:
        given = columns.value(row, "answer")
        if plain_name(columns.by_field.get("answer", ("",))[0]) in ANSWERS:
            given, people = most_frequent(given)
            if people > 1:
                notes[_OF_SEVERAL] += 1
        names = self._labels.get(columns.by_field.get("answer", ("",))[0])
        if names is not None and isinstance(given, int) and 0 <= given < len(names):
            given = names[given]
        if isinstance(given, str) and given.strip():
            given = markers.take(given)
            if not given:
                raise WrongValue("its answer is nothing but the marker of an image")
        answer, how = read_answer(given, choices)
        if how in _HOW_GIVEN:
            notes[_HOW_GIVEN[how]] += 1
        return answer

    def _id(self, row: Mapping[str, Any], columns: Columns, name: str, number: int) -> str:
        """The id, made unique where it is not ours: a file may repeat ids (LLaVA's do), but ours name results."""
        given = columns.value(row, "id")
        name = _text(name if is_absent(given) else given, "id")
        if self._is_ours and not columns.is_conversations:
            return name
        name = name if name not in self._used_ids else f"{name}@{number}"
        self._used_ids.add(name)
        return name

    def _completed(
        self,
        record: dict[str, Any],
        row: Mapping[str, Any],
        columns: Columns,
        markers: Markers,
        notes: Counter[str],
    ) -> dict[str, Any]:
        """The record with its other fields.

        Raises:
            Skipped: its texts refer to several images.
        """
        if markers.images > 1:
            raise Skipped("shows several images")
        if markers.removed:
            notes[_MARKERS] += 1
        for field in _PLAIN:
            if field not in columns.by_field or is_absent(value := columns.value(row, field)):
                continue
            is_other = isinstance(value, list | dict) and plain_name(columns.by_field[field][0]) != field
            if not is_other:  # `category` may be another tool's list
                record.setdefault(field, _text(value, field))
        if "image_sha256" in record:
            record["image_sha256"] = record["image_sha256"].lower()
        if "split" not in record and not is_absent(split := row.get("split")):  # from the name of the file
            record["split"] = _text(split, "split")
        return record


def _text(value: Any, field: str, markers: Markers | None = None) -> str:
    if is_absent(value):
        raise WrongValue(f"{field} is missing")
    try:
        text = text_of(value)
    except WrongValue as error:
        raise WrongValue(f"{field}: {error}") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a byte that is no UTF-8, or JSON's half of a letter
        raise WrongValue(f"{field} is not Unicode text: save the file as UTF-8") from error
    if markers is None:
        return text
    text = markers.take(text)
    if not text:
        raise WrongValue(f"{field} is nothing but the marker of an image")
    return text


def _is_empty(value: Any) -> bool:
    """Whether no image is there: not in a list, nor in one of datasets' structs of bytes and path."""
    if is_absent(value):
        return True
    if isinstance(value, Mapping):
        return all(map(is_absent, cast(Mapping[str, Any], value).values()))
    return isinstance(value, list) and all(is_absent(part) or _is_empty(part) for part in cast(list[Any], value))


def _before(value: Any, markers: Markers) -> Any:
    """Earlier turns, each a pair of texts; whatever is none is left for the record to refuse."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise WrongValue("before is no list of questions and answers") from error
    if not isinstance(value, list):
        raise WrongValue(f"before: expected a list, got {type(value).__name__}")
    turns = cast(list[Any], value)
    if len(turns) > limits.MAX_TURNS:
        raise WrongValue(f"before has {len(turns):,} turns; the limit is {limits.MAX_TURNS}")
    return [_turn(turn, markers) for turn in turns]


def _are_pairs(value: Any) -> bool:
    """Whether another tool's `history` is what ours is."""
    return isinstance(value, list) and all(
        isinstance(turn, list) and len(cast(list[Any], turn)) == 2 for turn in cast(list[Any], value)
    )


def _turn(turn: Any, markers: Markers) -> Turn:
    if not isinstance(turn, list) or len(cast(list[Any], turn)) != 2:
        raise WrongValue("before: a turn is no pair of a question and its answer")
    question, answer = cast(list[Any], turn)
    return _text(question, "before", markers), _text(answer, "before", markers)


def _offered_to(talk: Conversation, choices: Choices, notes: Counter[str]) -> list[str | None]:
    """For each answer of a conversation the choice that it names; None for answers in own words.

    Raises:
        WrongValue: there are choices, and no answer names one.
    """
    if not choices.offered:
        return [None] * len(talk.turns)
    offers: list[str | None] = []
    problem = ""
    for _, answer in talk.turns:
        try:
            text, how = read_answer(answer, choices)
        except WrongValue as error:
            problem = str(error)
            offers.append(None)
            continue
        if how in _HOW_GIVEN:
            notes[_HOW_GIVEN[how]] += 1
        offers.append(text)
    if not any(offers):
        raise WrongValue(problem)
    return offers

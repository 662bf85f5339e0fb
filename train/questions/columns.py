"""Choose which column of a table, or field of a record, fills which field of a question: as requested, or by its name.

Names are the same in any case, with blanks around them, and with blanks or hyphens for underscores.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import QuestionError
from ...pipeline.messages import name_some

_IMAGES = (
    *("image", "images", "image_bytes", "image_path", "img", "image_name", "image_file"),
    *("video", "videos", "video_path"),
)
ANSWERS = ("answers", "direct_answers")
"""What several people said, as in VQAv2 and VizWiz: the most frequent is the answer."""
FIELDS = {
    "id": ("id", "question_id", "qid", "sample_id", "index", "uid"),
    "image": (*_IMAGES, "path", "file", "file_name", "image_id", "imageid"),
    "question": ("question", "query", "problem", "text"),
    "answer": (
        *("answer", "correct_answer", "multiple_choice_answer", "label", "target", "ground_truth", "response"),
        *("answerkey", "answer_key", "answer_idx", "answer_index", "correct_choice_idx", "correct_choice"),
        *ANSWERS,
    ),
    "choices": ("choices", "options", "candidates", "answers"),
    "type": ("type", "question_type", "category", "task", "kind"),
    "split": ("split",),
    "before": ("before", "history"),
    "system": ("system", "system_prompt"),
    "conversations": ("conversations", "messages", "conversation"),
    **{name: (name,) for name in ("prompt", "anchor", "scene", "future", "family")},
    **{name: (name,) for name in ("about", "pair", "heuristic", "shift")},
    "image_sha256": ("image_sha256",),
}
"""Each field that a column map may name, with its usual column names: the first that exists fills it."""
NEEDED = ("image", "question", "answer")
_LETTERS = "abcdefghij"
_LETTER = re.compile(r"((?:option|choice|opt)_?)?([a-j])")
_NUMBERED_IMAGE = re.compile(r"image_?\d{1,2}")
_LONGEST = 50  # letters of a name that could be a misspelling of a field
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns fill which field; choices and images may come from several columns."""

    by_field: dict[str, tuple[str, ...]]
    other_images: tuple[str, ...] = ()
    """Columns to look into where that of the image is empty, as LLaVA's files have `video` beside `image`."""

    @classmethod
    def choose(
        cls,
        path: Path,
        names: Sequence[str],
        requested: Mapping[str, str] | None,
        *,
        needed: Sequence[str] = NEEDED,
    ) -> Columns:
        """Choose the columns of a table.

        Args:
            names: the table's columns. requested: field -> column, as requested; `A|B|C` names several.
            needed: the fields that some column must fill; of a table of conversations, none.
        Raises:
            QuestionError: a column asked for is not there, or nothing fills a field that every question needs.
        """
        columns_by_field: dict[str, tuple[str, ...]] = {}
        by_name = {plain_name(name): name for name in reversed(names)} | {name: name for name in names}
        for field, text in (requested or {}).items():
            columns_by_field[field] = tuple(
                _requested(path, field, part.strip(), names, by_name) for part in text.split("|")
            )
        used_columns = {column for columns in columns_by_field.values() for column in columns}
        for field, guesses in FIELDS.items():
            candidates = [by_name[name] for name in guesses if name in by_name and by_name[name] not in used_columns]
            # elsewhere `answers` is what several people said
            if field == "choices" and columns_by_field.get("answer", ("",))[0] != by_name.get("correct_answer"):
                candidates = [name for name in candidates if plain_name(name) != "answers"]
            if field not in columns_by_field and candidates:
                columns_by_field[field] = (candidates[0],)
                used_columns.add(candidates[0])
        if "choices" not in columns_by_field and (letters := _letter_columns(names)):
            columns_by_field["choices"] = letters
        if "image" not in columns_by_field:
            numbered = sorted((n for n in names if _NUMBERED_IMAGE.fullmatch(plain_name(n))), key=_number_in)  # MMMU's
            if numbered:
                columns_by_field["image"] = tuple(numbered)
        chosen = cls(columns_by_field, cls._other_images(columns_by_field, by_name, requested))
        if not chosen.is_conversations and (missing := [field for field in needed if field not in columns_by_field]):
            raise QuestionError(
                f"{path}: which column holds the {missing[0]}? It has {_listed(names)}. "
                f"Say so: --columns {','.join(f'{field}=NAME' for field in missing)}"
            )
        return chosen

    @staticmethod
    def _other_images(
        by_field: Mapping[str, tuple[str, ...]], by_name: Mapping[str, str], requested: Mapping[str, str] | None
    ) -> tuple[str, ...]:
        if "image" in (requested or {}):
            return ()
        used = {column for columns in by_field.values() for column in columns}
        return tuple(dict.fromkeys(by_name[n] for n in _IMAGES if n in by_name and by_name[n] not in used))

    @property
    def is_conversations(self) -> bool:
        """Whether the questions stand in conversations."""
        talk = self.by_field.get("conversations")
        if talk is None:
            return False
        has_both = "question" in self.by_field and "answer" in self.by_field
        return not has_both or plain_name(talk[0]) == "conversations"

    def all(self) -> set[str]:
        """The names of all columns to read, with and without an index."""
        names = {column for columns in self.by_field.values() for column in columns} | set(self.other_images)
        return names | {re.sub(r"\[\d+\]$", "", column) for column in names}

    def values(self, record: Mapping[str, Any], field: str) -> list[Any]:
        """The values of all columns of a field in a record."""
        return [_value(record, column) for column in self.by_field.get(field, ())]

    def value(self, record: Mapping[str, Any], field: str) -> Any:
        """The value of a field in a record; for several columns, their list."""
        if (columns := self.by_field.get(field)) is None:
            return None
        column, *more = columns
        if more:
            return self.values(record, field)
        return record[column] if column in record else _value(record, column)


def plain_name(name: str) -> str:
    """A name without what does not count in it."""
    return re.sub(r"[ -]", "_", name[: 4 * _LONGEST].strip().casefold())


def _requested(path: Path, field: str, column: str, names: Sequence[str], by_name: Mapping[str, str]) -> str:
    index = match[0] if (match := re.search(r"\[\d+\]$", column)) else ""
    bare = column.removesuffix(index) if index else column
    for name, suffix in ((column, ""), (bare, index), (plain_name(bare), index)):
        if name in by_name:
            return by_name[name] + suffix
    raise QuestionError(f"{path} has no column {column!r} for {field}; it has {_listed(names)}")


def _value(record: Mapping[str, Any], column: str) -> Any:
    if column not in record and (indexed := re.fullmatch(r"(.*)\[(\d+)\]", column)):
        values, index = record.get(indexed[1]), int(indexed[2])
        return values[index] if isinstance(values, list) and index < len(values) else None
    return record.get(column)


def _letter_columns(names: Iterable[str]) -> tuple[str, ...]:
    """The columns A, B, … or option_a, option_b, …, if they begin at A without a gap."""
    columns_of: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _LETTER.fullmatch(plain_name(name)):
            columns_of.setdefault(match[1] or "", {}).setdefault(match[2], name)
    for columns in columns_of.values():
        letters = "".join(sorted(columns))
        if len(letters) >= 2 and _LETTERS.startswith(letters):
            return tuple(columns[letter] for letter in letters)
    return ()


def _number_in(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def misspelt(others: Iterable[str], unfilled: Collection[str]) -> tuple[str, str] | None:
    """A name that looks like a misspelling of a field without a value, and that field; None where there is none.

    A field that every question needs is looked for among all similar names. Of the others a name must be one letter
    away, for `time`, `scene_id` and `types` are other tools' fields.
    """
    needed = [field for field in NEEDED if field in unfilled]
    optional = [field for field in unfilled if field not in NEEDED and len(field) >= _SHORTEST]
    for name in others:
        if len(name) > _LONGEST:
            continue
        plain = plain_name(name)
        if near := difflib.get_close_matches(plain, needed, n=1, cutoff=0.75):
            return name, near[0]
        if near := next((field for field in optional if _one_letter_apart(plain, field)), None):
            return name, near
    return None


def _one_letter_apart(name: str, field: str) -> bool:
    """Whether one letter is wrong, too much or missing, or two are exchanged; a plural is a name of its own."""
    if not name.isalpha() or name == f"{field}s" or abs(len(name) - len(field)) > 1 or name == field:
        return False
    start = next((n for n, (a, b) in enumerate(zip(name, field, strict=False)) if a != b), min(len(name), len(field)))
    rest, other = name[start:], field[start:]
    if rest[:2] == other[1::-1] and rest[2:] == other[2:]:
        return True
    if len(field) <= _SHORTEST:
        return False  # too many words are one letter away from a short one
    return rest[1:] == other or rest == other[1:] or (len(field) > _SHORTEST + 1 and rest[1:] == other[1:])


def _listed(names: Sequence[str]) -> str:
    return name_some([name if len(name) <= 80 else f"{name[:80]}…" for name in names], most=16)

"""Choose which column of a table fills which field of a question: as requested, or by its usual name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import QuestionError
from ...pipeline.messages import name_some

FIELDS = {
    "id": ("id", "question_id", "qid", "sample_id", "index", "uid"),
    "image": (
        *("image", "images", "image_bytes", "image_path", "img"),
        *("video", "video_path", "path", "file", "file_name"),
    ),
    "question": ("question", "query", "problem"),
    "answer": ("answer", "correct_answer", "label", "target", "ground_truth"),
    "choices": ("choices", "options", "candidates", "answers"),
    "type": ("type", "question_type", "category", "task", "kind"),
    "split": ("split",),
    **{name: (name,) for name in ("prompt", "anchor", "scene", "future", "family")},
    **{name: (name,) for name in ("about", "pair", "heuristic", "shift")},
}
"""Each field that a column map may name, with its usual column names: the first that exists fills it."""
_LETTERS = "ABCDEFGHIJ"
_NEEDED = ("image", "question", "answer")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns fill which field; choices may come from several columns."""

    by_field: dict[str, tuple[str, ...]]

    @classmethod
    def choose(cls, path: Path, names: Sequence[str], requested: Mapping[str, str] | None) -> Columns:
        """Choose the columns of a table.

        Args:
            names: the table's columns. requested: field -> column, as requested; `A|B|C` names several.
        Raises:
            QuestionError: a column asked for is not there, or nothing fills a field that every question needs.
        """
        columns_by_field: dict[str, tuple[str, ...]] = {}
        for field, text in (requested or {}).items():
            columns = tuple(part.strip() for part in text.split("|"))
            for column in columns:
                if re.sub(r"\[\d+\]$", "", column) not in names and column not in names:
                    available = _listed(names)
                    raise QuestionError(f"{path} has no column {column!r} for {field}; it has {available}")
            columns_by_field[field] = columns
        used_columns = {column for columns in columns_by_field.values() for column in columns}
        for field, guesses in FIELDS.items():
            candidates = [name for name in guesses if name in names and name not in used_columns]
            # elsewhere `answers` is what several people said
            if field == "choices" and columns_by_field.get("answer") != ("correct_answer",):
                candidates = [name for name in candidates if name != "answers"]
            if field not in columns_by_field and candidates:
                columns_by_field[field] = (candidates[0],)
                used_columns.add(candidates[0])
        letters = tuple(letter for letter in _LETTERS if letter in names)
        if "choices" not in columns_by_field and len(letters) >= 2 and letters == tuple(_LETTERS[: len(letters)]):
            columns_by_field["choices"] = letters
        if missing := [field for field in _NEEDED if field not in columns_by_field]:
            raise QuestionError(
                f"{path}: which column holds the {missing[0]}? It has {_listed(names)}. "
                f"Say so: --columns {','.join(f'{field}=NAME' for field in missing)}"
            )
        return cls(columns_by_field)

    def all(self) -> set[str]:
        """The names of all columns to read, with and without an index."""
        names = {column for columns in self.by_field.values() for column in columns}
        return names | {re.sub(r"\[\d+\]$", "", column) for column in names}

    def value(self, record: Mapping[str, Any], field: str) -> Any:
        """The value of a field in a record; for several columns, a dict by column name."""
        columns = self.by_field.get(field, ())
        if len(columns) > 1:
            return {column: record.get(column) for column in columns}
        if not columns:
            return None
        column = columns[0]
        if column not in record and (indexed := re.fullmatch(r"(.*)\[(\d+)\]", column)):
            values, index = record.get(indexed[1]), int(indexed[2])
            return values[index] if isinstance(values, list) and index < len(values) else None
        return record.get(column)


def _listed(names: Sequence[str]) -> str:
    return name_some([name if len(name) <= 80 else f"{name[:80]}…" for name in names], most=16)

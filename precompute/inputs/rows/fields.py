"""What a row states of an input beside its path: a prompt, and where in a video its clip begins and ends.

seconds      12.5, "12.5", "12.5s"                                   Kinetics
clock        "0:12.5", "00:00:12.500", "00:00:12,500"                HowTo100M, subtitles
a pair       ["0:00:10.5", "0:00:15.2"], [10.5, 15.2], also as text  WebVid-like lists, Panda-70M
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, cast

from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ...media.video_times import Window

MAX_START_S = 10.0**6
"""Twelve days."""
_SECONDS = re.compile(r"\s*(\d{1,7}(?:\.\d{0,12})?|\.\d{1,12})\s*s?\s*")
_CLOCK = re.compile(r"\s*(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:[.,]\d{1,9})?)\s*")
_PART = r"""(?:'([^'\[\]]{1,40})'|"([^"\[\]]{1,40})"|([\d.:]{1,40}))"""
_PAIR = re.compile(rf"\s*(?:\[\s*)?[\[(]\s*{_PART}\s*,\s*{_PART}\s*[\])](?:\s*\])?\s*")


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that are read beside that of the path; None reads none."""

    prompt: str | None = None
    start: str | None = None
    end: str | None = None

    def flags(self) -> dict[str, str]:
        """The flag that names each column -> the column."""
        flags = {"--prompt-field": self.prompt, "--start-field": self.start, "--end-field": self.end}
        return {flag: column for flag, column in flags.items() if column is not None}

    @property
    def times(self) -> tuple[str, ...]:
        """The columns of moments."""
        return tuple(column for column in (self.start, self.end) if column is not None)


def seconds_of(value: object) -> float | None:
    """Seconds, to the millisecond, of a number or a text such as `0:12.5`; None of anything else.

    A text is read without a sign; a number may be negative, which the caller refuses.
    """
    if isinstance(value, str):
        if (match := _SECONDS.fullmatch(value)) is not None:
            value = float(match[1])
        elif (match := _CLOCK.fullmatch(value)) is not None:
            value = 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3].replace(",", "."))
        else:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_START_S:
        return None
    return round(float(value), 3)


def window_of(name: str, record: dict[str, Any], start: str | None, end: str | None) -> Window | None:
    """The window of a row; None where it states no moment, so that the input is used from its start on.

    Args:
        name: of the row for people. start, end: the names of the columns in this record.
    Raises:
        ImageError: what it states is no moment, or ends before it begins.
    """
    first, last = (_stated(record.get(column)) if column is not None else None for column in (start, end))
    if isinstance(first, tuple):
        first, of_pair = first
        last = of_pair if end is None else last
    if isinstance(last, tuple):
        last = last[1]
    start_s = None if first is None else _moment(name, start, first)
    end_s = None if last is None else _moment(name, end or start, last)
    if start_s is None and end_s is None:
        return None
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ImageError(FailureReason.ROW, f"{name}: the clip ends at {end_s:g} s and begins at {start_s or 0:g} s")
    return Window(start_s or 0.0, end_s)


def _stated(value: object) -> Any:
    """The value, a pair of them, or None where nothing is stated."""
    if isinstance(value, str):
        if (match := _PAIR.fullmatch(value)) is not None:
            first, last = (next(part for part in parts if part) for parts in (match.groups()[:3], match.groups()[3:]))
            return first, last
        return value if value.strip() else None
    if isinstance(value, float) and math.isnan(value):  # how pandas writes that nothing is there
        return None
    if isinstance(value, list):
        parts = cast(list[Any], value)
        if len(parts) == 1 and isinstance(parts[0], list):
            parts = cast(list[Any], parts[0])
        return (parts[0], parts[1]) if len(parts) == 2 else value
    return value


def _moment(name: str, column: str | None, value: object) -> float:
    seconds = seconds_of(value)
    if seconds is None or seconds < 0:
        text = value if isinstance(value, str | int | float) else getattr(value, "text", type(value).__name__)
        raise ImageError(
            FailureReason.ROW,
            f"{name}: {column} must be one moment, in seconds or such as 0:12.5, got {str(text)[:80]!r}. A row with "
            "several clips becomes a row for each",
        )
    return seconds

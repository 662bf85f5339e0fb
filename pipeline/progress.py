"""All output of commands: results on stdout, progress and warnings on stderr.

Names, questions and errors of libraries come from strangers, so nothing here is taken as markup, and what could command
a terminal is shown as an escape (`printable`). No other module prints.

The rule for all packages: what a person should know is said to the `Progress` that the caller hands down, or returned
with the result, never both. A public function that was given no `Progress` says it to `Progress.to_logger()`, so a
Python caller sees warnings and can turn everything on or off with `logging.getLogger("theworld")`. No other module
logs. `Progress.silent()` is for what only shows a bar, and for what is said elsewhere already.

Colors follow the terminal, NO_COLOR and FORCE_COLOR, as rich reads them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from .messages import format_rate, printable
from .streams import result_of

LOG_EVERY_S = 10.0
"""Between lines where stderr is a file and a live bar would fill it."""


class Bar(Protocol):
    """A progress bar: counts what is done."""

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None:
        """Count `count` more; `failed` is the total of failures so far, `note` a figure to show.

        Args:
            count: below 0 where some of it has to be done again.
        """
        ...


class Progress:
    """Tells a person how far a job is; `Progress.silent()` tells nobody.

    Args:
        quiet: show only what `warn` gets.
    """

    def __init__(self, console: Console | None, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._warnings: set[str] = set()

    @classmethod
    def on_stderr(cls, *, quiet: bool = False) -> Progress:
        """A live bar on a terminal, a line every ten seconds elsewhere."""
        return cls(_stderr(), quiet=quiet)

    @classmethod
    def silent(cls) -> Progress:
        """For callers that want none."""
        return cls(None)

    @staticmethod
    def to_logger() -> Progress:
        """For a Python caller who gave none: lines go to the logger `theworld`, warnings at its level WARNING."""
        return _Logged()

    @staticmethod
    def keeping(warnings: list[str]) -> Progress:
        """Appends warnings to a list, for a process that nobody watches: its parent warns of them."""
        return _Kept(warnings)

    def say(self, line: str) -> None:
        """One line; markup in it is printed, not interpreted."""
        if not self._quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        """Print a warning, once if it is repeated; --quiet does not silence it."""
        if line not in self._warnings:
            self._warnings.add(line)
            self._print_warning(line)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(_with_margin(line), markup=False)

    def _print_warning(self, line: str) -> None:
        self._print(line)

    @contextmanager
    def bar(self, title: str, *, total: int, unit: str) -> Generator[Bar, None, None]:
        """A bar that lives as long as the block; for a logger or a file a line every ten seconds."""
        if self._console is None or self._quiet:
            yield _Silent()
        elif self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]}", style="red", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with RichProgress(*columns, console=self._console) as live:
                yield _Live(live, title, total, unit)
        else:
            lines = _Lines(self, title, total, unit)
            yield lines
            lines.finish()


class _Logged(Progress):
    def __init__(self) -> None:
        super().__init__(None)
        self._logger = logging.getLogger("theworld")

    @contextmanager
    def bar(self, title: str, *, total: int, unit: str) -> Generator[Bar, None, None]:
        lines = _Lines(self, title, total, unit)
        yield lines
        lines.finish()

    def _print(self, line: str) -> None:
        self._logger.info("%s", _with_margin(line))

    def _print_warning(self, line: str) -> None:
        self._logger.warning("%s", _with_margin(line))


class _Kept(Progress):
    def __init__(self, warnings: list[str]) -> None:
        super().__init__(None)
        self._kept = warnings

    def _print_warning(self, line: str) -> None:
        self._kept.append(line)


def print_error(text: str) -> None:
    """An error's message, in red where that is welcome, on stderr."""
    _stderr().print(_with_margin(text), style="red", markup=False)


def print_lines(*lines: str, err: bool = False, paths: bool = False) -> None:
    """Results on stdout, or on stderr: each is one line, whatever is in it.

    Args:
        paths: a script may take paths from these lines, so where no terminal shows them, a path that is not UTF-8 goes
            out as the bytes it has.
    Raises:
        OutputError: stdout cannot be written.
    """
    stream = sys.stderr if err else sys.stdout
    keep_bytes = paths and not stream.isatty()
    with nullcontext() if err else result_of():
        for line in lines:
            stream.write(f"{_written(line, stream, keep_bytes=keep_bytes)}\n")
        stream.flush()


def print_json(value: object, *, indent: int | None = 2) -> None:
    """A result for a program, on stdout: ASCII alone."""
    print_lines(*json.dumps(value, indent=indent).split("\n"))


def print_at_once(text: str) -> None:
    """A line on stderr from a signal handler: past every buffer, and to nobody where the terminal is gone."""
    with suppress(OSError):
        os.write(2, f"\n{_with_margin(text)}\n".encode())


def print_result(table: Table) -> None:
    """A result on stdout; brackets and colons in a name are shown as they are, and a long cell is wrapped, not cut."""
    printed = copy(table)
    printed.columns = [
        replace(
            column,
            header=_cell(column.header),
            footer=_cell(column.footer),
            overflow="fold",
            _cells=[_cell(cell) for cell in column.cells],
        )
        for column in table.columns
    ]
    printed.title = None if table.title is None else _cell(table.title)
    printed.caption = None if table.caption is None else _cell(table.caption, lines=True)
    with result_of():
        Console(markup=False, emoji=False, highlight=False).print(printed)


def _cell(content: object, *, lines: bool = False) -> str | Text:
    """What a table may hold: text, and text of ours with a style for all of it."""
    if not isinstance(content, str | Text):
        raise TypeError(f"a cell is text, not {type(content).__name__}")
    safe = _with_margin(str(content)) if lines else printable(str(content))
    return Text(safe, style=content.style) if isinstance(content, Text) else safe


def _with_margin(text: str) -> str:
    """Its lines; those after the first are set in, so that none in a name passes for a line of ours."""
    first, *others = map(printable, text.split("\n"))
    margin = "    " * any(line and not line.startswith(" ") for line in others)
    return "\n".join([first, *(f"{margin}{line}" for line in others)])


def _written(line: str, stream: TextIO, *, keep_bytes: bool) -> str:
    """The line as the stream can write it."""
    encoding = stream.encoding or "utf-8"
    if keep_bytes and _is_of_paths(line):
        line = "".join(c if "\udc80" <= c <= "\udcff" else printable(c) for c in line)
    else:
        line = printable(line)
    try:
        line.encode(encoding, stream.errors or "strict")
    except UnicodeEncodeError:
        return line.encode(encoding, "backslashreplace").decode(encoding)
    return line


def _is_of_paths(line: str) -> bool:
    """Whether its lone surrogates are bytes that the file system gave: together, others could make any character."""
    try:
        return os.fsdecode(os.fsencode(line)) == line
    except UnicodeEncodeError:
        return False


def _stderr() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)  # list.jsonl:100: is a place


class _Silent:
    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None: ...


class _Counter:
    """How far it is, and how fast."""

    def __init__(self, unit: str) -> None:
        self.done: int = 0
        self._unit = unit
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def rate(self) -> str:
        if self.done <= 0 or self.elapsed_s <= 0:
            return ""
        return format_rate(self.done / self.elapsed_s, self._unit)


class _Live(_Counter):
    def __init__(self, live: RichProgress, title: str, total: int, unit: str) -> None:
        super().__init__(unit)
        self._live = live
        self._unit_shown = printable(unit)
        self._task = live.add_task(printable(title), total=total, rate=self._unit_shown, failed="", note="")

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None:
        self.done += count
        failures = f"{failed} failed" if failed else ""
        rate = f"{self._unit_shown} {printable(self.rate())}"
        self._live.update(self._task, advance=count, rate=rate, failed=failures, note=printable(note))


class _Lines(_Counter):
    def __init__(self, progress: Progress, title: str, total: int, unit: str) -> None:
        super().__init__(unit)
        self._progress, self._title, self._total = progress, title, total
        self._last = time.monotonic()
        self._tail: list[str] = []

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None:
        self.done += count
        self._tail = [f"{failed} failed" if failed else "", note]
        if time.monotonic() - self._last >= LOG_EVERY_S and self.done < self._total:
            self._last = time.monotonic()
            self.finish()

    def finish(self) -> None:
        done = f"{self._title}: {self.done} of {self._total}{self._percent()}"
        self._progress.say(", ".join(filter(None, [done, self.rate(), self._times(), *self._tail])))

    def _percent(self) -> str:
        return f" ({100 * self.done // self._total} %)" if self._total else ""

    def _times(self) -> str:
        if self.done <= 0:
            return ""
        left_s = (self._total - self.done) * self.elapsed_s / self.done
        left = f", {_clock(left_s)} left" if left_s > 0 else ""
        return f"{_clock(self.elapsed_s)} elapsed{left}"


def _clock(seconds: float) -> str:
    """As the live bar has it: 0:01:05, or 2 days, 3:04:05."""
    return str(timedelta(seconds=round(seconds)))

"""Whatever text leaves for a terminal or a log, nothing in it can command the terminal or pass for a line of ours."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from theworld.pipeline.messages import printable
from theworld.pipeline.progress import (
    Progress,
    print_at_once,
    print_error,
    print_json,
    print_lines,
    print_result,
)

EVIL = "\x1b]0;OWNED\x07\x1b[2J\u202e\u2066\u200b\ufeff\u2028\x85\x9b\r[red]:car:"
"""A title, a cleared screen, marks of direction, no width, ends of lines, and markup."""


def is_safe(text: str) -> bool:
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") for c in text.replace("\n", ""))


def through(console: Console) -> Progress:
    return Progress(console)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


DOORS: dict[str, Callable[[str], None]] = {
    "print_lines": print_lines,
    "print_lines, stderr": lambda text: print_lines(text, err=True),
    "print_lines, paths": lambda text: print_lines(text, paths=True),
    "print_json": lambda text: print_json({text: [text]}),
    "print_error": print_error,
    "say": lambda text: Progress.on_stderr().say(text),
    "warn": lambda text: Progress.on_stderr().warn(text),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_a_command_out(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    DOORS[door](f"name {EVIL}")
    said = capsys.readouterr()
    assert is_safe(said.out + said.err)
    assert (r"\x1b]0;OWNED" in said.out + said.err) or ("u001b]0;OWNED" in said.out)
    assert "[red]:car:" in said.out + said.err


def test_a_signal_s_line_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    print_at_once(f"stopped {EVIL} \ud800")
    assert is_safe(capfd.readouterr().err)


@given(st.text(st.characters(exclude_categories=[]), max_size=20))
def test_what_is_shown_of_any_text_is_one_line_without_commands(text: str) -> None:
    shown = printable(text)
    assert is_safe(shown)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    "text",
    [
        "où tombera la balle ?",
        "球は\u3000どこへ",
        "куда",
        "אֵיפֹה",
        "أين الكرة",
        "गेंद कहाँ",
        "공",
        "1\u00a0000",
        "a\\b",
        "❤\ufe0f",
    ],
)
def test_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["\u3164", "\u115f", "\u2060", "\U000e0041", "\ue000", "\udc80", "\u061c", "\u180e"])
def test_what_has_no_ink_is_shown(text: str) -> None:
    assert printable(f"a{text}").startswith("a\\")


def test_a_table_is_escaped_in_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(EVIL, title=EVIL, caption=f"{EVIL}\n{EVIL}")
    table.add_column(EVIL, footer=EVIL)
    table.show_footer = True
    table.add_row(EVIL, Text(f"{EVIL}\nnew"))
    before = list(table.columns[0].cells)
    print_result(table)
    said = capsys.readouterr().out
    assert is_safe(said)
    assert "OWNED" in said
    assert list(table.columns[0].cells) == before, "the caller's table is its own"


def test_a_table_of_what_could_print_itself_is_refused() -> None:
    table = Table("a")
    table.add_row(Table("inner"))
    with pytest.raises(TypeError, match="a cell is text, not Table"):
        print_result(table)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_names_and_interprets_nothing(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=400, color_system=None, emoji=False)
    with through(console).bar(f"title {EVIL}", total=2, unit=f"unit {EVIL}") as bar:
        bar.advance(2, failed=1, note=f"note {EVIL}")
    shown = file.getvalue()
    assert "OWNED\x07" not in shown
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
    assert not {"\u202e", "\u2066", "\u200b", "\u2028", "\x85", "\x9b"} & set(shown)
    for part in (r"title \x1b]0;OWNED\x07", r"note \x1b]0;OWNED\x07", "1 failed"):
        assert part in shown
    assert shown.count("[red]:car:") >= 2


def test_the_log_of_a_python_caller_has_whole_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="theworld"):
        Progress.to_logger().say(f"a{EVIL}")
        Progress.to_logger().warn(f"b{EVIL}\nerror: all is well")
    assert all(is_safe(record.getMessage()) for record in caplog.records)
    assert "\n    error: all is well" in caplog.text


def test_a_line_in_a_name_does_not_pass_for_a_line_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("error: x\nerror: all is well")
    print_error("error: choose:\n  this\n  that")
    print_lines("a\nb")
    said = capsys.readouterr()
    assert said.err == "error: x\n    error: all is well\nerror: choose:\n  this\n  that\n"
    assert said.out == "a\\nb\n"


def test_json_is_ascii_on_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    value = {f"k{EVIL}": ["\u2028\u2029\x85\x7f", "é", "\ud800"]}
    print_json(value)
    print_json(value, indent=None)
    said = capsys.readouterr().out
    assert said.isascii()
    assert json.loads(said[: said.rindex("\n{")]) == json.loads(said.splitlines()[-1]) == value
    assert len(said.splitlines()) == said.count("\n")


def test_a_path_that_is_not_utf_8_goes_to_a_program_as_it_is_and_to_a_terminal_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = os.fsdecode(b"caf\xe9")
    for stream, shown in (
        (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape"), path),
        (io.TextIOWrapper(io.BytesIO(), "utf-8"), r"caf\udce9"),  # it could not be written
        (Terminal(), r"caf\udce9"),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        print_lines(path, paths=True)
        stream.seek(0)
        assert stream.read() == f"{shown}\n"


@pytest.mark.parametrize("forged", ["\udce2\udc80\udcae", "\ud800", "é\udcc2\udc9b"])
def test_bytes_that_make_a_character_together_are_no_path(forged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdout", stream)
    print_lines(forged, paths=True)
    stream.seek(0)
    assert stream.read() == f"{printable(forged)}\n"


def test_a_terminal_of_few_letters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdout", stream)
    print_lines("café 球")
    stream.seek(0)
    assert stream.read() == "caf\\xe9 \\u7403\n"

"""Messages name a few of many, and of a wrong value its field, what is expected and what was there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.messages import (
    command,
    format_bytes,
    format_rate,
    list_problems,
    name_some,
    printable,
    split_names,
)


class Inner(BaseModel):
    rows: tuple[int, ...] = ()


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=0)]
    size: str = "8x8"
    inner: Inner = Inner()

    @field_validator("size")
    @classmethod
    def _readable(cls, size: str) -> str:
        if "x" not in size:
            raise ValueError(f"write HEIGHTxWIDTH, got {size!r}")
        return size


def said(values: Any, **how: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return list_problems(caught.value, **how)


def test_a_few_are_named_and_the_rest_counted() -> None:
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some("abcd") == "a, b, c and 1 more"
    assert name_some(range(2000), between="; ", most=2) == "0; 1; and 1,998 more"
    assert name_some([]) == ""


def test_a_size_has_the_unit_that_suits_it() -> None:
    sizes = (0, 512, 1536, 34.25 * 2**20, 3 * 2**40, 5000 * 2**40)
    assert [format_bytes(size) for size in sizes] == [
        *("0 bytes", "512 bytes", "1.5 KiB", "34.2 MiB", "3.0 TiB", "5,000.0 TiB"),
    ]


def test_items_are_split_at_commas_without_the_blanks_around_them() -> None:
    assert split_names(" in the bowl,left ", "--choices", example="yes,no") == ("in the bowl", "left")


@pytest.mark.parametrize("text", ["", " ", "yes,", ",no", "yes, ,no"])
def test_an_empty_item_is_refused_with_the_option_and_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--choices .* such as yes,no; got"):
        split_names(text, "--choices", example="yes,no")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": -1}, "steps should be greater than or equal to 0, got -1"),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": [1]}, "steps must be a whole number, got [1]"),
        ({"steps": 1, "size": 8}, "size must be a text, got 8"),
        ({}, "steps is missing"),
        ({"steps": 1, "size": "8"}, "size: write HEIGHTxWIDTH, got '8'"),
        ({"steps": 1, "step": 2}, "there is no 'step'"),
        ({"steps": 1, "inner": {"rows": [0, "x"]}}, "inner.rows.1 must be a whole number"),
        (3, "should be a valid dictionary"),
    ],
)
def test_each_problem_says_field_expectation_and_what_was_there(values: Any, words: str) -> None:
    assert words in said(values)


def test_a_misspelled_field_meets_those_there_are_and_flags_are_named_as_typed() -> None:
    told = said({"steps": -1, "stepps": 1}, fields=Settings.model_fields, spelling={"steps": "--steps"})
    assert "--steps should be" in told
    assert "there is no 'stepps'; did you mean 'steps'? (there are inner, size, steps)" in told


def test_many_problems_and_long_values_stay_readable() -> None:
    told = said({"steps": "9" * 10_000 + "x", **{f"field{n}": n for n in range(1000)}})
    assert told.endswith("and 998 more")
    assert len(told) < 400


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        (tmp_path / "absent").read_bytes()
    assert list_problems(caught.value) == "No such file or directory"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cache", "info", Path("latents")], "theworld cache info latents"),
        (["ask", Path("a b"), "where?"], "theworld ask 'a b' 'where?'"),
        (["ask", Path("-rf"), "-x"], "theworld ask ./-rf -x"),
        (["ask", Path("a\nb'!")], r"theworld ask $'a\x0ab\x27\x21'"),
        (["ask", Path("a`b")], r"theworld ask $'a\x60b'"),
        (["ask", Path(os.fsdecode(b"caf\xe9"))], r"theworld ask $'caf\xe9'"),
        (["ask", "\u202e球"], r"theworld ask $'\xe2\x80\xae球'"),
        (["ask", "\ud800"], r"theworld ask '\ud800'"),
        (["ask", ""], "theworld ask ''"),
    ],
)
def test_an_offered_command_is_quoted_and_printable(words: list[str | Path], line: str) -> None:
    assert command(*words) == line
    assert printable(line) == line


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1234.5, "1234.5 images/s"), (1, "1.0 images/s"), (0.44, "2.3 s/image"), (0.01, "100.0 s/image"),
        (0.002, "8.3 min/image"), (0.0, "0.0 images/s"),
    ],
)  # fmt: skip
def test_a_slow_rate_is_said_by_what_one_takes_and_never_reads_as_none(rate: float, said: str) -> None:
    assert format_rate(rate, "images") == said

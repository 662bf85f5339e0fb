"""Rows of text tables come one by one, each with its place; a malformed one costs itself alone."""

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.tables import text as text_tables
from theworld.pipeline.files.tables.text import read_records


def rows(folder: Path, name: str, text: str) -> list[tuple[str, object]]:
    (folder / name).write_text(text, encoding="utf-8")
    return list(read_records(folder / name))


def test_lines_are_counted_blank_ones_too_and_malformed_ones_are_told(tmp_path: Path) -> None:
    first, broken, number, last = rows(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a"\n3\n{"a": 2}')
    assert (first, last) == (("a.jsonl:1", {"a": 1}), ("a.jsonl:5", {"a": 2}))
    assert broken[0] == "a.jsonl:3"
    assert "a.jsonl:3 is not JSON" in str(broken[1])
    assert "a.jsonl:4 is of type int, but a row must be an object" in str(number[1])


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("A.CSV", ","), ("a.tsv", "\t")])
def test_a_table_s_first_row_names_its_columns_and_too_many_values_are_told(
    tmp_path: Path, name: str, mark: str
) -> None:
    lines = ["", "x,y", "", "1,2", "3", "4,5,6", "7,8,", '"a', 'b",9']
    found = rows(tmp_path, name, "\n".join(lines).replace(",", mark))
    assert [place for place, _ in found] == [f"{name}:{number}" for number in (4, 5, 6, 7, 8)]
    (_, whole), (_, short), (_, long), (_, empty), (_, two_lines) = found
    assert (whole, short) == ({"x": "1", "y": "2"}, {"x": "3"})
    assert f"{name}:6 has 3 values for 2 columns. Put quotes around" in str(long)
    assert (empty, two_lines) == ({"x": "7", "y": "8"}, {"x": "a\nb", "y": "9"})


def test_a_quotation_mark_that_is_not_closed_costs_its_row_alone(tmp_path: Path) -> None:
    text = 'image,text\na.png,"one\nb.png,two\nc.png,"three"\nd.png,"4\n5"\ne.png,"six\nf.png,seven\n'
    found = rows(tmp_path, "a.csv", text)
    assert [(place, row) for place, row in found if isinstance(row, dict)] == [
        ("a.csv:3", {"image": "b.png", "text": "two"}),
        ("a.csv:4", {"image": "c.png", "text": "three"}),
        ("a.csv:5", {"image": "d.png", "text": "4\n5"}),
        ("a.csv:8", {"image": "f.png", "text": "seven"}),
    ]
    assert [place for place, row in found if "a quotation mark in it is not closed" in row] == ["a.csv:2", "a.csv:7"]
    with pytest.raises(ConfigError, match=r"b.csv:1 is no row of column names: a quotation mark"):
        rows(tmp_path, "b.csv", 'image,"text\na.png,one\n')


@pytest.mark.parametrize("rest", ["", " is it", "\n", '""\n', "\nc.png,three"])
def test_a_last_row_that_was_cut_off_in_its_quotes_is_no_row(tmp_path: Path, rest: str) -> None:
    [(_, whole), (place, cut), *others] = rows(tmp_path, "a.csv", f'image,text\na.png,"o\ne"\nb.png,"what{rest}')
    assert (whole, place) == ({"image": "a.png", "text": "o\ne"}, "a.csv:4")
    assert "a.csv:4 is not CSV: a quotation mark in it is not closed" in cut
    assert others == [("a.csv:5", {"image": "c.png", "text": "three"})] * ("three" in rest)


def test_of_many_rows_behind_an_open_quotation_mark_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a value may have, so that the csv module gives up before the file ends."""
    monkeypatch.setattr(text_tables, "MAX_ROW_BYTES", 1000)
    rest = [f"{n}.png,text {n}" for n in range(200)]
    (place, problem), *others = rows(tmp_path, "a.csv", "\n".join(["image,text", 'a.png,"one', *rest]))
    assert (place, len(others)) == ("a.csv:2", 200)
    assert "a quotation mark in it is not closed" in problem
    assert others[-1] == ("a.csv:202", {"image": "199.png", "text": "text 199"})


@given(st.text('ab",\n', max_size=60), st.lists(st.tuples(*[st.text('ab"\n, ')] * 2), min_size=1))
def test_rows_come_in_order_whatever_the_text_and_what_csv_wrote_comes_back(
    text: str, values: list[tuple[str, str]]
) -> None:
    with TemporaryDirectory() as folder:
        found = rows(Path(folder), "a.csv", f"x,y\n{text}")
        numbers = [int(place.split(":")[1]) for place, _ in found]
        assert numbers == sorted(set(numbers))
        written = io.StringIO(newline="")
        csv.writer(written, lineterminator="\n").writerows([("x", "y"), *values])
        read = [row for _, row in rows(Path(folder), "a.csv", written.getvalue())]
        assert read == [{"x": x, "y": y} for x, y in values]


def test_of_two_columns_of_one_name_the_first_keeps_it(tmp_path: Path) -> None:
    [(_, row)] = rows(tmp_path, "a.csv", "image,text,image,,\na.png,one,b.png,,\n")
    assert {name: value for name, value in row.items() if name} == {"image": "a.png", "text": "one", "image.1": "b.png"}


def test_a_row_names_all_columns_where_values_at_its_end_are_left_out(tmp_path: Path) -> None:
    (_, first), (_, second) = rows(tmp_path, "a.csv", "text,image\none\ntwo\n")
    assert (first, second) == ({"text": "one", "image": None}, {"text": "two"})


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
def test_an_array_is_the_same_whatever_the_blocks_it_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(text_tables, "_BLOCK", block)
    elements = [{"a": 12345}, 678, {"b": ["left, right]"]}]
    for text in (json.dumps(elements), json.dumps(elements, indent=4), f" \n{json.dumps(elements)}\n"):
        first, second, third = rows(tmp_path, "a.json", text)
        assert (first, third) == (("a.json:1", elements[0]), ("a.json:3", elements[2]))
        assert "a.json:2 is of type int" in str(second[1])
    assert rows(tmp_path, "a.json", "[ ]") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "is not a JSON array of objects; JSON lines are read from a .jsonl file"),
        ('[{"a": 1} {"a": 2}]', "no comma and no closing bracket after element 1"),
        ('[{"a": 1}, {"a": ]', "is not JSON at element 2"),
        ('[{"a": 1}', "no comma and no closing bracket after element 1"),
    ],
)
def test_what_is_no_array_is_refused_at_the_element(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rows(tmp_path, "a.json", text)

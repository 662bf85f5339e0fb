"""JSON files of limited size: what they hold as values is limited too."""

from pathlib import Path

import pytest

from theworld.pipeline.files.limits import MAX_JSON_VALUES, MAX_RESULT_BYTES
from theworld.pipeline.files.plain import read_json, read_json_text


@pytest.mark.parametrize("unit", [b"1,", b"[],", b'{"":0},'], ids=["numbers", "lists", "mappings"])
def test_json_of_more_values_than_fit_in_memory_is_refused_before_it_is_parsed(tmp_path: Path, unit: bytes) -> None:
    file = tmp_path / "evaluation.json"
    file.write_bytes(b"[" + unit * MAX_JSON_VALUES)
    assert file.stat().st_size < MAX_RESULT_BYTES
    with pytest.raises(ValueError, match="values, and the limit is 16,777,216"):
        read_json_text(file, MAX_RESULT_BYTES)
    with pytest.raises(ValueError, match="values, and the limit is 16,777,216"):  # a parser would name its missing end
        read_json(file, MAX_RESULT_BYTES)


def test_the_commas_of_ordinary_texts_do_not_make_a_file_too_large(tmp_path: Path) -> None:
    file, text = tmp_path / "evaluation.json", "a, b: c [d] " * 3 * 10**5
    file.write_text(f'["{text}"]', encoding="utf-8")
    assert read_json(file, MAX_RESULT_BYTES) == [text]

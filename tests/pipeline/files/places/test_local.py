"""Names of files that are made of text from outside stay in their folder."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.files.places.local import file_name


def test_a_plain_name_stays_as_it_is() -> None:
    assert file_name("evaluation-questions-ab12-val-frozen-steps2") == "evaluation-questions-ab12-val-frozen-steps2"
    assert file_name("true@0.5") == "true@0.5"


@given(st.text(max_size=300))
def test_a_name_is_one_part_of_a_path_that_every_file_system_takes(text: str) -> None:
    name = file_name(text)
    assert Path(name).name == name
    assert name not in ("", ".", "..")
    assert "\0" not in name
    assert len(name.encode()) <= 240


def test_different_texts_have_different_names() -> None:
    assert len({file_name(text) for text in ("a/b", "a_b", "a b", "../a_b", "a\\b")}) == 5

"""Brace patterns stand for the names that a shell would write, and for no more than a job could want."""

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.precompute.inputs.listing import folders
from theworld.precompute.inputs.listing.folders import expand_braces, has_braces


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{0..2}.tar", ["x-0.tar", "x-1.tar", "x-2.tar"]),
        ("x-{08..10}.tar", ["x-08.tar", "x-09.tar", "x-10.tar"]),
        ("x-{8..10}.tar", ["x-8.tar", "x-9.tar", "x-10.tar"]),
        ("{a,b}-{1..2}", ["a-1", "a-2", "b-1", "b-2"]),
        ("x{one}y", ["x{one}y"]),
        ("x{3..3}", ["x3"]),
        ("plain", ["plain"]),
    ],
)
def test_a_pattern_stands_for_its_names_in_order(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names
    assert has_braces(pattern) == (pattern not in ("plain", "x{one}y"))


def test_as_many_names_as_the_limit_are_taken_and_one_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MAX_EXPANDED", 6)
    assert len(expand_braces("{0..5}")) == len(expand_braces("{a,b}{0..2}")) == 6
    with pytest.raises(ConfigError, match=r"\{0\.\.6\} stands for more than 6 names"):
        expand_braces("{0..6}")
    with pytest.raises(ConfigError, match="stands for 8 names; the limit is 6"):
        expand_braces("{a,b}{0..3}")


@pytest.mark.parametrize("pattern", ["*\0.png", "a/" * 3000 + "*"])
def test_a_pattern_that_no_path_can_match_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="can match no file"):
        folders.match_files(pattern)

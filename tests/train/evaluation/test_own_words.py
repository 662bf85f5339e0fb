"""Two answers in own words are equal where only their form differs, and never where their content does."""

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theworld.train.evaluation.own_words import normalised

DIFFERENT = [
    ("पीला", "पुल"),
    ("की", "का"),
    ("1/2", "1.2"),
    ("1/2", "12"),
    (".5", "5"),
    ("-.5", ".5"),
    ("\u22121", "1"),
    ("-1", "1"),
    ("-(5)", "(5)"),
    ("5 > 3", "5 < 3"),
    ("5 % 3", "5 3"),
    ("C++", "C#"),
    ("C#", "C"),
    ("F#", "F"),
    ("50%", "50"),
    ("10\u00b2", "102"),
    ("10\u207b\u00b3", "10-3"),
    ("x\u00b2", "x2"),
    ("1\u00bd", "11/2"),
    ("10\u2082", "102"),
    ("1\u2460", "11"),
    ("10:30", "1030"),
    ("10:30", "10 30"),
    ("1,5", "15"),
    ("1 - 2", "1 2"),
    ("2 * 3", "2 3"),
    ("±1", "1"),
    ("5\u2032", "5"),
    ("it's", "its"),
    ("vitamin A", "vitamin"),
    ("A, B", "B"),
    ("left bin", "left"),
    ("résumé", "resume"),
    ("", "A"),
    ("the", "A"),
    (".", "A"),
    ("3", "-3"),
    ("", "?"),
    ("B", "A"),
]
SAME = [
    ("caf\u00e9", "cafe\u0301"),
    ("\u22121", "-1"),
    ("\u20131", "-1"),
    ("left", "Left."),
    ("the ball", "ball!"),
    ("The  red ball", "red ball"),
    ("a bin!", "bin"),
    ("“left”", "left"),
    ("**left**", "left"),
    ("left-hand side", "left hand side"),
    ("it\u2019s", "it's"),
    ("\uff11\uff12", "12"),
    ("\u0663\u066b\u0665", "3.5"),
    ("½", "1/2"),
    ("5 %", "5%"),
    ("5.", "5"),
    ("(5)", "5"),
    ("C++.", "c++"),
    ("STRASSE", "straße"),
    ("\u2764\ufe0f", "\u2764"),
    ("left\u200b", "left"),
    ("पीला।", "पीला"),
    ("A.", "a ."),
    ("-3.", "-3 ."),
]


@pytest.mark.parametrize(("said", "meant"), DIFFERENT)
def test_what_differs_in_content_is_another_answer(said: str, meant: str) -> None:
    assert normalised(said) != normalised(meant)


@pytest.mark.parametrize(("said", "meant"), SAME)
def test_what_differs_in_form_alone_is_the_same_answer(said: str, meant: str) -> None:
    assert normalised(said) == normalised(meant)


@given(st.text())
@example("\u1e9b\u0323")
@example("1\u00bd\u0301")
def test_the_form_of_unicode_does_not_count(text: str) -> None:
    forms = {normalised(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {normalised(text)}


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda value: (Fraction(value), f"{value}")),
    st.decimals(-1000, 1000, places=2).map(lambda value: (Fraction(value), f"{value}")),
    st.decimals(0, 1, places=2).filter(lambda value: value < 1).map(lambda value: (Fraction(value), f"{value}"[1:])),
    st.tuples(st.integers(-99, 99), st.integers(2, 99)).map(lambda it: (Fraction(*it), f"{it[0]}/{it[1]}")),
    st.tuples(st.integers(2, 20), st.integers(2, 9)).map(
        lambda it: (Fraction(it[0] ** it[1]), f"{it[0]}{'²³⁴⁵⁶⁷⁸⁹'[it[1] - 2]}")
    ),
)
AROUND = st.sampled_from(["{}", "{}.", "({})", " {} ", "“{}”", "it is {}!", "the {}"])


@given(NUMBERS, NUMBERS, AROUND, st.booleans())
def test_different_numbers_are_never_equal(
    one: tuple[Fraction, str], other: tuple[Fraction, str], around: str, with_minus: bool
) -> None:
    first, second = (around.format(text.replace("-", "\u2212") if with_minus else text) for _, text in (one, other))
    if one[0] != other[0]:
        assert normalised(first) != normalised(second)


@given(st.text("()*-/., 1a'\u00b2", max_size=4000))
def test_long_answers_of_signs_alone_take_no_time(text: str) -> None:
    normalised(text * 20)

"""When two answers in own words are the same answer: `normalised`.

Case, articles, punctuation around words, and which of several Unicode forms was typed do not count. What tells two
numbers, formulas or names apart does: signs, decimal points, operators, combining marks.

    1. NFKC: é is one letter however it was typed. A power stays one: 10² is 10^2, not 102.
    2. Letters without case, digits of every script as 0 to 9, one sign for minus, one for an apostrophe.
    3. Punctuation (category P) becomes a blank, unless a number or a name needs it: `_without_punctuation`.
    4. "a", "an" and "the" are dropped in front of another word.

Source: Unicode Standard Annex 15 (NFKC); the Unicode Standard, section 4.5 (categories). Step 4 is that of SQuAD's
evaluation script, which would drop "A" from "vitamin A", too.
"""

from __future__ import annotations

import re
from itertools import pairwise
from unicodedata import category, decimal, decomposition, normalize

from ..questions.record import Question

RULES = 2
"""Version of these rules, as evaluation.json records it. The first version, 1, took all signs for punctuation: decimal
points, operators and the vowels of Indic scripts too. It also counted é as two answers, by how it was typed."""

_SAME = {
    **dict.fromkeys("\u2010\u2012\u2013\u2212", "-"),  # hyphen, figure dash, en dash, minus
    **dict.fromkeys("\u2018\u2019\u02bc", "'"),
    "\u2044": "/",
    "\u2215": "/",
    "\u066b": ".",
    "\u066c": ",",
    "\u066a": "%",
}
"""Signs of one meaning that NFKC leaves apart."""
_OF_NUMBERS = "/-%\u2030\u2032"
"""Punctuation that belongs to a number beside it; `+ < = >` are no punctuation and always kept."""
_JOINTS = {"<super>": "^", "<sub>": "_", "<circle>": " ", "<fraction>": " ", "<compat>": " "}
"""What stands between a digit and a sign that NFKC makes digits of, by the sign's kind."""
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters and marks without a shape, such as those that choose between two drawings of a sign."""
_ARTICLES = ("a", "an", "the")


def normalised(text: str) -> str:
    """An answer in the form in which answers are compared. Where only punctuation is left, it is kept: "?"."""
    folded = _folded(text)
    words = _without_punctuation(folded).split()
    kept = [word for word, after in pairwise([*words, ""]) if not _is_article(word, after)]
    return " ".join(kept) or folded


def _folded(text: str) -> str:
    """The text in one spelling: steps 1 and 2, with single blanks."""
    composed = normalize("NFKC", _with_joints(normalize("NFC", text))).casefold()
    plain = "".join(map(_plain, _UNSEEN.sub("", normalize("NFKC", composed))))  # casefold takes some letters apart
    return " ".join(plain.split()).replace(" %", "%")


def _plain(letter: str) -> str:
    kind = category(letter)
    if kind == "Nd":
        return str(decimal(letter))
    if kind == "Cf":  # says how to draw the text
        return ""
    return " " if kind == "Cc" or letter == "`" else _SAME.get(letter, letter)


def _with_joints(text: str) -> str:
    """The text with a sign or a blank between digits that NFKC would join to another number: 10², 10₂, 1½, 1①."""
    parts: list[str] = []
    kind_before, digit_before = "", False
    for letter in text:
        kind, plain = decomposition(letter).partition(" ")[0], normalize("NFKC", letter)
        is_power = kind == kind_before and kind in ("<super>", "<sub>")
        begins = _is_digit(plain[0]) or (kind == "<super>" and plain in "+\u2212")
        joins = digit_before or (kind == "<super>" and bool(parts) and _is_letter(parts[-1]))
        if joins and begins and not is_power and (kind in _JOINTS or kind_before in _JOINTS):
            parts.append(_JOINTS.get(kind, " "))
        parts.append(letter)
        kind_before, digit_before = kind, _is_digit(plain[-1]) or (is_power and digit_before)
    return "".join(parts)


def _without_punctuation(text: str) -> str:
    """The text with blanks for punctuation, but for

    - what stands between two digits: 1.5, 1,000, 10:30, 1-2
    - a decimal point or comma in front of a digit: .5
    - `_OF_NUMBERS` beside a digit, also with one blank between: -1, 1 / 2, 5 %
    - any sign alone between two numbers: 2 * 3
    - an apostrophe between letters, and # behind one: it's, C#
    """
    is_digit = [False, False, *map(_is_digit, text), False, False]
    is_sign = [False, False, *(category(letter)[0] == "P" for letter in text), False, False]
    padded = f"  {text}  "
    behind_digit, before_digit = is_digit.copy(), is_digit.copy()  # also with other punctuation between
    for place in range(2, len(padded) - 2):
        behind_digit[place] = is_digit[place] or (is_sign[place] and behind_digit[place - 1])
    for place in range(len(padded) - 3, 1, -1):
        before_digit[place] = is_digit[place] or (is_sign[place] and before_digit[place + 1])
    kept = list(text)
    for place in range(2, len(padded) - 2):
        if not is_sign[place]:
            continue
        sign, before, after = padded[place], padded[place - 1], padded[place + 1]
        far_before, far_after = before == " " and is_digit[place - 2], after == " " and is_digit[place + 2]
        is_needed = (
            (behind_digit[place] and before_digit[place])
            or (sign in ".," and is_digit[place + 1] and not _is_letter(before))
            or (sign in _OF_NUMBERS and (behind_digit[place] or before_digit[place] or far_before or far_after))
            or (far_before and far_after)
            or (sign == "'" and _is_letter(before) and _is_letter(after))
            or (sign == "#" and _is_letter(before))
        )
        if not is_needed:
            kept[place - 2] = " "
    return "".join(kept)


def _is_digit(letter: str) -> bool:
    return category(letter)[0] == "N"


def _is_letter(letter: str) -> bool:
    return category(letter)[0] in "LM"


def _is_article(word: str, after: str) -> bool:
    """An article stands in front of a word; "a" in front of a single letter is a letter itself: "A, B"."""
    return word in _ARTICLES and after != "" and not (word == "a" and len(after) == 1 and after.isalpha())


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is correct; without choices, case, punctuation and articles do not count."""
    return answer == question.answer if question.choices else is_same(answer, question.answer)


def is_same(given: str, answer: str) -> bool:
    """Whether an answer in own words is the correct one, by the rules of own_words.py."""
    return normalised(given) == normalised(answer)

"""Every regular expression of the package takes time in proportion to the text, whatever the text is."""

import ast
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "precompute", "train")
METHODS = ("match", "fullmatch", "search", "sub", "split", "findall")
LENGTH = 100_000
SECONDS = 2.0
"""Of CPU. A linear expression takes about a hundredth of it; one that takes the square, minutes."""


def pattern_of(node: ast.expr) -> str | bytes | None:
    """The pattern that an expression states; a name put into an f-string is taken as the number 8."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "8" for part in node.values)
    return None


def expressions() -> Iterator[tuple[str, tuple[str | bytes, tuple[str, ...]]]]:
    """Each pattern given to `re`, by `file:line`, with the methods that are called on it."""
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        source = path.read_text()
        if "import re\n" not in source:  # parsing takes its time
            continue
        for node in ast.walk(ast.parse(source)):
            name = ""
            call = node
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, call = node.targets[0].id, node.value
            is_call = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and bool(call.args)
            if not is_call or not isinstance(call.func.value, ast.Name) or call.func.value.id != "re":
                continue
            pattern = pattern_of(call.args[0])
            methods = [call.func.attr]
            if methods == ["compile"]:
                methods = re.findall(rf"\b{name}\.({'|'.join(METHODS)})\b", source) if name else []
            if pattern is not None and methods:
                yield f"{path.relative_to(ROOT).as_posix()}:{call.lineno}", (pattern, tuple(dict.fromkeys(methods)))


FOUND = dict(expressions())


def hostile(pattern: str) -> Iterator[str]:
    """Long runs of blanks, of each character of the pattern, of what it nearly matches."""
    literal = re.sub(r"\\[A-Za-z]|[\[\](){}|?*+^$\\.]", "", pattern)[:40]
    for one in dict.fromkeys([*" \n\x85a0[", *literal]):
        yield one * LENGTH
        yield "!" + one * LENGTH + "!"
    for piece in filter(None, dict.fromkeys([literal, literal[:-1], literal[: len(literal) // 2]])):
        for between in ("", " ", "0"):
            yield (piece + between) * (LENGTH // (len(piece) + 1))
    for first, second in (" a", "a ", "0a", "[0", "a:", "0-", "a/"):
        yield (first + second) * (LENGTH // 2)
        yield first * (LENGTH // 2) + second * (LENGTH // 2)


def test_the_regular_expressions_of_all_readers_are_found() -> None:
    files = {place.partition(":")[0] for place in FOUND}
    assert {"train/questions/readers.py", "precompute/inputs/listing/folders.py", "pipeline/files/sealed.py"} <= files
    assert len(FOUND) > 25


@pytest.mark.parametrize("place", FOUND)
def test_a_hostile_text_takes_time_in_proportion_to_its_length(place: str) -> None:
    pattern, methods = FOUND[place]
    compiled = re.compile(pattern)
    binary = isinstance(pattern, bytes)

    def ring(*_: object) -> None:
        raise AssertionError(f"{pattern!r} takes more than {SECONDS} s of CPU on {LENGTH:,} characters")

    before = signal.signal(signal.SIGVTALRM, ring)  # Python looks for signals while it matches
    try:
        for text in hostile(pattern.decode() if isinstance(pattern, bytes) else pattern):
            for method in methods:
                given = [text.encode() if binary else text]
                signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
                getattr(compiled, method)(*([b"" if binary else ""] if method == "sub" else []), *given)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_the_alarm_rings_for_one_that_takes_the_square() -> None:
    FOUND["an example"] = (r"\s*<image>\s*", ("sub",))
    try:
        with pytest.raises(AssertionError, match="takes more than"):
            test_a_hostile_text_takes_time_in_proportion_to_its_length("an example")
    finally:
        del FOUND["an example"]

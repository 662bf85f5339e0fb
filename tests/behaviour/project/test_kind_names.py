"""Only two files tell the kinds of recipe apart by name; everything else asks for a trait."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from theworld.pipeline.latents.kinds import KINDS

ROOT = Path(__file__).parents[3]
ROOMS = ("pipeline", "precompute", "train")
HOMES = ("pipeline/latents/kinds.py", "precompute/rollout/kinds.py")


def comparisons(source: str) -> list[int]:
    """Lines that compare something called `kind` with the name of a kind, or choose by such names in a table."""
    return [line for node in ast.walk(ast.parse(source)) for line in _lines(node)]


def _lines(node: ast.AST) -> Iterator[int]:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(map(_is_kind, sides)) and _names(*sides):
            yield node.lineno
    elif isinstance(node, ast.Match):
        if _is_kind(node.subject) and _names(*(case.pattern for case in node.cases)):
            yield node.lineno
    elif isinstance(node, ast.Dict) and len(_names(*(key for key in node.keys if key))) > 1:
        yield node.lineno


def _is_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):  # an arm's kind is another thing
        return node.attr == "kind" and not (isinstance(node.value, ast.Name) and node.value.id == "arm")
    return isinstance(node, ast.Name) and node.id == "kind"


def _names(*nodes: ast.AST) -> set[str]:
    """The kinds that are named in these expressions."""
    constants = (part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value in KINDS}


def test_no_other_file_compares_the_name_of_a_kind() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert not set(HOMES) - files.keys()
    lines = {
        f"{name}:{line}" for name, path in files.items() if name not in HOMES for line in comparisons(path.read_text())
    }
    assert not lines, "ask for a trait in pipeline/latents/kinds.py instead"


@pytest.mark.parametrize(
    "source",
    [
        'recipe.kind == "rollout"',
        'kind != "views"',
        '"views" == store.recipe.kind',
        'config.kind in ("frames", "continuation")',
        '{"rollout": 1, "samples": 2}.get(recipe.kind)',
        'match recipe.kind:\n    case "posterior": pass',
    ],
)
def test_a_comparison_is_noticed(source: str) -> None:
    assert comparisons(source)
    assert not comparisons(source.replace("kind", "sort")) or source.startswith("{")


def test_an_arm_may_be_compared() -> None:
    assert not comparisons('arm.kind == "rollout"')

"""docs/settings.md, every setting there is, made from the models of the settings themselves.

    python -m tests.settings_page > docs/settings.md

writes it anew; tests/behaviour/project/test_conventions.py fails where the page is another than this makes.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.config import PrecomputeConfig
from theworld.train.config import AnswerConfig, TrainConfig

ROOT = Path(__file__).parents[1]
HEAD = """# All settings

Every setting with its flag, its values, its default, what it means, and the files that read it. The page is made from
the models of the settings (`python -m tests.settings_page`). A flag wins over a file (`--config FILE`), and a file over
the default; a file has the names of the first column, in the table `[precompute]` or `[train]`. What a file may not set
is in [files from strangers](files-from-strangers.md). Which commands take a flag: [commands.md](commands.md).
"""
SECTIONS: tuple[tuple[type[BaseModel], str, str, tuple[str, ...]], ...] = (
    (
        PrecomputeConfig,
        "[precompute]",
        "Settings of `theworld precompute`.",
        ("precompute", "pipeline/cli/precompute.py"),
    ),
    (
        TrainConfig,
        "[train]",
        "Settings of `theworld train`. A run records them, and `evaluate` and `ask` read them there.",
        ("train", "pipeline/cli/train.py", "pipeline/theworld"),
    ),
    (AnswerConfig, "Answers in own words", "Flags of `theworld ask`; no file sets them.", ("train", "pipeline/cli")),
    (
        Recipe,
        "The recipe",
        "What decides the value of a latent; it names the store. `precompute` makes it from the settings above and the "
        "world model's card ([recipes.md](recipes.md)), and a store records it.",
        ("pipeline/latents", "pipeline/store", "precompute", "train"),
    ),
)
_HOLDERS = {Recipe: frozenset({"recipe", "longer"}), AnswerConfig: frozenset({"writing"})}
"""Names of variables that hold such a model; `config` and `settings` hold the others."""
_MOST = 4  # files named in a row


def settings_page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *(line for section in SECTIONS for line in _section(*section))])


def _section(model: type[BaseModel], title: str, text: str, places: tuple[str, ...]) -> Iterator[str]:
    yield from (f"## {title}", "", text, "")
    yield from ("| setting | flag | values | default | meaning | read in |", "|---|---|---|---|---|---|")
    notes, readers = _notes(model), _readers(model, places)
    if model is Recipe:  # where it has no words of its own, it is what the setting is
        notes = {name: field.description or "" for name, field in PrecomputeConfig.model_fields.items()} | notes
    for name, field in model.model_fields.items():
        cells = [f"`{name}`", _flag(name, field), _values(field), _default(field), _meaning(field, notes.get(name, ""))]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, readers[name])) + " |"
    yield ""


def _flag(name: str, field: FieldInfo) -> str:
    flag = _extra(field)
    if not flag:
        return "-"
    if flag["argument"]:
        return name.upper()
    return " ".join(f"`{word}`" for word in (f"--{name.replace('_', '-')}", *flag["names"]))


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra.get("flag", {}) if isinstance(extra, dict) else {}  # type: ignore[return-value]


def _values(field: FieldInfo) -> str:
    limits = [
        text.format(value)
        for entry in field.metadata
        for name, text in {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}.items()
        if (value := getattr(entry, name, None)) is not None
    ]
    return ", ".join([_type(field.annotation), *limits])


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = FieldInfo.from_annotation(annotation)
        return _values(limits) if limits.metadata else _type(parts[0])
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in parts if part is not NoneType)
    if origin is tuple:
        return f"several: {_type(parts[0])}"
    if origin is dict:
        return "names and values"
    words = {int: "whole number", float: "number", bool: "yes or no", str: "text"}
    return words.get(annotation, "place" if issubclass(annotation, Path) else annotation.__name__)


def _default(field: FieldInfo) -> str:
    if text := _extra(field).get("default"):
        return str(text)
    if field.is_required():
        return "(required)"
    if field.default is None or isinstance(field.default, bool):
        return "yes" if field.default else "none" if field.default is None else "no"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _meaning(field: FieldInfo, note: str) -> str:
    return " ".join(filter(None, (" ".join((field.description or "").split()), note))) or "-"


def _notes(model: type[BaseModel]) -> dict[str, str]:
    """What stands below a field in the source."""
    [body] = [
        node.body
        for node in ast.walk(ast.parse(Path(inspect.getfile(model)).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
    ]
    return {
        field.target.id: " ".join(note.value.value.split())
        for field, note in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(note, ast.Expr)
        and isinstance(note.value, ast.Constant)
        and isinstance(note.value.value, str)
    }


def _readers(model: type[BaseModel], places: tuple[str, ...]) -> Mapping[str, str]:
    """Setting -> the files that read it."""
    own = Path(inspect.getfile(model)).resolve().relative_to(ROOT).as_posix()
    holders = _HOLDERS.get(model, frozenset({"config", "settings", "_config"}))
    found: dict[str, list[str]] = {name: [] for name in model.model_fields}
    for file in sorted(path for place in places for path in _files(place)):
        name = file.relative_to(ROOT).as_posix()
        for read in _reads(file, holders, is_own=name == own) & found.keys():
            found[read].append(name)
    return {name: _listed(files, own) for name, files in found.items()}


def _listed(files: list[str], own: str) -> str:
    others = [file for file in files if file != own] or files
    more = f" and {len(others) - _MOST} more" if len(others) > _MOST else ""
    return ", ".join(f"`{file}`" for file in others[:_MOST]) + more


def _files(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else [*path.rglob("*.py")]


@cache
def _reads(file: Path, holders: frozenset[str], *, is_own: bool) -> frozenset[str]:
    """Names that a file reads of a variable that holds the settings: `config.seed`, `self.config.seed`, and of what a
    run records `config.get("seed")`, `config["seed"]`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            is_self = is_own and isinstance(node.value, ast.Name) and node.value.id == "self"
            if is_self or _name_of(node.value) in holders:
                names.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            if node.args and isinstance(node.args[0], ast.Constant) and _name_of(node.func.value) in holders:
                names.add(str(node.args[0].value))
        elif (
            isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and _name_of(node.value) in holders
        ):
            names.add(str(node.slice.value))
    return frozenset(names)


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


if __name__ == "__main__":
    print(settings_page(), end="")

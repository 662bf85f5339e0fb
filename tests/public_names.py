"""Every name that theworld promises to keep, with its signature.

python -m tests.public_names > tests/golden/public_names.txt

writes the list; `test_public_names.py` fails where it differs. A change there needs a line in CHANGELOG.md.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pydantic

PLAIN = (bool, int, float, str, tuple, type(None))
FACES = ("theworld", "theworld.pipeline", "theworld.precompute", "theworld.precompute.worlds", "theworld.train")
PARTS = ("theworld.pipeline.store.store_keys", "theworld.pipeline.store.store_logs")
"""Of classes that are made of several: `LatentStore`."""


def signature(value: Any) -> str:
    """Parameters with defaults and annotations, as they are written."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    parts: list[str] = []
    star = False
    for p in parameters:
        star = star or p.kind is p.VAR_POSITIONAL
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        default = "" if p.default is p.empty else f" = {p.default!r}" if isinstance(p.default, PLAIN) else " = ..."
        parts.append(f"{'*' * ((p.kind is p.VAR_POSITIONAL) + 2 * (p.kind is p.VAR_KEYWORD))}{p.name}{default}")
    return f"({', '.join(parts)})"


def members(cls: type) -> Iterator[str]:
    """Public fields, properties and methods that a class of ours adds."""
    if issubclass(cls, pydantic.BaseModel):
        yield from (f"    {name}" for name in cls.model_fields)
        return
    if dataclasses.is_dataclass(cls):
        yield from (f"    {field.name}" for field in dataclasses.fields(cls) if not field.name.startswith("_"))
    ours = [base for base in cls.__mro__ if base is cls or base.__module__ in PARTS]
    for name, value in sorted({name: value for base in reversed(ours) for name, value in vars(base).items()}.items()):
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"    {name} (property)"
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            yield f"    {name}{signature(getattr(cls, name))}"


def lines() -> Iterator[str]:
    """The list, a line a name."""
    for face in FACES:
        module = import_module(face)
        yield f"[{face}]"
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.isclass(value):
                if issubclass(value, pydantic.BaseModel):
                    value.model_rebuild()  # some are completed at their first use; then they know their signature
                base = f" < {value.__mro__[1].__name__}" if issubclass(value, Exception) else ""
                yield f"{name}{base if base else signature(value)}"
                yield from members(value)
            else:
                yield f"{name}{signature(value) if callable(value) else ''}"
        yield ""


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()))

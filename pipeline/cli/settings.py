"""Flags of a command from the fields of its settings: a field with a description and a panel is a flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def settings_of(model: type[BaseModel], *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds one flag for each of these fields to a command, which gets those typed as `typed`."""
    added = [_flag(name, model.model_fields[name]) for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in names}
            command(**values, typed=typed)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*(parameter for parameter in parameters if parameter.name != "typed"), *added]
        )
        del run.__wrapped__  # Typer would read the signature behind it
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return run

    return decorate


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of one field: left out it is None, so that a file or the default decides."""
    extra: Any = field.json_schema_extra or {}
    kind = _plain(field.annotation)
    default = extra.get("default", "none" if field.default is None else str(field.default))
    help = f"{field.description} (default: {default})"
    option = typer.Option(f"--{name.replace('_', '-')}", help=help, rich_help_panel=extra.get("panel"))
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """The type that Typer parses: of `X | None` that of X, of a literal text, which the model checks."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    return str if get_origin(annotation) is Literal else annotation

"""Flags of a command from the fields of its settings: a field with a `pipeline.config.setting` is a flag."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = Callable[..., None]


def settings_of(
    model: type[BaseModel], *names: str, panel: str | None = None, without: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """A decorator that adds flags to a command, which gets what was typed as `typed`: field -> value, None if left out.

    Args:
        names: the fields; none named takes each that is a flag.
        panel: only those of this group of options.
        without: fields to leave out.
    """
    added = [
        _parameter(name, field)
        for name, field in model.model_fields.items()
        if (flag := _flag(field)) is not None
        and (name in names or not names)
        and (panel is None or flag["panel"] == panel)
        and name not in without
    ]

    def decorate(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**values: Any) -> None:
            typed = {parameter.name: values.pop(parameter.name) for parameter in added}
            command(**values, typed=typed)

        kept = [parameter for parameter in parameters if parameter.name != "typed"]
        run.__signature__ = inspect.Signature(_sorted([*kept, *added]))  # type: ignore[attr-defined]
        del run.__wrapped__  # Typer would read the signature behind it
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return run

    return decorate


def help_of(model: type[BaseModel], name: str) -> str:
    """What help says of a field, without its default."""
    return model.model_fields[name].description or ""


def _sorted(parameters: list[inspect.Parameter]) -> Iterator[inspect.Parameter]:
    """Switches that every command has come last, as in commands without settings."""
    last = ("config", "quiet", "as_json")
    for parameter in sorted(parameters, key=lambda p: last.index(p.name) if p.name in last else -1):
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _flag(field: FieldInfo) -> dict[str, Any] | None:
    extra = field.json_schema_extra
    return extra.get("flag") if isinstance(extra, dict) else None  # type: ignore[return-value]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of one field; None if it is left out, so that the settings file or the default decides."""
    flag: dict[str, Any] = _flag(field) or {}
    default = _default(field, flag)
    help = field.description if default is None else f"{field.description} (default: {default})"
    values = _values(field.annotation)
    option: Any
    if flag["argument"]:
        option = typer.Argument(help=help, rich_help_panel=flag["panel"])
    else:
        spellings = (f"--{name.replace('_', '-')}", *flag["names"])
        complete = (lambda: list(values)) if values else None
        option = typer.Option(*spellings, help=help, rich_help_panel=flag["panel"], autocompletion=complete)
    kind = str if flag["text"] or values else _plain(field.annotation)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(field: FieldInfo, flag: dict[str, Any]) -> str | None:
    """What help says of it; nothing of a switch, which is off, nor of what is simply not there."""
    if flag["default"] is not None:
        return flag["default"]
    if field.default is None or field.default is False:
        return None
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _plain(annotation: Any) -> Any:
    """The type that Typer parses: of `X | None` that of X."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def _values(annotation: Any) -> tuple[str, ...]:
    """The texts that a Literal allows, for shells that complete them; the model checks what is typed."""
    kind = _plain(annotation)
    return get_args(kind) if get_origin(kind) is Literal else ()

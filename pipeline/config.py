"""Settings of a command: fields of a pydantic model, read from a TOML file and from flags.

Flags override the file; unknown names are errors. A field that has a `setting` is a flag, too. A file may be a
stranger's, so what each field takes from one is said at the field, and refused here: docs/files-from-strangers.md.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError

from .errors import ConfigError
from .files.hub.transfers import is_hub_id
from .files.places.bucket_urls import parse_url
from .files.places.local import require_local
from .files.places.store_paths import is_bucket, store_path
from .files.plain import read_file
from .messages import list_problems

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_CACHE = Path("latents")
"""The folder of stores of every command, where none is named."""

HOW_IT_RUNS = "How it runs"
DECIDES_LATENTS = "Decides the latents (enters the recipe)"
WORLD_TOKENS = "World tokens"

TABLES = ("precompute", "train", "study")
"""The tables that a settings file may hold."""

_MODELS: dict[str, type[BaseModel]] = {}
"""By table."""
_MAX_FILE_BYTES = 2**14
"""Ours have a few hundred bytes. The time to read a name such as `a.a.a` grows with the square of its parts: here a
second at most."""
_SHOWN = 80  # letters of a wrong value


def settings_table(name: str) -> Callable[[type[Model]], type[Model]]:
    """A class decorator: this model has the settings of the table `name`, whoever reads that table."""

    def register(model: type[Model]) -> type[Model]:
        _MODELS[name] = model
        return model

    return register


def setting(
    help: str,
    *,
    panel: str | None = None,
    names: Sequence[str] = (),
    default: str | None = None,
    argument: bool = False,
    text: bool = False,
    typed_only: str | None = None,
    place: bool = False,
    models: Sequence[str] | None = None,
) -> Any:
    """Metadata that makes a field of a settings model also a flag of its command, `--field-name`.

    Args:
        help: what `--help` says, without the default, which follows from the field.
        panel: the group of options that it belongs to.
        names: other spellings of the flag.
        default: how help writes the default; None writes the field's own.
        argument: it is a positional argument, not a flag.
        text: the model parses it from text, whatever the type of the field.
        typed_only: why no file may set it.
        place: it names something to read; a file may name what lies in the working folder.
        models: as `place`, and a file may also name these models of the Hub.
    """
    extra: dict[str, Any] = {"panel": panel, "names": list(names), "default": default, "argument": argument}
    extra |= {"text": text, "typed_only": typed_only, "place": place, "models": None if models is None else [*models]}
    return Field(description=help, json_schema_extra={"flag": extra})


def load_config(model: type[Model], table: str, file: Path | None, flags: Mapping[str, Any]) -> Model:
    """Return the validated settings of one command.

    Args:
        model: the pydantic model of the command's settings.
        table: the TOML table that belongs to the command: `[precompute]` or `[train]`.
        file: a TOML file; it may hold both tables.
        flags: setting -> value from the command line; None means that the flag was not typed.
    Raises:
        ConfigError: the file cannot be read, or a name or a value is wrong, in the file or among the flags.
    """
    settings = read_table(file, table) if file is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        flag_by_field = {name: f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None}
        where = "" if file is None else f"{file}, [{table}]: "
        problems = list_problems(error, fields=model.model_fields, spelling=flag_by_field)
        raise ConfigError(f"{where}{problems}") from error


def read_table(file: Path, table: str) -> dict[str, Any]:
    """Return one table of a TOML file, or an empty one if the file does not have it.

    Raises:
        ConfigError: the file is missing, is not TOML, has a table that is not in `TABLES`, or sets what must be typed.
    """
    try:
        text = read_file(file, _MAX_FILE_BYTES).decode("utf-8-sig")  # Windows editors write a byte order mark
        content = tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; also integers of thousands of digits
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    if unknown := sorted(set(content) - set(TABLES)):
        raise ConfigError(
            f"{file}: unknown table or setting {unknown[0]!r} at the top level. Put settings under "
            f"{' or '.join(f'[{name}]' for name in TABLES)}"
        )
    value = content.get(table, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {table} must be a table, [{table}]")
    settings = cast(dict[str, Any], value)
    _refuse_what_must_be_typed(file, table, settings)
    return settings


def _refuse_what_must_be_typed(file: Path, table: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        field = _MODELS[table].model_fields.get(name) if table in _MODELS else None
        extra = field.json_schema_extra if field is not None else None
        if not isinstance(extra, dict):
            continue  # of no flag, or an unknown name, which the model refuses
        flag = cast(dict[str, Any], extra["flag"])
        why: str | None = flag["typed_only"]
        if why is None and isinstance(value, str) and (flag["place"] or flag["models"] is not None):
            why = _why_outside(value, flag["models"])
        if why is not None:
            how = f"it after `theworld {table}`" if flag["argument"] else f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{file}, [{table}]: {name} = {value if not isinstance(value, str) else value[:_SHOWN]!r} is not taken "
                f"from a file: {why}. Take it out of the file; if you mean it, type {how}"
            )


def place_outside(value: str, *, typed: Collection[Path | str | None] = ()) -> str | None:
    """Why a file may not name this place; None where it may: it lies in the working folder, or in a bucket in use.

    Args:
        typed: the places that the user typed; their buckets are in use.
    """
    if is_bucket(value):
        buckets = {parse_url(str(store_path(place)))[:2] for place in map(str, typed) if is_bucket(place)}
        if parse_url(str(store_path(value)))[:2] in buckets:
            return None
    return _why_outside(value, None)


def _why_outside(value: str, models: Sequence[str] | None) -> str | None:
    """Why a file may not name this place; None where it may."""
    if models is not None and value in models:
        return None
    if value.startswith("hf:"):
        return "it would download a data set that the file chose"
    if is_bucket(value):
        return "it would read a bucket that the file chose, with your credentials"
    path = Path(value) if models is not None and is_hub_id(value) else require_local(value)
    if path.is_absolute() or value.startswith("~") or ".." in path.parts:
        return "a file names only what lies in the working folder"
    if models is not None and is_hub_id(value) and not os.path.lexists(path):  # also of a name that is too long
        return "it would download a model that the file chose, and theworld has no configuration for it"
    return None

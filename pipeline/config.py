"""Settings of a command: fields of a pydantic model, read from a TOML file and from flags.

Flags override the file; unknown names are errors. A field that has a `setting` is a flag, too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError

from .errors import ConfigError
from .messages import list_problems

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_CACHE = Path("latents")
"""The folder of stores of every command, where none is named."""

HOW_IT_RUNS = "How it runs"
DECIDES_LATENTS = "Decides the latents (enters the recipe)"
WORLD_TOKENS = "World tokens"

TABLES = ("precompute", "train")
"""The tables that a settings file may hold."""


def setting(
    help: str,
    *,
    panel: str | None = None,
    names: Sequence[str] = (),
    default: str | None = None,
    argument: bool = False,
    text: bool = False,
) -> Any:
    """Metadata that makes a field of a settings model also a flag of its command, `--field-name`.

    Args:
        help: what `--help` says, without the default, which follows from the field.
        panel: the group of options that it belongs to.
        names: other spellings of the flag.
        default: how help writes the default; None writes the field's own.
        argument: it is a positional argument, not a flag.
        text: the model parses it from text, whatever the type of the field.
    """
    extra: Any = {"panel": panel, "names": list(names), "default": default, "argument": argument, "text": text}
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
        ConfigError: the file is missing, is not TOML, or has a table that is not in `TABLES`.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # Windows editors write a byte order mark
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
    return cast(dict[str, Any], value)

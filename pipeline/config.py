"""Settings from a TOML file and from flags, as one frozen model. Flags win; unknown names are refused by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .messages import list_problems

Model = TypeVar("Model", bound=BaseModel)

TABLES = ("precompute", "train")


def load_config(model: type[Model], table: str, file: Path | None, flags: Mapping[str, Any]) -> Model:
    """The settings of one command.

    Args:
        model: the pydantic model of the command's settings.
        table: the TOML table that belongs to the command: `[precompute]` or `[train]`.
        file: a TOML file; it may hold both tables.
        flags: what was typed; None means not typed.
    Raises:
        ConfigError: the file cannot be read, or a name or value in it or among the flags is wrong.
    """
    settings = read_table(file, table) if file is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        typed = {name: f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None}
        where = "these flags" if file is None else f"{file}, [{table}]"
        raise ConfigError(f"{where}: {list_problems(error, known=model.model_fields, spelled=typed)}") from error


def read_table(file: Path, table: str) -> dict[str, Any]:
    """One table of a TOML file; empty where the file has none of that name.

    Raises:
        ConfigError: no such file, not TOML, or a table of another name in it.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark in front
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError, integers of thousands of digits
        raise ConfigError(f"{file} is not TOML: {error}") from error
    if unknown := sorted(set(content) - set(TABLES)):
        raise ConfigError(
            f"{file}: there is no table or setting {unknown[0]!r} at the top; settings stand under "
            f"{' or '.join(f'[{name}]' for name in TABLES)}"
        )
    value = content.get(table, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{file}: {table} must be a table, [{table}]")
    return cast(dict[str, Any], value)

"""Find stores by what they are: a folder with a `theworld.json`, which names its recipe. Folders' names decide nothing.

So a store may be renamed, and is found and grown as before. One cache folder holds a recipe once: which of two stores
should grow, only a person can say.
"""

from __future__ import annotations

import json
import re
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, StoreError, StoreNotFoundError
from ..files import file_system
from ..files.local import require_local
from ..files.open_files import list_folder, retried
from ..files.plain import read_file
from ..files.sealed import unseal
from ..messages import command
from .records import unreadable

MANIFEST_LIMIT_BYTES = 2**22
"""Of `theworld.json`."""
_STORE_NAME = re.compile(r"-([0-9a-f]{12})\Z")
_RECIPE_ID = re.compile(rb'"recipe_id":"([0-9a-f]{64})"')


def is_store(path: Path) -> bool:
    """Whether a folder is a store, in whatever state; one that this user may not look into is so by its name."""
    try:
        return stat.S_ISREG(retried((path / "theworld.json").stat).st_mode)
    except PermissionError:
        return _STORE_NAME.search(path.name) is not None
    except OSError as error:
        if error.errno in file_system.SERVER_ERRORS:  # else a second store of the recipe would begin beside it
            raise unreadable(path / "theworld.json", None, error) from error
        return False


def find_stores(cache: Path) -> list[Path]:
    """The stores directly inside a cache folder, by name; none where there is no such folder.

    Raises:
        StoreError: the folder cannot be looked into.
    """
    cache = require_local(cache)
    try:
        return sorted(path for path in list_folder(cache) if is_store(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{cache} cannot be looked into: {error.strerror}. Name a folder that you may read") from error


def refuse_store(cache: Path) -> None:
    """Raise ConfigError where a cache folder is a store: a second one would begin inside it, all to be made again."""
    if is_store(cache):
        raise ConfigError(
            f"{cache} is a store, not a folder of stores. Name the folder it is in, {cache.resolve().parent}; only "
            "`theworld cache merge` takes a store to add to"
        )


def is_of(path: Path, recipe_id: str) -> bool:
    """Whether a store says that it is of a recipe; one that cannot be read does by its name, so that it is noticed."""
    try:
        content = read_file(path / "theworld.json", MANIFEST_LIMIT_BYTES, within=path)
    except (OSError, ValueError):
        match = _STORE_NAME.search(path.name)
        return match is not None and recipe_id.startswith(match[1])
    with suppress(ValueError, AttributeError, RecursionError):
        return json.loads(unseal(content)).get("recipe_id") == recipe_id
    stated = _RECIPE_ID.search(content)  # damaged: it is noticed, rather than made again beside itself
    return stated is not None and stated[1].decode() == recipe_id


def store_of(cache: Path, recipe_id: str) -> Path | None:
    """The store of a recipe in a cache folder, whatever it is called; None where there is none.

    Raises:
        StoreError: there are two, or the folder cannot be looked into.
    """
    stores: dict[tuple[int, int], Path] = {}
    for path in find_stores(cache):
        if is_of(path, recipe_id):
            status = retried(path.stat)
            place = status.st_dev, status.st_ino
            if place not in stores or stores[place].is_symlink():  # a link beside a store is no second one
                stores[place] = path
    if len(stores) > 1:
        first, *others = sorted(stores.values())
        names = "".join(f"\n    {path}" for path in (first, *others))
        raise StoreError(
            f"{cache} holds the recipe {recipe_id[:12]} {len(stores)} times, and which one is meant cannot be known:"
            f"{names}\nIf one is only a copy, move it to another folder. If each has latents that the other lacks, "
            f"bring them together, `{command('cache', 'merge', first, *others)}`, and then move the other away. "
            "Then run the same command again"
        )
    return next(iter(stores.values()), None)


def moved_store(path: Path, recipe_id: str) -> Path:
    """Where a store is that was once at `path`: there, or under another name in the same folder.

    Raises:
        StoreError: two stores beside it have that recipe.
    """
    if is_store(path) or not path.parent.is_dir():
        return path
    with suppress(StoreNotFoundError):
        return store_of(path.parent, recipe_id) or path
    return path


def resolve_store(path: Path) -> Path:
    """The store at a path, or the only one in a cache folder.

    Raises:
        StoreNotFoundError: there is none.
        StoreError: there are several.
    """
    path = require_local(path)
    return path if is_store(path) else _only_store(path)


def _only_store(cache: Path) -> Path:
    stores = find_stores(cache)
    if len(stores) == 1:
        return stores[0]
    if stores:
        choices = "".join(f"\n    {path}" for path in stores)
        raise StoreError(f"{cache} holds {len(stores)} stores. Name the one you mean:{choices}")
    if not cache.exists():
        state = "does not exist"
    elif not cache.is_dir():
        state = "is a file"
    else:
        names = sorted(path.name for path in cache.iterdir())
        state = f"holds no store, only {', '.join(names[:5])}{', ...' * (len(names) > 5)}" if names else "is empty"
    make = command("precompute", "IMAGES", "--cache", cache)
    raise StoreNotFoundError(f"{cache} {state}. Make a store with `{make}`")

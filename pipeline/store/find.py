"""Find stores by what they are: a folder with a `theworld.json`, which names its recipe. Folders' names decide nothing.

So a store may be renamed, and is found and grown as before. One cache folder holds a recipe once: which of two stores
should grow, only a person can say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigError, StoreError, StoreNotFoundError
from ..files import file_system
from ..files.open_files import list_folder, retried
from ..files.places.folder import Folder
from ..files.places.local import place_of
from ..files.places.place import Place
from ..files.places.store_paths import is_bucket
from ..files.sealed import unseal
from ..messages import command
from .records import unreadable

_Store = TypeVar("_Store", Path, Place)

MANIFEST = "theworld.json"
MANIFEST_LIMIT_BYTES = 2**22
"""Of `theworld.json`."""
_STORE_NAME = re.compile(r"-([0-9a-f]{12})\Z")
_RECIPE_ID = re.compile(rb'"recipe_id":"([0-9a-f]{64})"')


def require_folder(where: str | Path | Place) -> Path:
    """The path of a place, for what works on a disk alone.

    Raises:
        ConfigError: it is in a bucket, or another URL.
    """
    place = place_of(where)
    if isinstance(place, Folder):
        return place.path
    copy = command("cache", "merge", "FOLDER", str(place))
    raise ConfigError(
        f"{place} is in a bucket, and this works on the files of a disk. Copy it, `{copy}`, and name the copy"
    )


def is_store(where: Path | Place) -> bool:
    """Whether a folder is a store, in whatever state; one that this user may not look into is so by its name."""
    place = where if isinstance(where, Place) else Folder(where)
    try:
        return place.entry(MANIFEST) is not None
    except PermissionError:
        return _STORE_NAME.search(str(place)) is not None
    except ValueError:
        return False
    except OSError as error:
        if error.errno in file_system.SERVER_ERRORS:  # else a second store of the recipe would begin beside it
            raise unreadable(place.location(MANIFEST), None, error) from error
        return False


def stores_in(cache: Place) -> list[Place]:
    """The stores directly inside a cache folder, or under its prefix in a bucket, by name.

    Raises:
        StoreError: it cannot be looked into.
    """
    if isinstance(cache, Folder):
        return [Folder(path) for path in find_stores(cache.path)]
    places = [cache.below(name) for name in cache.folders()]
    return [place for place in places if is_store(place)]


def find_stores(cache: Path) -> list[Path]:
    """The stores directly inside a cache folder, by name; none where there is no such folder.

    Raises:
        StoreError: the folder cannot be looked into.
    """
    cache = require_folder(cache)
    try:
        return sorted(path for path in list_folder(cache) if is_store(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{cache} cannot be looked into: {error.strerror}. Name a folder that you may read") from error


def refuse_store(cache: Path | Place) -> None:
    """Raise ConfigError where a cache folder is a store: a second one would begin inside it, all to be made again."""
    if is_store(cache):
        path = cache if isinstance(cache, Path) else cache.path if isinstance(cache, Folder) else None
        parent = str(cache).rpartition("/")[0] if path is None else path.resolve().parent
        raise ConfigError(
            f"{cache} is a store, not a folder of stores. Name the folder it is in, {parent}; only "
            "`theworld cache merge` takes a store to add to"
        )


def is_of(store: Place, recipe_id: str) -> bool:
    """Whether a store says that it is of a recipe; one that cannot be read does by its name, so that it is noticed."""
    try:
        content = store.read(MANIFEST, MANIFEST_LIMIT_BYTES)
    except (OSError, ValueError):
        match = _STORE_NAME.search(str(store))
        return match is not None and recipe_id.startswith(match[1])
    with suppress(ValueError, AttributeError, RecursionError):
        return json.loads(unseal(content)).get("recipe_id") == recipe_id
    stated = _RECIPE_ID.search(content)  # damaged: it is noticed, rather than made again beside itself
    return stated is not None and stated[1].decode() == recipe_id


def store_of(cache: Place, recipe_id: str) -> Place | None:
    """The store of a recipe in a cache folder, whatever it is called; None where there is none.

    Raises:
        StoreError: there are two, or the folder cannot be looked into.
    """
    stores = {str(store): store for store in stores_in(cache) if is_of(store, recipe_id)}
    if len(stores) > 1 and cache.is_local:
        stores = _without_links(stores)
    if len(stores) > 1:
        first, *others = sorted(stores)
        names = "".join(f"\n    {path}" for path in (first, *others))
        raise StoreError(
            f"{cache} holds the recipe {recipe_id[:12]} {len(stores)} times, and which one is meant cannot be known:"
            f"{names}\nIf one is only a copy, move it to another folder. If each has latents that the other lacks, "
            f"bring them together, `{command('cache', 'merge', first, *others)}`, and then move the other away. "
            "Then run the same command again"
        )
    return next(iter(stores.values()), None)


def _without_links(stores: dict[str, Place]) -> dict[str, Place]:
    """Each folder once: a link beside a store is no second one."""
    each: dict[tuple[int, int], str] = {}
    for name in stores:
        status = retried(Path(name).stat)
        identity = status.st_dev, status.st_ino
        if identity not in each or Path(each[identity]).is_symlink():
            each[identity] = name
    return {name: stores[name] for name in each.values()}


def moved_store(where: Path | str, recipe_id: str) -> Path | str:
    """Where a store is that was once at a path or a URL: there, or under another name in the same folder.

    Raises:
        StoreError: two stores beside it have that recipe.
    """
    if is_bucket(where):
        return where
    path = Path(where)
    if is_store(path) or not path.parent.is_dir():
        return path
    with suppress(StoreNotFoundError):
        found = store_of(Folder(path.parent), recipe_id)
        return found.path if isinstance(found, Folder) else path
    return path


def resolve_place(where: str | Path | Place) -> Place:
    """The store at a path or a URL, or the only one in a cache folder or under a prefix.

    Raises:
        StoreNotFoundError: there is none.
        StoreError: there are several.
    """
    place = place_of(where)
    if isinstance(place, Folder):
        return Folder(resolve_store(place.path))
    if is_store(place):
        return place
    if (store := _one_of(stores_in(place), place)) is not None:
        return store
    make = command("precompute", "IMAGES", "--cache", str(place))
    raise StoreNotFoundError(f"{place} holds no store. Make one with `{make}`")


def resolve_store(path: Path) -> Path:
    """The store at a path, or the only one in a cache folder.

    Raises:
        StoreNotFoundError: there is none.
        StoreError: there are several.
    """
    path = require_folder(path)
    return path if is_store(path) else _only_store(path)


def _one_of(stores: Sequence[_Store], where: Path | Place) -> _Store | None:
    """The only store of a cache; None where there is none."""
    if len(stores) > 1:
        choices = "".join(f"\n    {store}" for store in stores)
        raise StoreError(f"{where} holds {len(stores)} stores. Name the one you mean:{choices}")
    return stores[0] if stores else None


def _only_store(cache: Path) -> Path:
    if (store := _one_of(find_stores(cache), cache)) is not None:
        return store
    if not cache.exists():
        state = "does not exist"
    elif not cache.is_dir():
        state = "is a file"
    else:
        names = sorted(path.name for path in cache.iterdir())
        state = f"holds no store, only {', '.join(names[:5])}{', ...' * (len(names) > 5)}" if names else "is empty"
    make = command("precompute", "IMAGES", "--cache", cache)
    raise StoreNotFoundError(f"{cache} {state}. Make a store with `{make}`")

"""`theworld cache drop`: take latents out of a store, or let them be made again."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import ConfigError
from ...messages import MAX_NAMES, format_bytes
from ..options import Json, Keys, Match, Quiet, Store
from .upkeep import Apply, BreakLock

if TYPE_CHECKING:
    from ...files.places.place import Place
    from ...store.latent_store import LatentStore


def drop(
    store: Store,
    keys: Keys = None,
    match: Match = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let precompute make dropped latents again.")] = False,
    apply: Apply = False,
    break_lock: BreakLock = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Remove latents from a store, for example after a withdrawn licence. They are not made again.

    Their old shards go to lost+found/, for a person to delete. Without --keys and --match, finish an interrupted drop.
    """
    from ...progress import Progress, print_json, print_lines
    from ...store.find import resolve_place
    from ...store.folder import load_store
    from ...store.upkeep.drop import drop as run_drop
    from ...store.upkeep.drop import undo_drop

    path = resolve_place(store)
    selected = _selected(load_store(path), keys, match)
    if undo:
        undone = undo_drop(path, selected, apply=apply, break_lock=break_lock)
        if as_json:
            print_json({"store": str(path), "applied": apply, "undone": len(undone.keys)})
            return
        done = "are no longer" if apply else "would no longer be"
        print_lines(f"{path}: {len(undone.keys)} keys {done} dropped{_named(path, undone.keys)}", paths=True)
        print_lines("nothing was changed; --apply does this" if not apply else "precompute makes them again")
        return
    if selected == []:
        raise ConfigError(f"no input of {path} matches, and no key was given: there is nothing to drop")
    progress = Progress.on_stderr(quiet=quiet)
    dropped = run_drop(path, selected or [], apply=apply, progress=progress, break_lock=break_lock)
    if as_json:
        print_json(
            {
                "store": str(path),
                "applied": apply,
                "keys": len(dropped.keys),
                "latents": len(dropped.present),
                "shards": list(dropped.shards),
                "bytes": dropped.bytes,
                "kept_in": [str(folder) for folder in dropped.folders],
            }
        )
        return
    without = len(dropped.keys) - len(dropped.present)
    others = f"; {without} more have no latent here and are not made either" if without and selected else ""
    print_lines(
        f"{path}: {len(dropped.present)} latents {'dropped' if apply else 'to drop'}"
        f"{_named(path, dropped.present or dropped.keys)}{others}",
        paths=True,
    )
    size = format_bytes(dropped.bytes)
    print_lines(f"{len(dropped.shards)} shards, {size}, {'were' if apply else 'are to be'} written again without them")
    for folder in dropped.folders:
        print_lines(f"their old payloads are kept in {folder} (report.json says which and why).", paths=True)
        erase = f"rm -r {shlex.quote(str(folder))}" if path.is_local else f"delete all objects below {folder}/"
        print_lines(f"To erase them for good: {erase}", paths=True)
    if not apply:
        print_lines("nothing was changed; --apply drops them")


def _selected(store: LatentStore, keys: list[str] | None, match: str | None) -> list[str] | None:
    """The keys that were named, with or without a latent; None where none were."""
    from ...store.sources.table import read_source_rows
    from ...store.upkeep.transfer import named_keys

    if keys is None and match is None:
        return None
    selected = named_keys(keys or [])
    if match is not None:
        try:
            expression = re.compile(match)
        except re.error as error:
            raise ConfigError(f"--match {match!r} is not a regular expression: {error}") from error
        matching = {row.key for row in read_source_rows(store.place) if expression.search(row.source)}
        selected = sorted(matching if keys is None else matching & set(selected))
    return selected


def _named(store: Place, keys: tuple[str, ...]) -> str:
    from ...store.keys.packed_keys import pack_keys
    from ...store.sources.scan import sources_of

    first = keys[:MAX_NAMES]
    sources = sources_of(store, pack_keys(first))
    names = [name for key in first for name in sources.get(key, [key])]
    return f" ({', '.join(names)}{' …' if len(keys) > len(first) else ''})" if names else ""

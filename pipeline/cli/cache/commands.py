"""`theworld cache …`: inspect, check, repair and copy stores. Nothing is deleted or moved without --apply.

Exit codes, for scripts: 0 all well; 1 damage found (or, by an audit, latents that differ), or something could not be
copied; 2 wrong use; 10 not a store; 11 another repair, gc, drop or compact is running. Results go to stdout,
progress to stderr.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ....precompute.job.config import PrecomputeConfig
from ...config import DECIDES_LATENTS, DEFAULT_CACHE
from ...errors import ConfigError, StoreNotFoundError, TheWorldError
from ...files.places.local import place_of, url_of
from ...files.places.place import Place
from ...messages import command, format_bytes
from .. import options
from ..options import Json, Quiet, Store
from ..settings import settings_of
from .drop import drop
from .upkeep import compact, gc, repair
from .world import audit_store, preview

cache_app = options.Commands(
    help="List, check, repair and convert stores of latents.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_AUDIT = "With --recompute"


def _audit_option(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=_AUDIT)


@cache_app.command("list", example="theworld cache list latents", page="docs/store.md")
def list_(
    cache: Annotated[Path, typer.Argument(help="Folder of stores.")] = DEFAULT_CACHE, as_json: Json = False
) -> None:
    """List the stores of a cache folder: path, recipe id, kind, format, samples, bytes."""
    from ...progress import print_error, print_json, print_lines
    from ...store.folder import is_store, load_store, stores_in

    top = place_of(cache)
    places = [top] if is_store(top) else stores_in(top)
    if not places and top.is_local and not cache.is_dir():
        what = "is a file" if cache.exists() else "does not exist"
        make = command("precompute", "IMAGES", "--cache", cache)
        raise StoreNotFoundError(f"{cache} {what}. Make a store with `{make}`")
    rows: list[dict[str, Any]] = []
    bad = False
    for place in places:
        try:
            store = load_store(place)
        except TheWorldError as error:  # one bad store must not hide the others
            bad = True
            print_error(f"error: {error}")
            continue
        bad |= bool(store.damage)
        for damage in store.damage:
            print_error(f"DAMAGE: {damage}")
        rows.append(
            {
                "path": str(place),
                "recipe_id": store.recipe.id,
                "kind": store.recipe.kind,
                "format": store.format,
                "samples": len(store),
                "bytes": sum(shard.bytes for shard in store.shards.values()),
            }
        )
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            size = format_bytes(row["bytes"])
            facts = f"{row['samples']:>9} samples  {size:>12}  {row['kind']:<8}  {row['format']:<10}"
            print_lines(f"{facts}  {row['path']}", paths=True)
        if not rows:
            print_lines(f"{top} holds no store", err=True)
    if bad:
        raise typer.Exit(1)


@cache_app.command(example="theworld cache info latents", page="docs/store.md")
def info(
    store: Store = DEFAULT_CACHE,
    samples: Annotated[int, typer.Option(min=0, help="Check this many samples, evenly spread.")] = 256,
    as_json: Json = False,
) -> None:
    """Show what a store holds: recipe, counts, bytes, mean and std by channel, motion, health."""
    from ...progress import print_json, print_lines
    from ...store.upkeep.summary import summarise

    summary = summarise(_open(store), samples=samples)
    if as_json:
        print_json(summary.to_json())
    else:
        print_lines(*summary.lines())


cache_app.command(example="theworld cache preview latents --out look", page="docs/store.md")(preview)


@cache_app.command(example="theworld cache failed latents", page="docs/store.md")
def failed(store: Store = DEFAULT_CACHE, as_json: Json = False) -> None:
    """List the inputs that have no latent: source, reason, attempts, message."""
    from ...progress import print_json, print_lines

    opened = _open(store, tolerate_damage=True)
    rows = opened.failures()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        attempts = f"{row.attempts} attempt{'s' * (row.attempts != 1)}"
        print_lines(f"{row.reason:<10}  {row.source}  ({attempts})  {row.message}")
    reasons = Counter(row.reason for row in rows)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    print_lines(f"{opened.place}: {len(rows)} inputs without a latent{f': {counts}' if rows else ''}", err=True)


@cache_app.command(example="theworld cache verify latents --read", page="docs/store.md")
def verify(
    store: Store = DEFAULT_CACHE,
    read: Annotated[bool, typer.Option("--read", help="Read every payload and compare its checksum.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also rebuild each row from its numbers and compare.")] = False,
    sample: Annotated[
        str | None, typer.Option(help="i/n: check every n-th shard, starting at the i-th; n such runs check all.")
    ] = None,
    recompute: Annotated[
        int | None, typer.Option(min=1, help="Audit: compute this many random samples again and compare them.")
    ] = None,
    images: Annotated[Path | None, options.images_of_store(_AUDIT)] = None,
    seed: Annotated[int | None, _audit_option("Seed of the random samples. (default: by the time; printed)")] = None,
    tolerance: Annotated[
        float | None, _audit_option("Largest allowed difference; 0 requires the same bits. (default: as measured)")
    ] = None,
    world: Annotated[str | None, options.moved_world(_AUDIT)] = None,
    device: Annotated[str | None, options.device_option(_AUDIT)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that a store is complete and undamaged. Changes nothing. Exit code 1 if damage is found."""
    from ...progress import Progress, print_json, print_lines
    from ...store.folder import resolve_place
    from ...store.upkeep.verify import verify as run_verify

    of_audit: dict[str, Any] = {"images": images, "seed": seed, "tolerance": tolerance, "world": world}
    of_audit["device"] = device
    if recompute is None and (stray := [name for name, value in of_audit.items() if value is not None]):
        raise ConfigError(f"--{stray[0]} belongs to an audit: add --recompute N")
    verified = run_verify(
        resolve_place(store),
        level="deep" if deep else "read" if read else "names",
        sample=_part(sample),
        progress=Progress.on_stderr(quiet=quiet),
    )
    audited = None
    if recompute is not None and not verified.damage:
        audited = audit_store(verified.store, recompute, quiet=quiet, **of_audit)
    if as_json:
        audit: dict[str, Any] = {} if recompute is None else {"audit": None if audited is None else audited.to_json()}
        print_json({**verified.to_json(), **audit})
    else:
        print_lines(*verified.lines())
        if audited is not None:
            print_lines(*audited.lines())
        if recompute is not None and audited is None:
            print_lines("nothing was recomputed: repair the damage first, with `theworld cache repair STORE --apply`")
    if verified.damage or (audited is not None and audited.different):
        raise typer.Exit(1)


cache_app.command(example="theworld cache repair latents --apply", page="docs/store.md")(repair)
cache_app.command(example="theworld cache gc latents --grace 14d", page="docs/store.md")(gc)
cache_app.command(example="theworld cache drop latents --match '^withdrawn/' --apply", page="docs/store.md")(drop)
cache_app.command(example="theworld cache compact latents --apply", page="docs/store.md")(compact)


@cache_app.command(example="theworld cache explain latents --steps 16", page="docs/store.md")
@settings_of(PrecomputeConfig, panel=DECIDES_LATENTS)
def explain(
    a: Annotated[Path, typer.Argument(help="A store.")],
    b: Annotated[Path | None, typer.Argument(help="Another store. Without it, give flags of precompute.")] = None,
    config: options.ConfigFile = None,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Show the recipe fields in which two stores, or a store and flags of precompute, differ."""
    from ...latents.recipe import difference
    from ...progress import print_json, print_lines
    from ...store.folder import load_store, resolve_place

    ours = load_store(resolve_place(a))
    if b is not None:
        if any(value is not None for value in typed.values()) or config:
            raise ConfigError("name a second store, or precompute's flags, not both")
        other = load_store(resolve_place(b))
        theirs, name = other.recipe, str(other.place)
    else:
        from ....precompute.job.planning.recipe import make_recipe
        from ....precompute.worlds.source import resolve_world
        from ...config import load_config

        settings = load_config(PrecomputeConfig, "precompute", config, typed)
        with_text = any((settings.prompt, settings.negative_prompt, settings.prompt_field))
        source = resolve_world(settings.world, with_text=with_text, with_weights=False)
        theirs, name = make_recipe(settings, source), "these flags"
    fields = difference(ours.recipe, theirs)
    if as_json:
        differing = {field: {"a": left, "b": right} for field, (left, right) in fields.items()}
        print_json({"a": ours.recipe.id, "b": theirs.id, "same": not fields, "fields": differing})
        return
    if not fields:
        print_lines(f"{ours.place} and {name}: the same recipe {theirs.id[:12]}, so the same latents")
        return
    print_lines(f"{ours.place} ({ours.recipe.id[:12]}) and {name} ({theirs.id[:12]}) differ in")
    for field, (left, right) in fields.items():
        print_lines(f"  {field}: {left} / {right}")


_SHARD = "Samples per shard of a new store. (default: the copied store's)"


@cache_app.command(example="theworld cache export latents copies --format webdataset", page="docs/store.md")
def export(
    store: Store,
    cache: Annotated[Path, typer.Argument(help="Another cache folder.")],
    format: Annotated[
        str | None, typer.Option(help="zarr or webdataset, of a new store. (default: the copied store's)")
    ] = None,
    keys: options.Keys = None,
    match: options.Match = None,
    shard_size: Annotated[int | None, typer.Option(min=1, max=65536, help=_SHARD)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Copy a store or a part of it into another folder or format, with the same bits and recipe id."""
    from ...progress import Progress
    from ...store.upkeep.transfer import export as run_export
    from ...store.upkeep.transfer import keys_of_sources, named_keys

    if format not in (None, "zarr", "webdataset"):
        raise ConfigError(f"--format must be zarr or webdataset, got {format!r}")
    source = _open(store, tolerate_damage=True, check_sizes=True)
    selected = named_keys(keys) if keys else None
    if match is not None:
        matching = set(keys_of_sources(source, match))
        selected = [key for key in (source.keys if selected is None else selected) if key in matching]
    if selected == []:
        raise ConfigError("no key is left to export: --keys is empty, or none of them matches --match")
    target, copied = run_export(
        source,
        place_of(cache),
        format=format,
        keys=selected,
        shard_size=shard_size,
        progress=Progress.on_stderr(quiet=quiet),
    )
    _report_copies(target.place, [copied], source.damage, as_json)


@cache_app.command(example="theworld cache merge latents part1/latents part2/latents", page="docs/store.md")
def merge(
    target: Annotated[Path, typer.Argument(help="A store of the same recipe, or a cache folder, created if needed.")],
    stores: Annotated[list[Path], typer.Argument(help="Stores to copy from, also hf://datasets/ORG/NAME.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge stores of one recipe, for example from several machines. Can be repeated."""
    from ...progress import Progress
    from ...store.upkeep.transfer import merge as run_merge

    with ExitStack() as stack:
        sources = [_source(path, stack) for path in stores]
        copied = run_merge(place_of(target), sources, progress=Progress.on_stderr(quiet=quiet))
        damage = tuple(damage for source in sources for damage in source.damage)
        _report_copies(place_of(target), copied, damage, as_json)


def _report_copies(target: Place, copies: list[Any], damage: tuple[str, ...], as_json: bool) -> None:
    from ...progress import print_error, print_json, print_lines

    bad = [*damage, *(message for copied in copies for message in copied.damaged)]
    if as_json:
        counts = ("copied", "present", "dropped")
        rows = [{"source": str(c.source)} | {name: getattr(c, name) for name in counts} for c in copies]
        print_json({"target": str(target), "sources": rows, "damaged": bad})
    else:
        for copied in copies:
            text = f"{copied.source}: {copied.copied} samples copied to {target}, {copied.present} were already there"
            text += f", {copied.dropped} were dropped from it before, so they were left out" if copied.dropped else ""
            print_lines(text, paths=True)
    for message in bad:
        print_error(f"DAMAGE, not copied: {message}")
    if bad:
        raise typer.Exit(1)


def _source(path: Path, stack: ExitStack) -> Any:
    """A store to copy from; one on the Hub is downloaded for as long as it is copied."""
    from ...store.upkeep.share import fetched_store

    if (url := url_of(path)) is not None and url.startswith("hf://"):
        return stack.enter_context(fetched_store(url))
    return _open(path, tolerate_damage=True, check_sizes=True)


def _open(path: Path, *, tolerate_damage: bool = False, check_sizes: bool = False) -> Any:
    from ...store.folder import open_store

    return open_store(path, tolerate_damage=tolerate_damage, check_sizes=check_sizes)


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None:
        raise ConfigError(f"--sample must be i/n such as 1/7, got {text!r}")
    return int(match[1]), int(match[2])

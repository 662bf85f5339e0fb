"""`theworld cache repair`, `gc`, `compact`: heal, sweep and tidy a store, on a disk or in a bucket."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

import typer

from ...config import DEFAULT_CACHE
from ...errors import ConfigError
from ...files.places.folder import path_or_url
from ...messages import command, format_bytes
from ..options import Json, Quiet, Store

SMALLEST_GRACE_S = 3600.0

Apply = Annotated[bool, typer.Option("--apply", help="Apply the changes; without it, only print them.")]
BreakLock = Annotated[
    bool,
    typer.Option("--break-lock", help="Of a store in a bucket: take the lock from a process that you know has ended."),
]


def repair(
    store: Store = DEFAULT_CACHE,
    deep: Annotated[bool, typer.Option("--deep", help="Find damage as `verify --deep` does.")] = False,
    apply: Apply = False,
    break_lock: BreakLock = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Move damaged shards to lost+found/, so that precompute makes them again. Never deletes."""
    from ...progress import Progress, print_json, print_lines
    from ...store.folder import resolve_place
    from ...store.upkeep.repair import repair as run_repair

    path = resolve_place(store)
    repaired = run_repair(
        path,
        apply=apply,
        level="deep" if deep else "read",
        progress=Progress.on_stderr(quiet=quiet),
        break_lock=break_lock,
    )
    moved = [str(file) for file in repaired.moved]
    if as_json:
        report = str(repaired.report) if repaired.report else None
        print_json({"store": str(path), "applied": apply, "moved": moved, "report": report})
    else:
        for finding in repaired.verification.damage:
            print_lines(f"DAMAGE: {finding.message}")
        for file in moved:
            print_lines(f"{'moved' if apply else 'would move'} {file} to {path.location('lost+found')}", paths=True)
        if repaired.report:
            print_lines(f"{path}: what is missing is listed, with its inputs, in {repaired.report}", paths=True)
        elif any(finding.what == "missing" for finding in repaired.verification.damage):
            print_lines(f"would list what is missing, with its inputs, in {path.location('lost+found')}", paths=True)
        if not repaired.verification.damage:
            print_lines(f"{path}: no damage", paths=True)
        elif apply and any(f.shard is not None or f.what == "missing" for f in repaired.verification.damage):
            print_lines(
                f"{path}: run `theworld precompute` with the same flags to make again what is missing", paths=True
            )
        elif not apply and (moved or any(finding.what == "missing" for finding in repaired.verification.damage)):
            print_lines("nothing was changed; --apply does this")
    if repaired.verification.damage and (not apply or repaired.unhealed):
        raise typer.Exit(1)


def gc(
    store: Store = DEFAULT_CACHE,
    grace: Annotated[str, typer.Option(help="Keep files changed within this time: 14d, 36h; at least 1h.")] = "14d",
    apply: Apply = False,
    break_lock: BreakLock = False,
    as_json: Json = False,
) -> None:
    """Delete leftovers of killed writers: unfinished files, and payloads without a record. Never deletes latents."""
    from ...progress import print_json, print_lines
    from ...store.folder import resolve_place
    from ...store.upkeep.garbage import gc as run_gc

    path = resolve_place(store)
    sweep = run_gc(path, apply=apply, grace_s=_seconds(grace), break_lock=break_lock)
    if as_json:
        fields = {**asdict(sweep), "files": [str(file) for file in sweep.files]}
        print_json({"store": str(path), "applied": apply, **fields})
        return
    for file in sweep.files:
        print_lines(f"{'deleted' if apply else 'would delete'} {file}", paths=True)
    files, size = sweep.set_aside
    print_lines(
        f"{path}: {len(sweep.files)} files, {format_bytes(sweep.bytes)} {'deleted' if apply else 'to delete'}; "
        f"{sweep.young} younger than {grace} kept; lost+found keeps {files} files, {format_bytes(size)}",
        paths=True,
    )
    if sweep.promised:
        verify = command("cache", "verify", path_or_url(path))
        print_lines(f"{sweep.promised} payloads without the record that the index states were kept: see `{verify}`")
    if sweep.unfinished:
        done = "finished" if apply else "to finish"
        print_lines(f"{sweep.unfinished} interrupted drops or compacts {done}")
    if sweep.files and not apply:
        print_lines("nothing was changed; --apply deletes these files")


def compact(
    store: Store = DEFAULT_CACHE,
    apply: Apply = False,
    break_lock: BreakLock = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Join small shards into full ones: fewer files, no empty rows in the Zarr array, the same bits."""
    from ...progress import Progress, print_json, print_lines
    from ...store.folder import resolve_place
    from ...store.upkeep.compact import compact as run_compact

    place, progress = resolve_place(store), Progress.on_stderr(quiet=quiet)
    done = run_compact(place, apply=apply, progress=progress, break_lock=break_lock)
    if as_json:
        print_json({**asdict(done), "store": str(done.store), "applied": apply})
        return
    print_lines(*done.lines(applied=apply), paths=True)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([dh])", text)
    if match is None:
        raise ConfigError(f"--grace must be days or hours such as 14d or 36h, got {text!r}")
    seconds = int(match[1]) * {"d": 86400.0, "h": 3600.0}[match[2]]
    if seconds < SMALLEST_GRACE_S:
        raise ConfigError("--grace under 1h could delete what a running job is about to commit; give at least 1h")
    return seconds

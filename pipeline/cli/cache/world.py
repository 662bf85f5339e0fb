"""The parts of `theworld cache …` that need the world model: `preview`, and the audit of `verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...config import DEFAULT_CACHE
from ..options import Device, ImagesOfStore, Json, MovedWorld, Quiet, Store, device_name


def preview(
    store: Store = DEFAULT_CACHE,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Keys, names or files of inputs. (default: --samples of them)")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Random samples to draw, if none are named.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the random samples.")] = 0,
    steps: Annotated[int | None, typer.Option(min=0, help="Rollout steps to show. (default: all)")] = None,
    images: ImagesOfStore = None,
    true: Annotated[
        Path | None, typer.Option(help="Store of the true futures (--kind frames), shown in a second row.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("preview"),
    video: Annotated[bool, typer.Option("--video", help="Also write an MP4.")] = False,
    world: MovedWorld = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Decode some samples and draw them: a contact sheet (PNG) and an animation (GIF)."""
    from ....precompute.preview.store_preview import preview as run_preview
    from ...progress import Progress, print_json, print_lines
    from ...store.folder import open_store

    progress = Progress.on_stderr(quiet=quiet)
    drawn = run_preview(
        open_store(store, tolerate_damage=True),
        out,
        wanted=inputs or (),
        samples=samples,
        seed=seed,
        steps=steps,
        images=images,
        world=world,
        true=None if true is None else open_store(true, tolerate_damage=True),
        video=video,
        device=device_name(device),
        progress=progress,
    )
    for note in drawn.notes:
        progress.warn(note)
    if as_json:
        print_json(drawn.to_json())
    else:
        print_lines(*map(str, drawn.files), paths=True)


def audit_store(
    store: Path | str,
    count: int,
    *,
    images: Path | None,
    seed: int | None,
    tolerance: float | None,
    world: str | None,
    device: str | None,
    quiet: bool,
) -> Any:
    """The audit of `cache verify --recompute`: an `Audit`."""
    from ....precompute.live.audit import audit
    from ...progress import Progress
    from ...store.folder import open_store

    return audit(
        open_store(store),
        count,
        seed=time.time_ns() % 2**32 if seed is None else seed,
        images=images,
        world=world,
        tolerance=tolerance,
        device=device_name(device),
        progress=Progress.on_stderr(quiet=quiet),
    )

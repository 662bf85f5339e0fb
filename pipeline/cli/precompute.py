"""`theworld precompute`: make a store of latents."""

from __future__ import annotations

import json
from typing import Any

import typer

from ...precompute.job.config import PrecomputeConfig
from .options import ConfigFile, Json, Quiet
from .settings import settings_of


@settings_of(PrecomputeConfig)
def precompute(
    config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False, *, typed: dict[str, Any]
) -> None:
    """Roll each image forward once, or encode real videos, and keep the latents."""
    from ...precompute.job.run import run_precompute
    from ..config import load_config
    from ..progress import Progress

    settings = load_config(PrecomputeConfig, "precompute", config, typed)
    # the plan is what a dry run is for
    report = run_precompute(settings, progress=Progress.on_stderr(quiet=quiet and not settings.dry_run))
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else report.summary())
    if report.bad > settings.max_bad:
        raise typer.Exit(3)

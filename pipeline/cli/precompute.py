"""`theworld precompute`: make a store of latents."""

from __future__ import annotations

from typing import Any

import typer

from ...precompute.job.config import PrecomputeConfig
from .options import ConfigFile, Json, Quiet
from .settings import settings_of


@settings_of(PrecomputeConfig)
def precompute(
    config: ConfigFile = None, quiet: Quiet = False, as_json: Json = False, *, typed: dict[str, Any]
) -> None:
    """Predict the future of each image once, or encode real videos, and store the latents."""
    from ...precompute.inputs.listing.absent import refuse_absent
    from ...precompute.job.signals import Signals
    from ..config import load_config
    from ..latents.kinds import KINDS
    from ..progress import Progress, print_json, print_lines

    settings = load_config(PrecomputeConfig, "precompute", config, typed)
    if settings.images is not None:
        refuse_absent(settings.images, KINDS[settings.kind].takes)
    signals = Signals()
    with signals.caught():  # before torch is imported, which takes seconds
        from ...precompute.job.run import run_precompute

        signals.check()
        # the plan is what a dry run is for
        report = run_precompute(settings, progress=Progress.on_stderr(quiet=quiet and not settings.dry_run))
    if as_json:
        print_json(report.to_json())
    else:
        print_lines(*report.lines(), paths=True)
    if report.bad > settings.max_bad:
        raise typer.Exit(3)

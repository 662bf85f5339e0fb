"""Options that mean the same in every command that takes them. Loads nothing: --help opens this file."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def _quiet_libraries(wanted: bool) -> bool:
    """Downloads draw bars of their own; their libraries ask the environment once, when they are imported."""
    if wanted:
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    return wanted


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_quiet_libraries, help="No plan and no bars: warnings, errors, the result."),
]

"""`theworld questions`: check a questions file before anything is spent on it, or convert it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...train.config import TrainConfig
from ..config import DEFAULT_CACHE
from .defaults import own_questions
from .options import ConfigFile, Json, Quiet, store_typed
from .settings import settings_of

_READ = (
    *("columns", "images", "holdout", "show_choices", "lm", "steps", "max_bad"),
    *("layout", "patch", "pool", "pool_steps", "coarse", "queries"),
)
"""Settings of a training that decide which questions it reads, and how long they are."""


@settings_of(TrainConfig, *_READ)
def questions(
    file: Annotated[
        Path | None,
        typer.Argument(
            help=".jsonl, .json (LLaVA), .csv, .tsv, .parquet, .arrow, a folder of them, a VPCT folder, hf:ORG/NAME. "
            "(default: those of the cache's own scenes)"
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Argument(
            callback=store_typed,
            metavar="STORE",
            help="Path or URL of a store: also report which questions have latents, and the world tokens.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Only this split; 'all' for every split.")] = "all",
    write: Annotated[
        Path | None, typer.Option(help="New folder: write questions.jsonl there, and the images of a table.")
    ] = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Check questions before a training: counts, problems, missing latents, accuracy of guessing.

    Exit code 3 where a training on them would be refused.
    """
    from ...train.questions.inspect import inspect_questions, write_questions
    from ..config import read_table
    from ..progress import Progress, print_json, print_lines

    if file is None:
        file = own_questions(DEFAULT_CACHE)
        store = store or str(DEFAULT_CACHE)
    settings = read_table(config, "train") if config else {}
    settings |= {name: value for name, value in typed.items() if value is not None}
    report = inspect_questions(file, store, settings, split=None if split == "all" else split)
    if as_json:
        print_json(report.to_json())
    else:
        print_lines(*report.lines())
    if write is not None:
        progress = Progress.on_stderr(quiet=quiet)
        written = write_questions(file, write, settings, progress=progress)
        progress.say(f"{written.questions:,} questions: {written.path}; {written.images:,} images beside it")
    if report.refused:
        raise typer.Exit(3)

"""`theworld questions`: look at a questions file before anything is spent on it, or write it in our own layout.

Thin like cli.py, which registers the command. Elsewhere: the layouts (train/question_files.py), what is looked at
(train/question_report.py), writing (train/question_export.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .evaluate_cli import own_questions


def questions(
    file: Annotated[
        Path | None,
        typer.Argument(
            help=".jsonl, .json (LLaVA), .csv, .tsv, .parquet, .arrow, a folder of them, a VPCT folder, hf:ORG/NAME. "
            "(default: those of the cache's own scenes)"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Argument(help="A store: which questions have latents, and how many world tokens.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="question=Q,answer=A,choices=C,image=I,type=T: a table's own names.")
    ] = None,
    lm: Annotated[
        str | None, typer.Option(help="Whose tokens to count: a Hub id, a folder, a .gguf file. (default: embedded)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split. (default: all)")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps to read. (default: all the store has)")] = None,
    max_bad: Annotated[
        int | None, typer.Option(help="As of train: rows and questions that may be left out. (default: 0)")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="New folder for questions.jsonl, and the images that lie in a table.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file: its table train says lm, columns, steps, layout.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what questions there are, what is wrong with them, which have latents, and what guessing would score.

    Exit code 3 where a training on them would be refused.
    """
    from ..train.question_export import look, write_questions
    from .config import read_table

    if file is None:
        file = own_questions(Path("latents"))
        store = store or Path("latents")
    settings = read_table(config, "train") if config else {}
    flags = {"columns": columns, "lm": lm, "steps": steps, "max_bad": max_bad}
    settings |= {name: value for name, value in flags.items() if value is not None}
    report = look(file, store, settings, split=split)
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(report.lines()))
    if write is not None:
        written = write_questions(file, write, settings)
        typer.echo(f"{written.questions:,} questions: {written.path}; {written.images:,} images beside it", err=True)
    if report.refused:
        raise typer.Exit(3)

"""`theworld push` and `theworld pull`: runs on the Hugging Face Hub."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet, RunFolder


def push(
    run: RunFolder,
    hub_id: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files; uploads nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Upload a run to the Hugging Face Hub, with a card that says what it is and how well it answers."""
    import tempfile

    from ...train.runs.hub import CARD, prepare_upload
    from ...train.runs.hub import push as run_push

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            files = prepare_upload(run, Path(folder), hub_id)
            text = (Path(folder) / CARD).read_text(encoding="utf-8")
        typer.echo(json.dumps({"files": files, "card": text}, indent=2) if as_json else text)
        if not quiet:
            typer.echo(f"files: {', '.join(files)}", err=True)
        return
    address = run_push(run, hub_id, private=private)
    typer.echo(json.dumps({"run": str(run), "address": address}) if as_json else address)


def pull(
    hub_id: Annotated[str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Run folder to create.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a run from the Hugging Face Hub."""
    from ...train.runs.hub import pull as run_pull

    del quiet  # its callback has told the downloading library
    path = run_pull(hub_id, out)
    use = f"{path}\nnext: theworld ask {shlex.quote(str(path))} IMAGE QUESTION"
    typer.echo(json.dumps({"run": str(path)}) if as_json else use)

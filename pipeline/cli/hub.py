"""`theworld push` and `theworld pull`: runs on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..messages import command
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
    from ..progress import print_json, print_lines

    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            files = prepare_upload(run, Path(folder), hub_id)
            text = (Path(folder) / CARD).read_text(encoding="utf-8")
        if as_json:
            print_json({"files": files, "card": text})
        else:
            print_lines(*text.split("\n"))
        if not quiet:
            print_lines(f"files: {', '.join(files)}", err=True)
        return
    address = run_push(run, hub_id, private=private)
    if as_json:
        print_json({"run": str(run), "address": address}, indent=None)
    else:
        print_lines(address)


def pull(
    hub_id: Annotated[str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION on the Hub.")],
    out: Annotated[Path, typer.Argument(help="Run folder to create.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a run from the Hugging Face Hub."""
    from ...train.runs.hub import base_is_public
    from ...train.runs.hub import pull as run_pull
    from ...train.runs.meta import read_meta
    from ..progress import print_json, print_lines

    del quiet  # its callback has told the downloading library
    path = run_pull(hub_id, out)
    if as_json:
        print_json({"run": str(path)}, indent=None)
    else:
        moved = [] if base_is_public(read_meta(path)) else ["--lm", "PLACE"]
        print_lines(str(path), f"next: {command('ask', path, 'IMAGE', 'QUESTION', *moved)}", paths=True)

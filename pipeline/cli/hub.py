"""`theworld push` and `theworld pull`: runs on the Hugging Face Hub, and stores as data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.places.local import require_local
from ..messages import command
from .options import Json, Quiet


def push(
    run: Annotated[Path, typer.Argument(help="Run folder, or a store to share as a data set.")],
    hub_id: Annotated[
        str, typer.Argument(help="ORG/NAME on the Hub; for a store hf://datasets/ORG/NAME. Created if needed.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files; uploads nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Upload a run or a store to the Hugging Face Hub, with a card that says what it is and how to use it."""
    import tempfile

    from ...train.runs.hub import CARD, prepare_upload
    from ...train.runs.hub import push as run_push
    from ..progress import print_json, print_lines

    if hub_id.startswith("hf:"):
        _push_store(run, hub_id, private=private, dry_run=dry_run, quiet=quiet, as_json=as_json)
        return
    require_local(run)
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


def _push_store(path: Path, url: str, *, private: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    from ..files.hub.dataset import HubDataset
    from ..progress import Progress, print_json, print_lines
    from ..store.folder import open_store
    from ..store.upkeep.share import card, push_store

    if dry_run:
        text = card(open_store(path, check_sizes=True), HubDataset.parse(url)[0])
        if as_json:
            print_json({"card": text})
        else:
            print_lines(*text.split("\n"))
        return
    address = push_store(path, url, private=private, progress=Progress.on_stderr(quiet=quiet))
    if as_json:
        print_json({"store": str(path), "address": address}, indent=None)
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

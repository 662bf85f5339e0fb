"""`theworld doctor` and `theworld worlds`: what this machine has, and which world models can be used."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Json


def doctor(
    bucket: Annotated[
        str | None,
        typer.Argument(
            help="Look at a bucket instead, such as s3://BUCKET/FOLDER: its credentials, its speed, and whether it can "
            "keep a store.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help='Also say what fits another device, given by name, such as "H100 80GB".'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, GPU, memory, disk, Hub, sockets. Exit code 2 if most commands would fail."""
    from ...accelerators import find_accelerator
    from ...progress import print_json, print_result
    from .checks import examine, table_of, to_json

    if bucket is not None:
        from .bucket import examine_bucket

        rows = examine_bucket(bucket)
    else:
        rows = examine(planned=None if device is None else find_accelerator(device))
    if as_json:
        print_json(to_json(rows))
    else:
        print_result(table_of(rows))
    if any(row.state == "problem" for row in rows):
        raise typer.Exit(2)


def worlds(as_json: Json = False) -> None:
    """List the world models that --world accepts by name, by folder or by Hub id."""
    from ....precompute.worlds.registry import list_worlds, table_of
    from ...progress import print_json, print_result

    rows = list_worlds()
    if as_json:
        print_json(rows)
        return
    print_result(table_of(rows))

"""`theworld status`: what the jobs of a cache are doing."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import DEFAULT_CACHE
from .options import Json


def status(
    place: Annotated[
        str,
        typer.Argument(
            help="A cache folder, a store, a folder that holds caches, or a file of --events; of s3://BUCKET/FOLDER, "
            "gs://…, az://… the jobs of this machine."
        ),
    ] = str(DEFAULT_CACHE),
    stale_s: Annotated[
        float | None,
        typer.Option(
            min=1, help="Seconds without an event after which a job counts as stale. (default: 180, six heartbeats)"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the progress of precompute jobs, from any machine that sees their cache: rate, failures, stale jobs."""
    from ...precompute.job.watching.status import lines_of, read_status, table_of
    from ..progress import print_json, print_lines, print_result

    status = read_status(place, stale_s=stale_s)
    print_lines(*(f"warning: {problem}" for problem in status.unreadable), err=True)
    if as_json:
        print_json(status.to_json())
        return
    print_result(table_of(status))
    print_lines(*lines_of(status), paths=True)

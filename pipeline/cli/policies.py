"""`theworld policies`: how many rollout steps a question needs, by its type or by a gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .defaults import runs_or_newest
from .options import Device, Json, Quiet, device_name


def policies(
    runs: options.Runs = None,
    rule: Annotated[
        str, typer.Option(help="Rollout steps by question type, such as static=0 or temporal=all,static=0,*=4.")
    ] = "static=0",
    store: options.StoreOfRun = None,
    questions: options.QuestionsOfRun = None,
    split: options.Split = "test",
    calibrate: Annotated[
        str | None,
        typer.Option(help="Split to calibrate the gates on. (default: validation, or scenes outside the training)"),
    ] = None,
    lm: options.MovedLm = None,
    draws: Annotated[Path | None, typer.Option(help="Store of kind samples; the agreement gate needs it.")] = None,
    batch_size: options.AnswerBatch = 64,
    max_bad: Annotated[int | None, options.left_out_option("as trained")] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare policies that choose how many rollout steps to read for a question: always, never, a rule, gates.

    The gate is kept in the run folder, for `theworld ask --adaptive gate`.
    """
    from ...train.evaluation.policies.gates import parse_rule

    steps_by_type = parse_rule(rule)
    runs = runs_or_newest(runs)
    from ...train.evaluation.policies.adaptive import compare_policies
    from ..progress import Progress, print_json, print_lines, print_result

    progress = Progress.on_stderr(quiet=quiet)
    comparisons = [
        compare_policies(
            run,
            steps_by_type,
            store=store,
            questions=questions,
            split=None if split == "all" else split,
            calibrate=calibrate,
            draws=draws,
            batch_size=batch_size,
            max_bad=max_bad,
            lm=lm,
            device=device_name(device),
            progress=progress,
        )
        for run in runs
    ]
    if as_json:
        print_json([comparison.model_dump(mode="json") for comparison in comparisons])
        return
    for comparison in comparisons:
        print_result(comparison.table())
        print_lines(*comparison.notes, err=True)

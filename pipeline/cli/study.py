"""`theworld study`: train every arm of a controlled comparison under one budget, and compare their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...train.config import TrainConfig
from ..errors import ConfigError
from ..messages import split_names
from . import options
from .defaults import with_own_places
from .early import require_file
from .options import ConfigFile, Json, Quiet
from .settings import settings_of

if TYPE_CHECKING:
    from ..progress import Progress
    from ..store.latent_store import LatentStore

_STUDY = "The comparison"

_ARMS = "text,steps0,frozen,shuffled,noise,rollout"
VARIED = frozenset({"arm", "labels", "seed", "out"})
"""Settings of a training that the study itself decides."""


@settings_of(TrainConfig, without=VARIED | {"max_bad", "holdout"})  # every arm answers every question of stated splits
def study(
    arms: Annotated[
        str | None,
        typer.Option(
            help="Train and compare these, separated by commas: text, steps0, frozen, shuffled, noise, rollout, last, "
            "true, …, and arms that the file defines in study.arms.NAME. (default: those of the file, or "
            "text,steps0,frozen,shuffled,noise,rollout)",
            rich_help_panel=_STUDY,
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(help="Labelled training scenes: one number or several, such as 250,1000.", rich_help_panel=_STUDY),
    ] = "1000",
    curve: Annotated[
        str | None,
        typer.Option(
            help="Arms to train at every label count; others only at the middle one. (default: all)",
            rich_help_panel=_STUDY,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each arm and label count.", rich_help_panel=_STUDY)
    ] = 5,
    outcomes: options.Outcomes = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.", rich_help_panel=_STUDY)] = Path("evidence"),
    jobs: Annotated[int | None, options.jobs_option("one per core; on a GPU one", _STUDY)] = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Run a controlled comparison: train every arm (input) with one budget, test each, and write a page.

    Run it again to resume. You can add arms, labels and seeds to a study later.
    """
    from ..config import load_config, read_table
    from ..store.folder import resolve_place

    flags = with_own_places(typed, read_table(config, "train") if config else {})
    settings = load_config(TrainConfig, "train", config, flags)
    stated = read_table(config, "study") if config else {}
    label_counts = _counts(labels)
    resolve_place(settings.store)  # said before the seconds that torch and transformers take to load
    require_file(settings.questions, "questions")
    from ...train.study.answers import Answers
    from ...train.study.arms import parse_study_table
    from ...train.study.examples import telling_scenes
    from ...train.study.findings import find, read_outcomes
    from ...train.study.plan import Study
    from ...train.study.report import write_report
    from ...train.study.run import run_study
    from ..progress import Progress, print_lines, print_result
    from .report_page import own_scenes

    table = parse_study_table(stated, where=str(config), typed=(settings.store, settings.futures))
    named = arms or ",".join(table.arms) or _ARMS
    plan = Study(
        arms=split_names(named, "--arms", example="text,rollout"),
        labels=label_counts,
        curve=None if curve is None else split_names(curve, "--curve", example="rollout,true"),
        seeds=seeds,
        settings=settings,
        out=out,
        table=table,
    )
    rollout_outcomes = read_outcomes(outcomes) if outcomes is not None else None
    progress = Progress.on_stderr(quiet=quiet)
    units = run_study(plan, jobs=jobs, progress=progress)
    worldlet = own_scenes(settings.questions, settings.store)
    if rollout_outcomes is None and worldlet is not None:
        try:
            rollout_outcomes = read_outcomes(_read_rollouts(*worldlet, out, progress))
        except ConfigError as error:  # the study stands without them
            progress.warn(f"note: which rollouts end correctly is not known: {error}")
    findings = find(plan, units, outcomes=rollout_outcomes)
    if worldlet is not None:
        try:
            _draw_strips(*worldlet, telling_scenes(Answers(plan, units)), out)
        except ConfigError as error:  # hidden states, say: the page stands without pictures of single scenes
            progress.warn(f"note: no scenes are drawn: {error}")
    page = write_report(findings, out)
    if as_json:
        print_lines(*findings.to_json().split("\n"))
        return
    for table in findings.tables():
        print_result(table)
    print_lines(f"results: {page}", paths=True)


def _read_rollouts(store: LatentStore, scenes: Path, out: Path, progress: Progress) -> Path:
    """Which rollouts end as their scenes do, found out once per study."""
    from ...precompute.worldlet.rollout_check import rollout_outcomes
    from ..files.atomic import replace

    path = out / "outcomes.json"
    if not path.exists():
        outcomes = rollout_outcomes(store, scenes, progress=progress)
        replace(out, path, f"{json.dumps(outcomes, indent=0)}\n".encode())
    return path


def _draw_strips(store: LatentStore, scenes: Path, examples: dict[str, tuple[str, list[str]]], out: Path) -> None:
    from ...precompute.worldlet.rollout_check import draw_strips

    folder = out / "strips"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    pictures = draw_strips(store, scenes, list(examples.values()))
    for name, picture in zip(examples, pictures, strict=True):
        picture.save(folder / f"{name}.png")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in split_names(text, "--labels", example="250,1000,4000"))
    except ValueError as error:
        raise ConfigError(
            f"--labels must be numbers separated by commas, such as 250,1000,4000; got {text!r}"
        ) from error

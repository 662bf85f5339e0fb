"""`theworld evaluate`: answer the questions of a split with trained runs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ...train.config import AnswerConfig, ShowChoices, TrainConfig
from ..config import load_config
from ..errors import ConfigError
from ..messages import split_names
from . import options
from .defaults import runs_or_newest
from .options import Device, Json, Quiet, device_name
from .settings import help_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...precompute.live.batches import LiveBatches
    from ...train.evaluation.results.saved import Evaluation
    from ..store.folder import LatentStore

_LIVE_BATCH = 8
_PAGE = "Report page"


def _page_option(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=_PAGE)


@settings_of(AnswerConfig, "max_new_tokens")
def evaluate(
    runs: options.Runs = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Store of the run's recipe; with --draws, a store of kind samples. (default: as trained)"),
    ] = None,
    questions: options.QuestionsOfRun = None,
    split: options.Split = "test",
    steps: options.ReadSteps = None,
    shown: Annotated[
        str | None,
        typer.Option(help="Ablations: show the trained adapter another input, such as frozen,shuffled,noise,reversed."),
    ] = None,
    show_choices: Annotated[
        str | None, typer.Option(help=f"{help_of(TrainConfig, 'show_choices')} (default: as trained)")
    ] = None,
    draws: options.Draws = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Compute the --draws now and hold them in memory, instead of reading a store of them."
        ),
    ] = False,
    lm: options.MovedLm = None,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Score the saved free answers again by the current rules; loads no model."),
    ] = False,
    report: Annotated[Path | None, _page_option("Write a page with plots and examples: one HTML file.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the images that the questions name; also for the pictures of the page. "
            "(default: as trained)"
        ),
    ] = None,
    world: Annotated[str | None, options.moved_world(_PAGE)] = None,
    batch_size: options.AnswerBatch = 64,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate/--no-generate",
            help="Also answer questions with choices by free generation; takes twice the time.",
        ),
    ] = True,
    max_bad: Annotated[int | None, options.left_out_option("as trained")] = None,
    futures: Annotated[
        str | None,
        typer.Option(
            callback=options.store_typed,
            metavar="PATH",
            help=f"{help_of(TrainConfig, 'futures')} (default: as trained)",
        ),
    ] = None,
    outcomes: options.Outcomes = None,
    device: Device = None,
    memory: options.Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Answer the test questions with one or more runs, and print accuracy by question type side by side."""
    runs = runs_or_newest(runs)
    max_new_tokens = load_config(AnswerConfig, "answer", None, typed).max_new_tokens
    if rescore:
        if questions is not None or shown is not None or steps is not None or show_choices is not None:
            raise ConfigError("--rescore judges the answers that are saved; to ask for others, leave it out")
        from ...train.evaluation.results.rescore import rescore as rescore_saved

        evaluations = [evaluation for run in runs for evaluation in rescore_saved(run)]
        _print_saved(evaluations, as_json=as_json)
        if report is not None:
            _report(evaluations, report, store, images, world, futures, device, as_json=as_json, quiet=quiet)
        return
    if live and draws is None:
        raise ConfigError("--live rolls out the futures of --draws: say how many, such as --draws 8")
    if shown is not None and draws is not None:
        raise ConfigError("--draws averages over rollouts, --shown shows something else: evaluate one, then the other")
    from ...train.evaluation.blind import blind_notes
    from ...train.evaluation.evaluate import evaluate_shown
    from ...train.evaluation.results.compare import compare_evaluations, require_one_file
    from ...train.study.findings import read_outcomes
    from ..progress import Progress, print_json, print_result

    progress = Progress.on_stderr(quiet=quiet)
    if questions is None and not as_json:  # a table needs the same questions
        require_one_file(runs)
    rollout_outcomes = read_outcomes(outcomes) if outcomes is not None else None
    evaluations = [
        evaluation
        for run in runs
        for evaluation in evaluate_shown(
            run,
            [None, *(split_names(shown, "--shown", example="frozen,shuffled") if shown else ())],
            store=store,
            questions=questions,
            split=None if split == "all" else split,
            steps=steps,
            futures=futures,
            images=images,
            batch_size=batch_size,
            device=device_name(device),
            memory=memory,
            outcomes=rollout_outcomes,
            generate=generate,
            max_new_tokens=max_new_tokens,
            show_choices=_known_way(show_choices),
            lm=lm,
            max_bad=max_bad,
            draws=draws,
            live=_live_draws(run, images, questions, world, device_name(device)) if live else None,
            progress=progress,
        )
    ]
    if as_json:
        print_json([evaluation.model_dump(mode="json") for evaluation in evaluations])
    else:
        for table in compare_evaluations(evaluations):
            print_result(table)
    if split in ("train", "all") and questions is None:
        progress.warn(f"note: split {split} has questions that the runs were trained on; these figures are not a test")
    for evaluation in evaluations:
        if not evaluation.is_swap:
            for alarm in evaluation.alarms:
                progress.warn(f"note: {evaluation.run}: {alarm}")
    for run, note in blind_notes(evaluations):
        progress.warn(f"note: {run}: {note}")
    if report is not None:
        _report(
            evaluations,
            report,
            store,
            images,
            world,
            futures,
            device,
            outcomes=rollout_outcomes,
            as_json=as_json,
            quiet=quiet,
        )


def _live_draws(
    run: Path, images: Path | None, questions: Path | None, world: str | None, device: Any
) -> Callable[[LatentStore], LiveBatches]:
    """What rolls out the draws of the images that a run's store was made from."""

    def roll_out(store: LatentStore) -> LiveBatches:
        from ...precompute.live.batches import LiveBatches
        from ...precompute.live.world import require_noise
        from ...train.questions.readers import folder_of
        from ...train.runs.meta import read_meta

        require_noise(store.recipe, world)
        place = folder_of(questions or Path(read_meta(run).questions.path))
        given = images or _trained_images(run)
        return LiveBatches(store, given, fallback=place, size=_LIVE_BATCH, world=world, device=device)

    return roll_out


def _known_way(name: str | None) -> Any:
    """A `ShowChoices`, or None, of what was typed."""
    if name is not None and name not in get_args(ShowChoices):
        raise ConfigError(f"--show-choices must be {', '.join(get_args(ShowChoices))}, got {name!r}")
    return name


def _report(
    evaluations: list[Evaluation],
    report: Path,
    store: Path | str | None,
    images: Path | None,
    world: str | None,
    futures: Path | str | None,
    device: str | None,
    *,
    outcomes: dict[str, bool] | None = None,
    as_json: bool,
    quiet: bool,
) -> None:
    from ..progress import Progress, print_lines
    from .report_page import write_page

    page = write_page(
        evaluations,
        report,
        outcomes=outcomes,
        store=store,
        images=images or _trained_images(Path(evaluations[0].run)),
        world=world,
        futures=futures,
        device=device_name(device),
        progress=Progress.on_stderr(quiet=quiet),
    )
    print_lines(f"report: {page}", err=as_json, paths=True)


def _print_saved(evaluations: list[Evaluation], *, as_json: bool) -> None:
    """Tables of saved evaluations, those of the same questions side by side."""
    from ...train.evaluation.results.compare import compare_evaluations
    from ..progress import print_json, print_result

    if as_json:
        print_json([evaluation.model_dump(mode="json") for evaluation in evaluations])
        return
    by_questions: dict[tuple[str, str | None], list[Evaluation]] = {}
    for evaluation in evaluations:
        by_questions.setdefault((evaluation.questions_sha256, evaluation.split), []).append(evaluation)
    for group in by_questions.values():
        for table in compare_evaluations(group):
            print_result(table)


def _trained_images(run: Path) -> Path | None:
    """The folder of images that a run was trained with, if it is still there."""
    from ...train.runs.meta import read_meta

    images = read_meta(run).config.get("images")
    return Path(images) if isinstance(images, str) and Path(images).is_dir() else None

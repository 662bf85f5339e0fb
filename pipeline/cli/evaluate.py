"""`theworld evaluate`: answer the questions of a split with trained runs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...train.config import TrainConfig
from ..messages import split_names
from . import options
from .defaults import runs_or_newest
from .options import Device, Json, Quiet, device_name
from .settings import help_of

if TYPE_CHECKING:
    from ...train.evaluation.evaluate import Evaluation
    from ...train.evaluation.report import ReportExample
    from ..progress import Progress

_PAGE = "A page for reviewers"


def _page_option(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=_PAGE)


def evaluate(
    runs: options.Runs = None,
    store: options.StoreOfRun = None,
    questions: options.QuestionsOfRun = None,
    split: options.Split = "test",
    steps: options.ReadSteps = None,
    shown: Annotated[
        str | None,
        typer.Option(help="Ablations of each trained run, without training again: frozen,shuffled,noise,reversed, …"),
    ] = None,
    report: Annotated[Path | None, _page_option("Write a page with plots and examples: one HTML file.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image names of the questions are relative to; the page's pictures come from it, too. "
            "(default: as trained)"
        ),
    ] = None,
    world: Annotated[str | None, options.moved_world(_PAGE)] = None,
    batch_size: options.AnswerBatch = 64,
    generate: Annotated[
        bool,
        typer.Option("--generate/--no-generate", help="Generate answers to choices too; takes twice the time."),
    ] = True,
    max_bad: Annotated[int | None, options.left_out_option("as trained")] = None,
    futures: Annotated[
        Path | None, typer.Option(help=f"{help_of(TrainConfig, 'futures')} (default: as trained)")
    ] = None,
    outcomes: options.Outcomes = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Answer a split's questions and print accuracy by question type, runs side by side."""
    runs = runs_or_newest(runs)
    from ...train.evaluation.evaluate import compare_evaluations, evaluate_shown, require_one_file
    from ...train.study.findings import read_outcomes
    from ..progress import Progress, print_json, print_lines, print_result

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
            outcomes=rollout_outcomes,
            generate=generate,
            max_bad=max_bad,
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
    if report is not None:
        page = write_page(
            evaluations,
            report,
            store=store,
            images=images or _trained_images(Path(evaluations[0].run)),
            world=world,
            device=device_name(device),
            progress=progress,
        )
        print_lines(f"report: {page}", err=as_json, paths=True)


def _trained_images(run: Path) -> Path | None:
    """The folder of images that a run was trained with, if it is still there."""
    from ...train.runs.meta import read_meta

    images = read_meta(run).config.get("images")
    return Path(images) if isinstance(images, str) and Path(images).is_dir() else None


def write_page(
    evaluations: list[Evaluation],
    path: Path,
    *,
    store: Path | None = None,
    images: Path | None = None,
    world: str | None = None,
    device: Any,
    progress: Progress,
    **around: Any,
) -> Path:
    """The page, its examples drawn where inputs and world model are at hand.

    Args:
        around: sections before and after, as `write_run_report` takes them.
    """
    from ...precompute.preview.answer_cards import AnswerPictures
    from ...train.evaluation.report import write_run_report
    from ...train.questions.readers import folder_of
    from ...train.runs.meta import read_meta
    from ..store.folder import open_store

    place = images or folder_of(Path(evaluations[0].questions))
    drawn: dict[str, AnswerPictures] = {}  # by run: each from its own store, the same image being another future there

    def draw(example: ReportExample) -> bytes | None:
        answer, run = example.prediction, example.run.run
        if run not in drawn:
            store_read = open_store(store or Path(read_meta(Path(run)).store.path))
            drawn[run] = AnswerPictures(store_read, place, world=world, device=device)
        ranked = sorted(zip(answer.probabilities, answer.choices or (), strict=False), reverse=True)
        answers = [(choice, share) for share, choice in ranked] or [(answer.predicted, None)]
        return drawn[run].draw(answer.key, answer.image, answer.question, answers, steps=example.run.steps)

    page = write_run_report(evaluations, path, draw=draw, **around)
    for note in dict.fromkeys(note for pictures in drawn.values() for note in pictures.notes):
        progress.warn(note)
    return page

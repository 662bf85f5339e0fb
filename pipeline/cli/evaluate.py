"""`theworld evaluate`: answer the questions of a split with trained runs, or compare arms in a controlled study."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from . import options
from .options import DEFAULT_CACHE, Device, Json, Quiet, device_name

if TYPE_CHECKING:
    from ...train.evaluation.evaluate import Evaluation
    from ...train.evaluation.report import ReportExample
    from ..progress import Progress
    from ..store.latent_store import LatentStore

_PAGE = "A page for reviewers"
_STUDY = "A controlled comparison"


def _page_option(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel=_PAGE)


def _adaptive_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Steps by question")


def _study_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_STUDY)


def evaluate(
    context: typer.Context,
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders. (default: the newest under runs)")] = None,
    store: Annotated[
        Path | None, typer.Option(help="A store of the same recipe. (default: the one it was trained on)")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="Questions file. (default: the one it was trained on)")] = None,
    split: Annotated[str, typer.Option(help="Split of the questions to answer; 'all' for every split.")] = "test",
    steps: options.ReadSteps = None,
    shown: Annotated[
        str | None,
        typer.Option(help="Ablations of each trained run, without training again: frozen,shuffled,noise,reversed, …"),
    ] = None,
    report: Annotated[Path | None, _page_option("Write a page with plots and examples: one HTML file.")] = None,
    images: Annotated[
        Path | None, _page_option("Where its images are. (default: where the questions find them)")
    ] = None,
    world: Annotated[str | None, options.moved_world(_PAGE)] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images or choices in a batch; use fewer if memory is short. Changes no answer.")
    ] = 64,
    generate: Annotated[
        bool,
        typer.Option("--generate/--no-generate", help="Generate answers to choices too; takes twice the time."),
    ] = True,
    max_bad: Annotated[int | None, options.left_out_option("as trained")] = None,
    device: Device = None,
    adaptive: Annotated[
        str | None, _adaptive_option("Steps by question type, such as static=0: compare with always, never, gates.")
    ] = None,
    calibrate: Annotated[
        str | None, _adaptive_option("Split the gates are calibrated on. (default: validation, or scenes not learned)")
    ] = None,
    draws: Annotated[Path | None, _adaptive_option("Store of kind samples, for the gate on agreement.")] = None,
    arms: Annotated[
        str | None, _study_option("Train and compare these, separated by commas: text, steps0, frozen, shuffled, …")
    ] = None,
    futures: Annotated[
        Path | None, typer.Option(help="Store of encoded true futures, for the arm true. (default: as trained)")
    ] = None,
    labels: Annotated[str | None, _study_option("Labelled training scenes. (default: 1000)")] = None,
    curve: Annotated[
        str | None, _study_option("Arms trained at every label count; the others at the middle one. (default: all)")
    ] = None,
    seeds: Annotated[int | None, _study_option("Trainings of each arm and label count. (default: 5)")] = None,
    train_steps: Annotated[int | None, _study_option("Updates of each training. (default: 800)")] = None,
    outcomes: Annotated[
        Path | None, typer.Option(help="JSON of {scene: whether its rollout ends as the true scene does}.")
    ] = None,
    out: Annotated[Path | None, _study_option("Folder of the study. (default: evidence)")] = None,
    jobs: Annotated[int | None, options.jobs_option("one per core; on a GPU one", _STUDY)] = None,
    config: Annotated[Path | None, options.config_option(_STUDY)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Answer a split's questions and print accuracy by question type, runs side by side; or compare arms."""
    given = {
        name: value
        for name, value in locals().items()
        if name in ("arms", "futures", "labels", "curve", "seeds", "train_steps", "outcomes", "out", "jobs", "config")
    }
    if arms is not None:
        if runs:
            raise ConfigError("--arms trains readers of its own: leave out the run folders, or --arms")
        # every arm is asked every question, so none is left out
        _refuse(context, {*_PLAIN, *_BY_QUESTION, "max_bad"}, "--arms trains, asks and writes a page in its own way")
        _compare_arms(store, questions, steps=steps, device=device_name(device), quiet=quiet, as_json=as_json, **given)
        return
    if stray := [name for name, value in given.items() if value is not None and name not in ("futures", "outcomes")]:
        raise ConfigError(f"--{stray[0].replace('_', '-')} belongs to a comparison: add --arms text,steps0,rollout,…")
    if adaptive is not None:
        _refuse(
            context,
            {*_PLAIN - {"split", "batch_size"}, "steps", "futures", "outcomes"},
            "--adaptive chooses the steps of each question and compares nothing else",
        )
        _compare_policies(
            runs or [_newest_run()],
            adaptive,
            quiet=quiet,
            as_json=as_json,
            store=store,
            questions=questions,
            split=None if split == "all" else split,
            calibrate=calibrate,
            draws=draws,
            batch_size=batch_size,
            max_bad=max_bad,
            device=device_name(device),
        )
        return
    if calibrate is not None or draws is not None:
        raise ConfigError("--calibrate and --draws belong to a comparison of steps: add --adaptive static=0")
    from ...train.runs.meta import read_meta

    runs = runs or [_newest_run()]
    for run in runs:
        read_meta(run)  # what is no run is said before the seconds that torch and transformers take to load
    from ...train.evaluation.evaluate import compare_evaluations, evaluate_shown, require_one_file
    from ...train.study.findings import read_outcomes
    from ..progress import Progress, print_result

    progress = Progress.on_stderr(quiet=quiet)
    if questions is None and not as_json:  # a table needs the same questions
        require_one_file(runs)
    known = read_outcomes(outcomes) if outcomes is not None else None
    done = [
        evaluation
        for run in runs
        for evaluation in evaluate_shown(
            run,
            [None, *(_names(shown) if shown else ())],
            store=store,
            questions=questions,
            split=None if split == "all" else split,
            steps=steps,
            futures=futures,
            batch_size=batch_size,
            device=device_name(device),
            outcomes=known,
            generate=generate,
            max_bad=max_bad,
            progress=progress,
        )
    ]
    if as_json:
        typer.echo(json.dumps([evaluation.model_dump(mode="json") for evaluation in done], indent=2))
    else:
        for table in compare_evaluations(done):
            print_result(table)
    if split in ("train", "all") and questions is None:
        progress.warn(f"note: split {split} has questions that the runs were trained on; these figures are not a test")
    for evaluation in done:
        if not evaluation.is_swap:
            for alarm in evaluation.alarms:
                progress.warn(f"note: {evaluation.run}: {alarm}")
    if report is not None:
        page = write_page(
            done, report, store=store, images=images, world=world, device=device_name(device), progress=progress
        )
        typer.echo(f"report: {page}", err=as_json)


def write_page(
    done: list[Evaluation],
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

    place = images or folder_of(Path(done[0].questions))
    drawn: dict[str, AnswerPictures] = {}  # by run: each from its own store, the same image being another future there

    def draw(example: ReportExample) -> bytes | None:
        told, run = example.prediction, example.run.run
        if run not in drawn:
            own = open_store(store or Path(read_meta(Path(run)).store.path))
            drawn[run] = AnswerPictures(own, place, world=world, device=device)
        ranked = sorted(zip(told.probabilities, told.choices or (), strict=False), reverse=True)
        answers = [(choice, share) for share, choice in ranked] or [(told.predicted, None)]
        return drawn[run].draw(told.key, told.image, told.question, answers, steps=example.run.steps)

    page = write_run_report(done, path, draw=draw, **around)
    for note in dict.fromkeys(note for pictures in drawn.values() for note in pictures.notes):
        progress.warn(note)
    return page


_PLAIN = frozenset({"shown", "report", "images", "world", "split", "batch_size", "generate"})
_BY_QUESTION = frozenset({"adaptive", "calibrate", "draws"})


def _refuse(context: typer.Context, names: AbstractSet[str], why: str) -> None:
    """Options that were typed and would change nothing."""
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{why}: leave out --{name.replace('_', '-')}")


def _compare_policies(runs: list[Path], rule: str, *, quiet: bool, as_json: bool, **given: Any) -> None:
    from ...train.evaluation.adaptive import compare_policies
    from ...train.evaluation.gates import parse_rule
    from ..progress import Progress, print_result

    progress = Progress.on_stderr(quiet=quiet)
    found = [compare_policies(run, parse_rule(rule), progress=progress, **given) for run in runs]
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    for one in found:
        print_result(one.table())
        for note in one.notes:
            typer.echo(note, err=True)


def _compare_arms(
    store: Path | None,
    questions: Path | None,
    *,
    arms: str,
    futures: Path | None,
    labels: str | None,
    curve: str | None,
    seeds: int | None,
    train_steps: int | None,
    outcomes: Path | None,
    out: Path | None,
    jobs: int | None,
    config: Path | None,
    steps: int | None,
    device: Any,
    quiet: bool,
    as_json: bool,
) -> None:
    from ...train.config import TrainConfig
    from ...train.study.answers import Answers
    from ...train.study.examples import telling_scenes
    from ...train.study.findings import find, read_outcomes
    from ...train.study.report import write_report
    from ...train.study.run import Study, run_study
    from ..config import load_config, read_table
    from ..progress import Progress, print_result

    store = store or DEFAULT_CACHE
    written = read_table(config, "train") if config else {}
    flags = {
        "store": store,
        "questions": questions or (None if "questions" in written else own_questions(store)),
        "futures": futures,
        "steps": steps,
        "train_steps": train_steps,
        "device": None if device == "auto" else device,
    }
    study = Study(
        arms=_names(arms),
        labels=_counts(labels or "1000"),
        curve=None if curve is None else _names(curve),
        seeds=5 if seeds is None else seeds,
        settings=load_config(TrainConfig, "train", config, flags),
        out=out or Path("evidence"),
    )
    known = read_outcomes(outcomes) if outcomes is not None else None
    progress = Progress.on_stderr(quiet=quiet)
    units = run_study(study, jobs=jobs, progress=progress)
    own = _own_scenes(study.settings.questions, study.settings.store)
    if known is None and own is not None:
        known = read_outcomes(_read_rollouts(*own, study.out, progress))
    found = find(study, units, outcomes=known)
    if own is not None:
        _draw_strips(*own, telling_scenes(Answers(study, units)), study.out)
    page = write_report(found, study.out)
    if as_json:
        typer.echo(found.to_json())
        return
    for table in found.tables():
        print_result(table)
    typer.echo(f"results: {page}")


def _own_scenes(questions: Path, path: Path) -> tuple[LatentStore, Path] | None:
    """The rollouts and the folder of scenes they are of, where both come from the embedded world."""
    from ...precompute.worlds.source import resolve_world
    from ..store.folder import open_store

    if not (questions.parent / "scenes.jsonl").is_file():
        return None
    store = open_store(path)
    return (store, questions.parent) if store.recipe.world == resolve_world(None).identity else None


def _read_rollouts(store: LatentStore, scenes: Path, out: Path, progress: Any) -> Path:
    """Which rollouts end as their scenes do, found out once per study."""
    from ...precompute.worldlet.rollout_check import rollout_outcomes
    from ..files.atomic import replace

    path = out / "outcomes.json"
    if not path.exists():
        known = rollout_outcomes(store, scenes, progress=progress)
        replace(out, path, f"{json.dumps(known, indent=0)}\n".encode())
    return path


def _draw_strips(store: LatentStore, scenes: Path, told: dict[str, tuple[str, list[str]]], out: Path) -> None:
    from ...precompute.worldlet.rollout_check import draw_strips

    folder = out / "strips"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    pictures = draw_strips(store, scenes, list(told.values()))
    for name, picture in zip(told, pictures, strict=True):
        picture.save(folder / f"{name}.png")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--labels must be numbers separated by commas, such as 250,1000,4000; got {text!r}"
        ) from error


def _newest_run() -> Path:
    runs = sorted(Path("runs").glob("*/theworld.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(f"there is no run under {Path('runs').resolve()}; train one first: theworld train --cache")
    return runs[-1].parent


def own_questions(store: Path) -> Path:
    """The questions that lie beside the embedded scenes, in the cache folder that holds the store.

    Raises:
        StoreNotFoundError: there is no store either.
        ConfigError: it is of other images.
    """
    from ..store.folder import find_stores, resolve_store

    for cache in (store, store.parent):
        found = cache / "scenes" / "questions.jsonl"
        if found.is_file():
            return found
    if not find_stores(store):
        resolve_store(store)  # raises where this is none, which comes first
    raise ConfigError(
        f"which questions? {store} has no scenes of its own beside it, so name a file (`theworld questions FILE`, "
        '--questions FILE of other commands) such as FILE.jsonl, one {"image": …, "question": …, "answer": …} a line'
    )

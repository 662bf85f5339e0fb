"""The command line. Thin: parse, call one library function, print. torch and ray load only inside the commands.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 all done; 1 damage found; 2 wrong use or
configuration, nothing written; 3 finished, but more inputs failed than --max-bad allows; 10 not a store; 11 locked;
75 interrupted, the same command resumes. The commands that look after stores stand in cache_cli.py.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cache_cli import cache_app
from .errors import ConfigError, TheWorldError

if TYPE_CHECKING:
    from .latent_store import LatentStore

app = typer.Typer(
    name="theworld",
    help="Let a language model see what happens next: roll images forward once, keep the latents, train on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
worldlet_app = typer.Typer(help="The embedded miniature world.", no_args_is_help=True)
app.add_typer(worldlet_app, name="worldlet")

SHAPES_LATENT = "Decides the latents (enters the recipe)"
RUNNING = "How it runs"

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings; flags win over it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUNNING)]


def main() -> None:
    """Entry point: our errors become one message and an exit code, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn about it
    try:
        app()
    except TheWorldError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"theworld {version('theworld')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def _recipe_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=SHAPES_LATENT)


def _running_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=RUNNING)


def _study_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="A controlled comparison")


@app.command()
def precompute(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, image, quoted glob; list (.jsonl .csv .json .parquet), tars, save_to_disk folder, or "
            "hf:ORG/NAME. Left out: scenes of the worldlet."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        _recipe_option(
            "rollout: images and their predicted future. samples: several futures. continuation: videos and their "
            "future. frames: real videos, encoded. views: crops of images. posterior: mean and log-variance of images. "
            "(default: rollout)"
        ),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of stores. (default: latents)")] = None,
    steps: Annotated[
        int | None,
        _recipe_option("Future latent frames per image; T = 1 + steps. (default: 8; 13 views)"),
    ] = None,
    world: Annotated[
        str | None, _recipe_option("World model: a Hub id or a folder. (default: the embedded worldlet)")
    ] = None,
    size: Annotated[str | None, _recipe_option("HEIGHTxWIDTH in pixels. (default: the world model's)")] = None,
    fit: Annotated[str | None, _recipe_option("cover, pad or stretch. (default: cover)")] = None,
    stride: Annotated[int | None, _recipe_option("Keep every stride-th latent frame. (default: 1)")] = None,
    denoise_steps: Annotated[int | None, _recipe_option("Diffusion steps. (default: the world model's)")] = None,
    solver: Annotated[str | None, _recipe_option("euler, or 2ab, of second order. (default: euler)")] = None,
    guidance: Annotated[float | None, _recipe_option("Classifier-free guidance; 1 is off. (default: 1)")] = None,
    prompt: Annotated[str | None, _recipe_option("Text that conditions the rollout; needs --guardrail.")] = None,
    negative_prompt: Annotated[str | None, _recipe_option("Text to steer away from, with guidance.")] = None,
    seed: Annotated[int | None, _recipe_option("Seed of the noise. (default: 0)")] = None,
    draws: Annotated[int | None, _recipe_option("Futures of kind samples, --steps each. (default: 4)")] = None,
    observed_frames: Annotated[
        int | None, _recipe_option("Video frames that kind continuation is shown. (default: 5)")
    ] = None,
    views: Annotated[str | None, _recipe_option("Of kind views: pyramid or zoom. (default: pyramid)")] = None,
    chunk_context: Annotated[
        int | None,
        _recipe_option("Go beyond the world model's window in chunks that begin with so many decoded frames: 1 or 5."),
    ] = None,
    compute_dtype: Annotated[
        str | None, _recipe_option("float32 or bfloat16, of the transformer. (default: the world model's)")
    ] = None,
    dtype: Annotated[
        str | None, _recipe_option("float16, bfloat16 or float32, of the store. (default: float16)")
    ] = None,
    guardrail: Annotated[str | None, _running_option("Who checks a prompt: cosmos or external.")] = None,
    column: Annotated[
        str | None, _running_option("Column of a list or table with the inputs. (default: image, video, path, …)")
    ] = None,
    prompt_field: Annotated[str | None, _recipe_option("Column of a list with a prompt for each input.")] = None,
    limit: Annotated[int | None, _running_option("Only the first so many inputs.")] = None,
    rehash: Annotated[bool | None, _running_option("Read all inputs again to know them.", "--rehash")] = None,
    scenes: Annotated[int | None, _running_option("Scenes to make where no images are given. (default: 900)")] = None,
    device: Device = None,
    workers: Annotated[int | None, _running_option("Ray actors. (default: one per GPU, or per core)")] = None,
    batch_size: Annotated[int | None, _running_option("Images rolled out together. (default: 8, on a GPU 16)")] = None,
    format: Annotated[str | None, _running_option("zarr or webdataset, of a new store. (default: zarr)")] = None,
    shard_size: Annotated[
        int | None, _running_option("Samples per shard of a new store. (default: 16 to 256, by the work)")
    ] = None,
    in_process: Annotated[bool | None, _running_option("One worker, here, without Ray.", "--in-process")] = None,
    retry_failed: Annotated[bool | None, _running_option("Try again what failed before.", "--retry-failed")] = None,
    max_bad: Annotated[
        int | None, _running_option("Inputs that may fail before the exit code is 3. (default: 0)")
    ] = None,
    dry_run: Annotated[bool | None, _running_option("Print the plan and stop; writes nothing.", "--dry-run")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Roll each image forward once, or encode real videos, and keep the latents."""
    from ..precompute.config import PrecomputeConfig
    from ..precompute.job import run_precompute
    from .config import load_config
    from .progress import Progress

    flags = {name: value for name, value in locals().items() if name in PrecomputeConfig.model_fields}
    settings = load_config(PrecomputeConfig, "precompute", config, flags)
    report = run_precompute(settings, progress=Progress.on_stderr())
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else report.summary())
    if report.bad > settings.max_bad:
        raise typer.Exit(3)


@app.command()
def train(
    store: Annotated[
        Path | None, typer.Argument(help="A store, or a cache folder with one store in it. (default: latents)")
    ] = None,
    cache: Annotated[  # `train --cache`, `train --cache PATH` and `train PATH` all work: the flag says what is so
        bool, typer.Option("--cache", help="Train from latents on disk (the default).")
    ] = True,
    questions: Annotated[
        Path | None, typer.Option(help="JSONL of questions. (default: those of the cache's own scenes)")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Language model: a Hub id or a folder. (default: embedded)")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps to read. (default: all the store has)")] = None,
    layout: Annotated[str | None, typer.Option(help="World tokens: patch or spatial. (default: patch)")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: the next number under runs)")] = None,
    train_steps: Annotated[int | None, _running_option("Updates.")] = None,
    batch_size: Annotated[int | None, _running_option("Images per update, each with its questions.")] = None,
    learning_rate: Annotated[float | None, _running_option("Peak learning rate.")] = None,
    lora_rank: Annotated[int | None, _running_option("Rank of the LoRA adapters.")] = None,
    seed: Annotated[int | None, _running_option("Seed of weights and order.")] = None,
    device: Device = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Train temporal embeddings, projector and LoRA on a frozen language model, from a store."""
    del cache
    from ..train.config import TrainConfig
    from ..train.trainer import train as run_training
    from .config import load_config, read_table
    from .progress import Progress

    flags = {name: value for name, value in locals().items() if name in TrainConfig.model_fields}
    written = read_table(config, "train") if config else {}
    if store is None and "store" not in written:
        flags["store"] = Path("latents")
    if questions is None and "questions" not in written:
        flags["questions"] = _own_questions(Path(flags["store"] or written["store"]))
    summary = run_training(load_config(TrainConfig, "train", config, flags), progress=Progress.on_stderr())
    typer.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.summary())


def _own_questions(store: Path) -> Path:
    """The questions that lie beside the embedded scenes, in the cache folder that holds the store."""
    for cache in (store, store.parent):
        found = cache / "scenes" / "questions.jsonl"
        if found.is_file():
            return found
    raise ConfigError(
        f"which questions? {store} has no scenes of its own beside it, so name a file: "
        'theworld train --questions FILE.jsonl, one {"image": …, "question": …, "answer": …} a line'
    )


@app.command()
def evaluate(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders. (default: the newest under runs)")] = None,
    store: Annotated[Path | None, typer.Option(help="Another store of the same recipe.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Another questions file.")] = None,
    split: Annotated[str, typer.Option(help="Which split to ask; 'all' asks everything.")] = "test",
    steps: Annotated[int | None, typer.Option(help="Rollout steps to read. (default: as trained)")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    arms: Annotated[
        str | None, _study_option("Train and compare these, separated by commas: text, steps0, frozen, shuffled, …")
    ] = None,
    futures: Annotated[Path | None, _study_option("Store of the encoded true futures, for the arm true.")] = None,
    labels: Annotated[str | None, _study_option("Labelled training scenes. (default: 1000)")] = None,
    curve: Annotated[
        str | None, _study_option("Arms trained at every label count; the others at the middle one. (default: all)")
    ] = None,
    seeds: Annotated[int | None, _study_option("Trainings of each arm and label count. (default: 5)")] = None,
    train_steps: Annotated[int | None, _study_option("Updates of each training. (default: 800)")] = None,
    outcomes: Annotated[
        Path | None, _study_option("JSON of {scene: whether its rollout ends as the scene truly does}.")
    ] = None,
    out: Annotated[Path | None, _study_option("Folder of the study. (default: evidence)")] = None,
    jobs: Annotated[int | None, _study_option("Processes, of one thread each. (default: one a core)")] = None,
    config: Annotated[Path | None, _study_option("TOML file: its [train] is every arm's.", "--config")] = None,
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
        _compare_arms(store, questions, steps=steps, device=_device(device), as_json=as_json, **given)
        return
    if stray := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"--{stray[0].replace('_', '-')} belongs to a comparison: add --arms text,steps0,rollout,…")
    from rich.console import Console

    from ..train.evaluate import compare
    from ..train.evaluate import evaluate as run_evaluation
    from .progress import Progress

    folders = runs or [_newest_run()]
    done = [
        run_evaluation(
            run,
            store=store,
            questions=questions,
            split=None if split == "all" else split,
            steps=steps,
            device=_device(device),
            progress=Progress.on_stderr(),
        )
        for run in folders
    ]
    if as_json:
        typer.echo(json.dumps([evaluation.model_dump(mode="json") for evaluation in done], indent=2))
        return
    Console().print(done[0].table() if len(done) == 1 else compare(folders))


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
    as_json: bool,
) -> None:
    from rich.console import Console

    from ..train.config import TrainConfig
    from ..train.evidence import Study, run_study
    from ..train.findings import find, read_outcomes
    from ..train.report import write_report
    from ..train.tally import Answers
    from ..train.telling import telling_scenes
    from .config import load_config, read_table
    from .progress import Progress

    store = store or Path("latents")
    written = read_table(config, "train") if config else {}
    flags = {
        "store": store,
        "questions": questions or (None if "questions" in written else _own_questions(store)),
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
    progress = Progress.on_stderr()
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
        Console().print(table)
    typer.echo(f"results: {page}")


def _own_scenes(questions: Path, path: Path) -> tuple[LatentStore, Path] | None:
    """The rollouts and the folder of scenes they are of, where both come from the embedded world."""
    from ..precompute.world import resolve_world
    from .store import open_store

    if not (questions.parent / "scenes.jsonl").is_file():
        return None
    store = open_store(path)
    return (store, questions.parent) if store.recipe.world == resolve_world(None).identity else None


def _read_rollouts(store: LatentStore, scenes: Path, out: Path, progress: Any) -> Path:
    """Which rollouts end as their scenes do, found out once per study."""
    from ..precompute.worldlet.witness import rollout_outcomes
    from .commit import replace

    path = out / "outcomes.json"
    if not path.exists():
        known = rollout_outcomes(store, scenes, progress=progress)
        replace(out, path, f"{json.dumps(known, indent=0)}\n".encode())
    return path


def _draw_strips(store: LatentStore, scenes: Path, told: dict[str, tuple[str, list[str]]], out: Path) -> None:
    from ..precompute.worldlet.witness import draw_strips

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


@app.command()
def ask(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    image: Annotated[Path, typer.Argument(help="Image file; a video where the run read encoded videos.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    choices: Annotated[str | None, typer.Option(help="Answers to choose from, separated by commas.")] = None,
    steps: Annotated[int | None, typer.Option(help="Rollout steps to read. (default: as trained)")] = None,
    world: Annotated[str | None, typer.Option(help="Folder of the run's world model, if it has moved.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Save image, rollout and answer as a PNG.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Roll one image forward on the spot and answer a question about it."""
    from ..precompute.live import LiveWorld
    from ..train.checkpoint import load_run
    from ..train.evaluate import ask as run_ask

    loaded = load_run(run, device=_device(device))
    live = LiveWorld.for_recipe(loaded.meta.recipe, world=world, device=_device(device))
    latents = live.roll_out(image)
    wanted = [choice.strip() for choice in choices.split(",")] if choices else None
    answer = run_ask(loaded, latents, question, wanted, steps=steps)
    if preview is not None:
        told = [(r.choice, r.probability) for r in answer.ranked] or [(answer.text, None)]
        live.save_answer(image, latents, question, told, preview)
    if as_json:
        ranked = [{"choice": r.choice, "probability": r.probability} for r in answer.ranked]
        typer.echo(json.dumps({"answer": answer.text, "ranked": ranked}, indent=2))
        return
    typer.echo(answer.text)
    for ranked in answer.ranked:
        typer.echo(f"  {ranked.probability:6.1%}  {ranked.choice}", err=True)


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {name}")
    return name


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for pictures, questions and futures.")],
    train: Annotated[int, typer.Option(help="Scenes with labels to learn from.")] = 1000,
    validation: Annotated[int, typer.Option(help="Scenes to choose settings by.")] = 0,
    test: Annotated[int, typer.Option(help="Scenes to be asked about.")] = 2000,
    ood: Annotated[int, typer.Option(help="Out of distribution: more ramps, unseen colors, taller towers.")] = 0,
    families: Annotated[str, typer.Option(help="Which, separated by commas.")] = "buckets,race,tower,contact",
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
    videos: Annotated[bool, typer.Option("--videos", help="Also write the true futures, lossless MP4.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes. (default: one per core)")] = None,
) -> None:
    """Write the benchmark's scenes: pictures at rest, questions about what happens next, and about what is there."""
    from ..precompute.worldlet.scene_files import write_scenes

    counts = {"train": train, "validation": validation, "test": test, "ood": ood}
    path = write_scenes(
        out,
        splits={split: count for split, count in counts.items() if count},
        seed=seed,
        families=[name.strip() for name in families.split(",")],
        videos=videos,
        jobs=jobs or os.cpu_count() or 1,
    )
    typer.echo(f"{sum(counts.values())} scenes; their questions: {path}")


@worldlet_app.command("build")
def worldlet_build(
    out: Annotated[Path, typer.Argument(help="Folder for the new weights: OUT/world and OUT/lm.")],
    world_minutes: Annotated[float, typer.Option(help="CPU minutes for the VAE and the transformer.")] = 60.0,
    lm_minutes: Annotated[float, typer.Option(help="CPU minutes for the language model.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of scenes and weights.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Go on from a trained world, not from nothing.")] = None,
) -> None:
    """Train the miniature world model and its small Gemma again. A second call goes on where the first was cut."""
    from ..precompute.worldlet.build import build_world
    from ..train.worldlet.build import build_lm

    build_world(out / "world", minutes=world_minutes, seed=seed, start=start)
    build_lm(out / "lm", minutes=lm_minutes, seed=seed)
    typer.echo(f"use them: theworld precompute --world {out / 'world'}; theworld train --lm {out / 'lm'}")


if __name__ == "__main__":
    main()

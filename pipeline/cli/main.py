"""The command line. Thin: parse, call one library function, print. torch and ray load only inside the commands.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 all done; 1 damage found; 2 wrong use or
configuration, nothing written; 3 finished, but more inputs failed than --max-bad allows; 10 not a store; 11 locked;
75 interrupted, run the same command again to resume.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from ...train.config import TrainConfig
from ..errors import ConfigError, TheWorldError
from ..machine import usable_cores
from . import options
from .cache import cache_app
from .demo import demo
from .evaluate import evaluate, own_questions
from .hub import pull, push
from .options import RUNNING, ConfigFile, Device, Json, Quiet
from .questions import questions as look_at_questions
from .settings import settings_of
from .tokens import tokens

app = options.Commands(
    name="theworld",
    help="Let a language model see what happens next: roll images forward once, keep the latents, train on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
worldlet_app = options.Commands(help="The embedded miniature world.", no_args_is_help=True)
app.add_typer(worldlet_app, name="worldlet")


_OF_THE_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
}
"""What an OSError says of where a user wants something; of others, a traceback says more."""


def main() -> None:
    """Entry point: our errors, and those of places that cannot be written, become one message and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn about it
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="surrogateescape")  # a path that is not UTF-8 goes out as it came in
    try:
        app()
    except TheWorldError as error:
        from ..progress import print_error

        print_error(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_PLACE or error.filename is None:
            raise
        from ..progress import print_error

        print_error(
            f"error: {error.filename} cannot be used: {error.strerror}. Name another place, or see to it that this one "
            "may be written and has room"
        )
        sys.exit(2)


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


def _running_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=RUNNING)


@app.command()
def precompute(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, image, quoted glob; list (.jsonl .csv .json .parquet), tars, save_to_disk folder, or "
            "hf:ORG/NAME. Left out: scenes of the worldlet."
        ),
    ] = None,
    kind: options.Kind = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of stores. (default: latents)")] = None,
    steps: options.Steps = None,
    world: options.World = None,
    size: options.Size = None,
    fit: options.Fit = None,
    stride: options.Stride = None,
    denoise_steps: options.DenoiseSteps = None,
    solver: options.Solver = None,
    guidance: options.Guidance = None,
    prompt: options.Prompt = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.NoiseSeed = None,
    draws: options.Draws = None,
    observed_frames: options.ObservedFrames = None,
    views: options.Views = None,
    chunk_context: options.ChunkContext = None,
    compute_dtype: options.ComputeDtype = None,
    dtype: options.StoredDtype = None,
    guardrail: Annotated[str | None, _running_option("Who checks a prompt: cosmos or external.")] = None,
    column: Annotated[
        str | None, _running_option("Column of a list or table with the inputs. (default: image, video, path, …)")
    ] = None,
    prompt_field: options.PromptField = None,
    limit: Annotated[int | None, _running_option("Use only this many inputs, the first ones. (default: all)")] = None,
    rehash: Annotated[
        bool | None, _running_option("Read and hash every input again; ignore the cache's index.", "--rehash")
    ] = None,
    scenes: Annotated[int | None, _running_option("Scenes to make if no images are given. (default: 900)")] = None,
    device: Annotated[str | None, options.device_option(RUNNING)] = None,
    workers: Annotated[int | None, _running_option("Ray actors. (default: one per GPU, or per core)")] = None,
    batch_size: Annotated[int | None, _running_option("Images rolled out together. (default: 8, on a GPU 16)")] = None,
    format: Annotated[str | None, _running_option("zarr or webdataset, of a new store. (default: zarr)")] = None,
    shard_size: Annotated[
        int | None, _running_option("Samples per shard of a new store. (default: 16 to 256, by the work)")
    ] = None,
    in_process: Annotated[bool | None, _running_option("One worker here, without Ray.", "--in-process")] = None,
    address: Annotated[
        str | None, _running_option("HOST:PORT of a Ray cluster to join; it must require a token.")
    ] = None,
    events: Annotated[Path | None, _running_option("Append one JSON line per event to this file.")] = None,
    retry_failed: Annotated[bool | None, _running_option("Try failed inputs again.", "--retry-failed")] = None,
    max_bad: Annotated[
        int | None, _running_option("Inputs that may fail before the exit code is 3. (default: 0)")
    ] = None,
    dry_run: Annotated[bool | None, _running_option("Print the plan and stop; writes nothing.", "--dry-run")] = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Roll each image forward once, or encode real videos, and keep the latents."""
    from ...precompute.job.config import PrecomputeConfig
    from ...precompute.job.run import run_precompute
    from ..config import load_config
    from ..progress import Progress

    flags = {name: value for name, value in locals().items() if name in PrecomputeConfig.model_fields}
    settings = load_config(PrecomputeConfig, "precompute", config, flags)
    # the plan is what a dry run is for
    report = run_precompute(settings, progress=Progress.on_stderr(quiet=quiet and not settings.dry_run))
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else report.summary())
    if report.bad > settings.max_bad:
        raise typer.Exit(3)


@app.command()
def worlds(as_json: Json = False) -> None:
    """List the world models that --world takes by name, and whose folders and Hub ids it takes."""
    from ...precompute.worlds.registry import list_worlds, table_of
    from ..progress import print_result

    rows = list_worlds()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    print_result(table_of(rows))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at this machine: versions, GPU, memory, disk, Hub, sockets. Exits with 2 where most commands would fail."""
    from ..progress import print_result
    from .doctor import examine, table_of, to_json

    rows = examine()
    if as_json:
        typer.echo(json.dumps(to_json(rows), indent=2))
    else:
        print_result(table_of(rows))
    if any(row.state == "problem" for row in rows):
        raise typer.Exit(2)


@app.command()
@settings_of(
    TrainConfig,
    *("epochs", "warmup", "max_grad_norm", "lora_alpha", "lora_dropout", "dtype", "pack", "labels"),
    *("max_world_steps", "max_bad_steps"),
)
def train(
    store: Annotated[
        Path | None,
        typer.Argument(
            help="A store, or a cache folder with one store in it. (default: latents) With --resume also the run to "
            "go on with."
        ),
    ] = None,
    cache: Annotated[  # `train --cache`, `train --cache PATH` and `train PATH` all work: the flag says what is so
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Read latents from disk (the default); or roll out again in every epoch, which is slow, to compare.",
        ),
    ] = True,
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions file: JSONL, LLaVA, … (default: the cache's own)"),
    ] = None,
    columns: options.Columns = None,
    max_bad: Annotated[int | None, options.left_out_option("0", RUNNING)] = None,
    lm: options.LanguageModel = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Rollout steps to read; of several (0,8) one in each update. (default: all the store has)"),
    ] = None,
    layout: options.Layout = None,
    patch: options.Patch = None,
    pool: options.Pool = None,
    pool_steps: options.PoolSteps = None,
    coarse: options.Coarse = None,
    queries: options.Queries = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. (default: the next number under runs)")] = None,
    train_steps: Annotated[
        int | None, _running_option("Updates to train for. (default: 800)", "--train-steps", "--max-steps")
    ] = None,
    batch_size: Annotated[
        int | None, _running_option("Images per update, each with its questions. (default: 8)")
    ] = None,
    learning_rate: Annotated[
        float | None, _running_option("Peak learning rate. (default: 0.002)", "--learning-rate", "--lr")
    ] = None,
    micro_batch: Annotated[
        int | None, _running_option("Images per pass, if an update does not fit in memory. (default: all)")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, _running_option("Recompute activations: less memory, more time.", "--gradient-checkpointing")
    ] = None,
    attention: Annotated[
        str | None, _running_option("auto, eager, sdpa, flex_attention or flash_attention_2. (default: auto)")
    ] = None,
    validate_every: Annotated[
        int | None,
        _running_option("Updates between validations; the run keeps the best weights. (default: never)"),
    ] = None,
    patience: Annotated[
        int | None, _running_option("Validations without a better loss before training stops. (default: never)")
    ] = None,
    resume: Annotated[
        bool, _running_option("Resume a training: that of STORE or --out, or the only one in runs.", "--resume")
    ] = False,
    checkpoint_every: Annotated[
        int | None, _running_option("Updates between checkpoints. (default: by the minutes alone)")
    ] = None,
    checkpoint_minutes: Annotated[float | None, _running_option("Minutes between checkpoints. (default: 5)")] = None,
    report_to: Annotated[str | None, _running_option("tensorboard, wandb or trackio. (default: none)")] = None,
    lora_rank: Annotated[int | None, _running_option("Rank of the LoRA adapters. (default: 16)")] = None,
    seed: Annotated[int | None, _running_option("Seed of weights and order. (default: 0)")] = None,
    device: Annotated[str | None, options.device_option(RUNNING)] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="For --no-cache: what the store was made from. (default: the cache's own scenes, else beside the "
            "questions)"
        ),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(help="For --no-cache: the world model's folder or Hub id. (default: where the recipe says)"),
    ] = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Train temporal embeddings, projector and LoRA on a frozen language model, from a store."""
    from ...train.runs.partial import find_partial, is_partial, resumed_config
    from ...train.training.signals import Stop
    from ..config import load_config, read_table
    from ..progress import Progress
    from ..store.folder import open_store, resolve_store

    flags = {name: value for name, value in locals().items() if name in TrainConfig.model_fields} | typed
    written = read_table(config, "train") if config else {}
    unfinished = None
    if resume:
        if store is not None and is_partial(store):
            out, flags["store"] = store, None
        unfinished = find_partial(out or (Path(written["out"]) if "out" in written else None))
        settings = resumed_config(unfinished, {**written, **{k: v for k, v in flags.items() if v is not None}})
    else:
        if store is None and "store" not in written:
            flags["store"] = options.DEFAULT_CACHE
        if questions is None and "questions" not in written:
            flags["questions"] = own_questions(Path(flags["store"] or written["store"]))
        settings = load_config(TrainConfig, "train", config, flags)
    if cache and (images is not None or world is not None):
        raise ConfigError("--images and --world belong to --no-cache: the store's latents need neither")
    resolve_store(settings.store)  # said before the seconds that torch and transformers take to load
    live = None
    if not cache:
        from ...precompute.live.batches import LiveBatches

        live = LiveBatches(
            open_store(settings.store),
            images,
            fallback=settings.questions.parent,
            size=settings.batch_size,
            world=world,
            device=settings.device,
        )
    from ...train.training.distributed import Ranks
    from ...train.training.train import train as run_training

    with Stop().on_signals() as stop:
        progress = Progress.on_stderr(quiet=quiet)
        summary = run_training(settings, resume=unfinished, progress=progress, stop=stop, live=live)
    if Ranks.here().is_first:
        typer.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.summary())


app.command()(evaluate)
app.command()(demo)
app.command()(push)
app.command()(pull)
app.command()(tokens)
app.command(name="questions")(look_at_questions)


@app.command()
def ask(
    run: options.RunFolder,
    image: Annotated[Path, typer.Argument(help="Image file; a video where the run read encoded videos.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    choices: Annotated[
        str | None, typer.Option(help="Answers to choose from, separated by commas. (default: generate one)")
    ] = None,
    steps: options.ReadSteps = None,
    adaptive: Annotated[
        str | None,
        typer.Option(help="Choose the rollout steps: 'gate', learned with the run; or a rule, static=0, with --type."),
    ] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Type of the question, for a rule of --adaptive.")] = None,
    world: options.MovedWorld = None,
    preview: Annotated[Path | None, typer.Option(help="Save image, rollout and answer as a PNG.")] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Roll one image forward on the spot and answer a question about it."""
    from ...train.runs.meta import read_meta

    read_meta(run)  # what is no run is said before the seconds that torch and transformers take to load
    from ...precompute.live.world import LazyRollout
    from ...train.evaluation.live_answer import answer_live
    from ...train.runs.folder import load_run

    where = options.device_name(device)
    loaded = load_run(run, device=where)
    sight = LazyRollout(loaded.meta.recipe, image, world=world, device=where)
    wanted = [choice.strip() for choice in choices.split(",")] if choices else None
    done = answer_live(loaded, sight.see, question, wanted, steps=steps, adaptive=adaptive, type=kind, image=image)
    answer = done.answer
    if preview is not None:
        told = [(r.choice, r.probability) for r in answer.ranked] or [(answer.text, None)]
        from ...precompute.preview.answer_cards import save_answer

        save_answer(sight.viewer, image, done.latents, question, told, preview)
    if as_json:
        ranked = [{"choice": r.choice, "probability": r.probability} for r in answer.ranked]
        found = {"answer": answer.text, "ranked": ranked, "steps": done.steps, "why": done.why}
        typer.echo(json.dumps(found, indent=2))
        return
    if not quiet:
        if done.why is not None:
            typer.echo(f"rollout steps read: {done.steps}, for {done.why}", err=True)
        if sys.stderr.isatty():
            sight.viewer.show(done.latents, sys.stderr)
    typer.echo(answer.text)
    if quiet:
        return
    for ranked in answer.ranked:
        typer.echo(f"  {ranked.probability:6.1%}  {ranked.choice}", err=True)
    seen = f"saved as {preview}" if preview is not None else "add --preview FILE.png to see it"
    typer.echo(f"image, rollout and answer: {seen}", err=True)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for pictures, questions and futures.")],
    train: Annotated[int, typer.Option(help="Training scenes.")] = 1000,
    validation: Annotated[int, typer.Option(help="Validation scenes.")] = 0,
    test: Annotated[int, typer.Option(help="Test scenes.")] = 2000,
    ood: Annotated[int, typer.Option(help="Out of distribution: more ramps, unseen colors, taller towers.")] = 0,
    families: Annotated[str, typer.Option(help="Families, separated by commas.")] = "buckets,race,tower,contact",
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    videos: Annotated[bool, typer.Option("--videos", help="Also write the true futures, lossless MP4.")] = False,
    jobs: Annotated[int | None, options.jobs_option("one per core")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the benchmark's scenes: pictures at rest, questions about what happens next, and about what is there."""
    from ...precompute.worldlet.scenes.files import write_scenes
    from ..progress import Progress

    counts = {"train": train, "validation": validation, "test": test, "ood": ood}
    path = write_scenes(
        out,
        splits={split: count for split, count in counts.items() if count},
        seed=seed,
        families=[name.strip() for name in families.split(",")],
        videos=videos,
        jobs=jobs or usable_cores(),
        progress=Progress.on_stderr(quiet=quiet),
    )
    told = {"questions": str(path), "scenes": counts}
    typer.echo(json.dumps(told, indent=2) if as_json else f"{sum(counts.values())} scenes; their questions: {path}")


@worldlet_app.command("build")
def worldlet_build(
    out: Annotated[Path, typer.Argument(help="Folder for the new weights: OUT/world and OUT/lm.")],
    world_minutes: Annotated[float, typer.Option(help="CPU minutes for the VAE and the transformer.")] = 60.0,
    lm_minutes: Annotated[float, typer.Option(help="CPU minutes for the language model.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of scenes and weights.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Start from the weights of a trained world.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the miniature world model and its small Gemma again. A second call goes on where the first was cut."""
    from ...precompute.worldlet.training.build import build_world
    from ...train.worldlet.build import build_lm

    if not quiet:
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("theworld").setLevel(logging.INFO)
    build_world(out / "world", minutes=world_minutes, seed=seed, start=start)
    build_lm(out / "lm", minutes=lm_minutes, seed=seed)
    told = {"world": str(out / "world"), "lm": str(out / "lm")}
    world, lm = quote(told["world"]), quote(told["lm"])
    use = f"use them: theworld precompute --world {world}; theworld train --lm {lm}"
    typer.echo(json.dumps(told, indent=2) if as_json else use)


if __name__ == "__main__":
    main()

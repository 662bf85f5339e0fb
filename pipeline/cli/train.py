"""`theworld train`: train a reader of latents from a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...train.config import TrainConfig
from ..config import HOW_IT_RUNS
from ..errors import ConfigError
from .defaults import with_own_places
from .early import require_file
from .options import ConfigFile, Json, Quiet
from .settings import settings_of


@settings_of(TrainConfig)
def train(
    cache: Annotated[  # `train --cache`, `train --cache PATH` and `train PATH` all work: the flag says what is so
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Read latents from disk (the default), or roll out again in every epoch: slow, only to compare.",
        ),
    ] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume a training: the run named as STORE or by --out, or the only unfinished one in runs.",
            rich_help_panel=HOW_IT_RUNS,
        ),
    ] = False,
    world: Annotated[
        str | None,
        typer.Option(help="For --no-cache: the world model's folder or Hub id. (default: where the recipe says)"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything except the weights, print the memory estimate, and stop."),
    ] = False,
    config: ConfigFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Train an adapter (temporal embedding, projector, LoRA) for a frozen language model, on the latents of a store."""
    from ...train.training.signals import Stop
    from ..progress import Progress, print_json, print_lines
    from ..store.folder import open_store, resolve_place

    settings, partial = _settings(config, typed, resume=resume)
    if cache and world is not None:
        raise ConfigError("--world belongs to --no-cache: the store's latents need none")
    resolve_place(settings.store)  # said before the seconds that torch and transformers take to load
    require_file(settings.questions, "questions")
    if dry_run:
        from ...train.training.train import plan

        planned = plan(settings, progress=Progress.on_stderr(quiet=quiet))
        if as_json:
            print_json(planned.to_json())
        else:
            print_lines(*planned.lines())
        return
    with Stop().on_signals() as stop:  # before torch is imported, which takes seconds
        live = None
        if not cache:
            from ...precompute.live.batches import LiveBatches

            live = LiveBatches(
                open_store(settings.store),
                settings.images,
                fallback=settings.questions.parent,
                size=settings.batch_size,
                world=world,
                device=settings.device,
            )
        from ...train.training.distributed import Ranks
        from ...train.training.train import train as run_training

        progress = Progress.on_stderr(quiet=quiet)
        summary = run_training(settings, resume=partial, progress=progress, stop=stop, live=live)
    if Ranks.here().is_first:
        if as_json:
            print_json(summary.to_json())
        else:
            print_lines(*summary.summary().split("\n"), paths=True)


def _settings(config: Path | None, typed: dict[str, Any], *, resume: bool) -> tuple[TrainConfig, Path | None]:
    """What was typed over what the file says, and the training to resume."""
    from ...train.runs.partial import find_partial, is_partial, resumed_config
    from ..config import load_config, read_table

    table = read_table(config, "train") if config else {}
    if resume:
        flags = dict(typed)
        if flags["store"] is not None and is_partial(Path(flags["store"])):
            flags["out"], flags["store"] = Path(flags["store"]), None
        partial = find_partial(flags["out"])
        return resumed_config(partial, {**table, **{k: v for k, v in flags.items() if v is not None}}), partial
    return load_config(TrainConfig, "train", config, with_own_places(typed, table)), None

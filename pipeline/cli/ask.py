"""`theworld ask`: one question about one image, rolled forward on the spot."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...train.config import AnswerConfig
from ..config import load_config
from ..errors import ConfigError
from ..messages import split_names
from . import options
from .early import require_file
from .loading import no_garbage
from .options import Device, Json, Quiet
from .settings import settings_of


@settings_of(AnswerConfig)
def ask(
    run: options.RunFolder,
    image: Annotated[Path, typer.Argument(help="Image file, or a video if the run was trained on encoded videos.")],
    question: Annotated[str, typer.Argument(help="Question about the image.")],
    choices: Annotated[
        str | None, typer.Option(help="Answers to choose from, separated by commas. (default: generate one)")
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", help="One answer to choose from; it may contain commas. Can be repeated."),
    ] = None,
    steps: options.ReadSteps = None,
    adaptive: Annotated[
        str | None,
        typer.Option(
            help="How many rollout steps to read: 'gate' (made by `policies`), or a rule, static=0, with --type."
        ),
    ] = None,
    draws: options.Draws = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Type of the question; a rule of --adaptive needs it.")
    ] = None,
    lm: options.MovedLm = None,
    world: options.MovedWorld = None,
    preview: Annotated[Path | None, typer.Option(help="Save image, rollout and answer as a PNG.")] = None,
    device: Device = None,
    memory: options.Memory = None,
    quiet: Quiet = False,
    as_json: Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Predict the future of one image now, and answer a question about it."""
    from ...train.runs.meta import read_meta

    offered = [*(split_names(choices, "--choices", example="left,right") if choices else ()), *(choice or ())]
    writing = load_config(AnswerConfig, "answer", None, typed)
    read_meta(run)  # what is no run is said before the seconds that torch and transformers take to load
    from ..progress import Progress, print_json, print_lines

    progress, where = Progress.on_stderr(quiet=quiet), options.device_name(device)
    require_file(image, "image")
    progress.say(f"loading {run} …")
    with no_garbage():
        from ...precompute.live.world import LazyRollout
        from ...train.evaluation.draws import ask_draws
        from ...train.evaluation.live_answer import LiveAnswer, answer_live
        from ...train.runs.folder import load_run
        from ...train.runs.sizes import one_answer
        from ..device_memory import GIB

        loaded = load_run(run, lm=lm, device=where, memory=memory, progress=progress)
    left = None if memory is None or loaded.sizes is None else memory - one_answer(loaded.sizes).total / GIB
    rollout = LazyRollout(loaded.meta.recipe, image, world=world, device=where, memory=left, progress=progress)
    if preview is not None:
        rollout.require_pictures()
    facts: dict[str, Any] = {}
    if draws is not None and (adaptive is not None or kind is not None):
        raise ConfigError("--draws rolls several futures out, --adaptive decides whether to roll out: choose one")
    how: dict[str, Any] = {"steps": steps, "image": image, "writing": writing, "progress": progress}
    if draws is None:
        with no_garbage():  # the world model and its libraries load when they are first wanted
            live = answer_live(loaded, rollout.see, question, offered or None, adaptive=adaptive, type=kind, **how)
    else:
        rollout.require_draws()
        started = time.perf_counter()
        drawn = ask_draws(loaded, rollout.see_draw, question, offered or None, draws=draws, **how)
        live = LiveAnswer(drawn.answer, drawn.steps, None, drawn.latents)
        facts = {"draws": draws, "agreement": drawn.agreement, "own_answers": list(drawn.own_answers)}
        facts["seconds"] = round(time.perf_counter() - started, 3)
    answer = live.answer
    if preview is not None:
        from ...precompute.preview.answer_cards import save_answer

        answers = [(r.choice, r.probability) for r in answer.ranked] or [(answer.text, None)]
        save_answer(rollout.viewer, image, live.latents, question, answers, preview)
    if as_json:
        ranked = [{"choice": r.choice, "probability": r.probability} for r in answer.ranked]
        print_json({"answer": answer.text, "ranked": ranked, "steps": live.steps, "why": live.why, **facts})
        return
    if live.why is not None:
        progress.say(f"rollout steps read: {live.steps}, for {live.why}")
    if not quiet and sys.stderr.isatty():
        rollout.viewer.show(live.latents, sys.stderr)
    print_lines(answer.text)
    for ranked in answer.ranked:
        progress.say(f"  {ranked.probability:6.1%}  {ranked.choice}")
    if draws is not None:
        agree, seconds = round(facts["agreement"] * draws), facts["seconds"]
        progress.say(f"{agree} of {draws} draws of the rollout give this answer: {draws} rollouts, {seconds} s in all")
    place = f"saved as {preview}" if preview is not None else "add --preview FILE.png to see it"
    progress.say(f"image, rollout and answer: {place}")

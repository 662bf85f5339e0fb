"""`theworld ask`: one question about one image, rolled forward on the spot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import Device, Json, Quiet


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

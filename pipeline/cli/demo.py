"""`theworld demo`: scenes, rollouts, two trained readers, their controls, and one page with the results.

Each step does what a command of its own does. A second call resumes the demo.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..messages import command
from .options import Device, Json, Quiet, device_name

if TYPE_CHECKING:
    from ...precompute.job.report import Report
    from ...train.evaluation.results.saved import Evaluation
    from ...train.pages.html import Html
    from ..progress import Progress
    from ..store.latent_store import LatentStore

STEPS = 8
_CONTROLS = ("frozen", "shuffled", "noise")


def demo(
    out: Annotated[Path, typer.Argument(help="Folder for all files of the demo.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=18, help="Number of scenes; every third is a test scene.")] = 900,
    train_steps: Annotated[int, typer.Option(min=1, help="Training updates of each of the two adapters.")] = 800,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict futures, train one adapter with and one without them, and write a page that compares their answers."""
    from ...precompute.job.config import PrecomputeConfig
    from ...precompute.job.run import run_precompute
    from ...precompute.worldlet.rollout_check import CHECKED, rollout_outcomes
    from ...train.evaluation.evaluate import evaluate_shown
    from ...train.evaluation.results.compare import compare_evaluations
    from ..progress import Progress, print_json, print_lines, print_result
    from ..store.folder import open_store
    from .report_page import write_page

    began, progress, where = time.monotonic(), Progress.on_stderr(quiet=quiet), device_name(device)
    progress.say(f"1/4  {scenes} scenes, and the predicted future of each")
    made = run_precompute(
        PrecomputeConfig(cache=out / "latents", steps=STEPS, scenes=scenes, device=where), progress=progress
    )
    store = open_store(made.store)
    questions = out / "latents" / "scenes" / "questions.jsonl"
    progress.say("2/4  check whether predicted futures of test scenes end as the scenes truly do")
    outcomes = rollout_outcomes(store, out / "latents" / "scenes", splits=("test",), most=CHECKED, progress=progress)
    runs: list[Path] = []
    for steps in (STEPS, 0):
        progress.say(f"3/4  train an adapter that reads {f'{steps} predicted frames' if steps else 'the image alone'}")
        runs.append(_trained(out, store, questions, steps, train_steps, where, progress))
    progress.say("4/4  answer the questions about test scenes, then again with other inputs (ablations)")
    evaluations: list[Evaluation] = []
    for run, arms in zip(runs, ([None, *_CONTROLS], [None]), strict=True):
        evaluations += evaluate_shown(run, arms, device=where, outcomes=outcomes, progress=progress)
    page = write_page(
        evaluations,
        out / "index.html",
        outcomes=outcomes,
        closing=[("What to try next", _next_html(out, runs))],
        details=[("Cost of this demo", _cost_html(made, store, runs))],
        device=where,
        progress=progress,
    )
    took = time.monotonic() - began
    if as_json:
        dumped = [evaluation.model_dump(mode="json") for evaluation in evaluations]
        print_json({"page": str(page.resolve()), "seconds": round(took, 1), "evaluations": dumped})
        return
    for table in compare_evaluations(evaluations):
        print_result(table)
    print_lines(_result(evaluations[0], evaluations[-1]), f"{took:.0f} s. Now open {page.resolve()}", paths=True)


def _result(with_future: Evaluation, without: Evaluation) -> str:
    """The pair of figures that matters, as a sentence."""
    correct, blind = (100 * e.by_type["temporal"].accuracy for e in (with_future, without))
    return f"Questions about what happens next: {correct:.0f} % correct with the future, {blind:.0f} % without it."


def _trained(
    out: Path, store: LatentStore, questions: Path, steps: int, updates: int, device: str, progress: Progress
) -> Path:
    """The run folder; one that is whole already is taken as it is."""
    from ...train.config import TrainConfig
    from ...train.training.train import train

    run = out / "runs" / f"steps{steps}"
    if not run.exists():
        settings = {"steps": steps, "train_steps": updates, "device": device, "out": run}
        train(TrainConfig.model_validate({"store": store.path, "questions": questions, **settings}), progress=progress)
    return run


def _cost_html(made: Report, store: LatentStore, runs: list[Path]) -> Html:
    from ...train.evaluation.price import rollout_seconds
    from ...train.pages.html import table
    from ..messages import format_bytes

    size = sum(record.bytes for record in store.records())
    per_image = rollout_seconds(store)
    rows = [
        ("rollouts in the store", f"{len(store):,}, {format_bytes(size)}"),
        ("seconds a rollout", "-" if per_image is None else f"{per_image:,.3g} of one worker"),
    ]
    if made.written:
        rows.append(("all rollouts", f"{made.work.seconds:.0f} s, made once"))
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        took = f"{metrics['seconds']:.0f} s, {metrics['world_tokens']} world tokens an image"
        rows.append((f"training {run.name}", took))
    return table(["", ""], rows)


def _next_html(out: Path, runs: list[Path]) -> Html:
    from ...train.pages.html import bullets, render

    image = out / "latents" / "scenes" / "images" / "test-buckets-000000.png"
    commands = [
        (
            command("ask", runs[0], image, "where will the ball land?", "--choices", "left,middle,right"),
            "ask one yourself",
        ),
        (command("cache", "info", out / "latents"), "what the store holds"),
        ("theworld scenes bench --train 1000 --test 500", "all four families of scenes"),
        ("theworld precompute PHOTOS --world nvidia/Cosmos-Predict2-2B-Video2World", "the real world model"),
    ]
    item = "<code>{{ typed }}</code>: {{ what }}"
    return bullets(render(item, typed=typed, what=what) for typed, what in commands)

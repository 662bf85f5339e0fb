"""`theworld scenes` and `theworld worldlet build`: the benchmark's scenes, and the miniature world made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..machine import usable_cores
from ..messages import command, split_names
from . import options
from .options import Json, Quiet

_Families = Annotated[
    str, typer.Option(help="Families, separated by commas. Also push, in which a hidden force decides.")
]


def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for pictures, questions and futures.")],
    train: Annotated[int, typer.Option(help="Training scenes.")] = 1000,
    validation: Annotated[int, typer.Option(help="Validation scenes.")] = 0,
    test: Annotated[int, typer.Option(help="Test scenes.")] = 2000,
    ood: Annotated[int, typer.Option(help="Out-of-distribution scenes: more ramps, unseen colors, taller towers.")] = 0,
    families: _Families = "buckets,race,tower,contact",
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    videos: Annotated[bool, typer.Option("--videos", help="Also write the true futures as lossless MP4.")] = False,
    jobs: Annotated[int | None, options.jobs_option("one per core")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the benchmark's scenes: images, questions about what happens next, and about what the image shows."""
    from ...precompute.worldlet.scenes.files import best_possible, write_scenes
    from ...precompute.worldlet.scenes.scenes import OPEN_FAMILIES
    from ..progress import Progress, print_json, print_lines

    counts = {"train": train, "validation": validation, "test": test, "ood": ood}
    names = split_names(families, "--families", example="buckets,race")
    path = write_scenes(
        out,
        splits={split: count for split, count in counts.items() if count},
        seed=seed,
        families=names,
        videos=videos,
        jobs=jobs or usable_cores(),
        progress=Progress.on_stderr(quiet=quiet),
    )
    best = best_possible(out) if OPEN_FAMILIES.keys() & set(names) else {}
    if as_json:
        print_json({"questions": str(path), "scenes": counts, **({"best_possible": best} if best else {})})
        return
    for split, by_family in best.items():
        for family, share in by_family.items():
            print_lines(f"{family}, {split}: the best possible reader of frame 0 is right in {share:.1%}", err=True)
    print_lines(f"{sum(counts.values())} scenes; their questions: {path}", paths=True)


def worldlet_build(
    out: Annotated[Path, typer.Argument(help="Folder for the new weights: OUT/world and OUT/lm.")],
    world_minutes: Annotated[float, typer.Option(help="CPU minutes for the VAE and the transformer.")] = 60.0,
    lm_minutes: Annotated[float, typer.Option(help="CPU minutes for the language model.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Seed of scenes and weights.")] = 0,
    start: Annotated[Path | None, typer.Option(help="Start from the weights of a trained world.")] = None,
    families: _Families = "buckets,race,tower,contact",
    keep_vae: Annotated[
        bool,
        typer.Option("--keep-vae", help="Train only the transformer of --start (or the embedded world); no LM."),
    ] = False,
    regression: Annotated[
        bool,
        typer.Option("--regression", help="Train --start (or the embedded world) to predict the mean future; no LM."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the miniature world model and its small Gemma again. Run it again to resume an interrupted training."""
    from ...precompute.worldlet.training.build import build_world
    from ...train.worldlet.build import build_lm
    from ..progress import Progress, print_json, print_lines

    progress = Progress.on_stderr(quiet=quiet)
    build_world(
        out / "world",
        minutes=world_minutes,
        seed=seed,
        start=start,
        families=split_names(families, "--families", example="buckets,push"),
        keep_vae=keep_vae,
        regression=regression,
        progress=progress,
    )
    made, use = {"world": str(out / "world")}, [command("precompute", "--world", out / "world")]
    only_world = regression or keep_vae
    if not only_world:
        scratch = out / f"lm-seed{seed}.scratch"
        build_lm(out / "lm", minutes=lm_minutes, seed=seed, scratch=scratch, progress=progress)
        made, use = {**made, "lm": str(out / "lm")}, [*use, command("train", "--lm", out / "lm")]
    if as_json:
        print_json(made)
        return
    print_lines(f"use {'it' if only_world else 'them'}: {'; '.join(use)}")

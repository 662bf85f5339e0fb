"""Build a worldlet from nothing: simulate clips, train the autoencoder, encode, train the dynamics, save.

The shipped weights came from these functions.

    out/vae/  out/transformer/  out/scheduler/     stock diffusers folders, safetensors in fp16
    out/card.json  out/README.md                   what it is, how it was made, its figures
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.atomic import replace
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.files.rights import follow_umask
from ....pipeline.progress import Progress
from ...worlds.builtin import WEIGHTS
from ...worlds.cosmos.predict2 import SIGMA_CONDITIONING, CosmosWorld
from ...worlds.cosmos.solvers import SIGMA_MAX, SIGMA_MIN
from ..scenes.physics import FPS, SIZE, VIDEO_FRAMES
from ..scenes.scenes import FAMILIES, OPEN_FAMILIES, VERSION, require_families
from .chances import measure_draws
from .clips import CHUNK_SIZE, Chunk, clips_of, draw_scenes, load_clips
from .dynamics import denoising_loss, regression_loss, train_dynamics
from .encode import encode_chunk, forget_latents_of_another, load_latents, measure_statistics
from .figures import EVALUATIONS, measure_world
from .vae import train_vae

DEFAULTS: dict[str, object] = {
    "height": SIZE,
    "width": SIZE,
    "denoise_steps": 2,
    "window": 1 + (VIDEO_FRAMES - 1) // 4,
    "fps": FPS,
    "compute_dtype": "float32",
}
"""How the worldlet is meant to be run: what a `Card` of family.py reads. Frame 0 decides the future of its scenes, so
that one evaluation of the network (two denoise steps) predicts it as well as nine (docs/benchmark.md)."""
OPEN_DEFAULTS: dict[str, object] = {**DEFAULTS, "denoise_steps": 10}
"""Of a world of open families: one evaluation would show the mean of what may happen."""


def save_world(
    out: Path,
    vae: AutoencoderKLWan,
    transformer: CosmosTransformer3DModel,
    statistics: tuple[list[float], list[float]],
) -> None:
    """Write the stock folders, in fp16, with the latents' mean and standard deviation in the VAE's config."""
    mean, std = statistics
    vae.register_to_config(latents_mean=[round(v, 6) for v in mean], latents_std=[round(v, 6) for v in std])
    vae.half().save_pretrained(out / "vae", safe_serialization=True)
    vae.float()
    transformer.half().save_pretrained(out / "transformer", safe_serialization=True)
    transformer.float()
    for weights in out.rglob("*.safetensors"):
        follow_umask(weights)
    # sigma_max and the like are registered by the pipeline itself.
    FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True).save_pretrained(out / "scheduler")


def write_card(out: Path, card: dict[str, Any]) -> None:
    """Write card.json and the README that says the same in words."""
    families, own = card["data"]["families"], card["defaults"]["denoise_steps"]
    is_open = bool(OPEN_FAMILIES.keys() & set(families))
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    lines = [
        "# The worldlet",
        "",
        "A miniature of Cosmos-Predict2 Video2World: `AutoencoderKLWan` and `CosmosTransformer3DModel`, trained on",
        f"unlabelled simulated 64x64 clips (scenes version {VERSION}) of {', '.join(families)}. It predicts",
        "how such scenes go on, and nothing else. Made by `theworld worldlet build`.",
        "",
        f"Runs in the stock `Cosmos2VideoToWorldPipeline`: `num_frames={VIDEO_FRAMES}`, guidance 1.0, `fps=None`, zero",
        "prompt embeddings of width 32. Prompts have no effect. Figures and seeds: `card.json`.",
        "",
        f"Its own number of denoise steps is {own}: {own - 1} evaluation{'s' if own > 2 else ''} of the network.",
    ]
    if not is_open:
        lines.append(
            "Frame 0 decides how its scenes end, so one is enough; more keep more colors (`docs/benchmark.md`)."
        )
    figures = card.get("figures")
    if isinstance(figures, dict):
        test = figures["test"]
        beside = {"a copy of frame 0": test["copy_frame_0"], "the true clip through the VAE": test["vae"]}
        if "regression" in test:
            beside = {"a deterministic regression": test["regression"], **beside}
        rollout = test["evaluations"].get(str(own - 1)) or next(iter(test["evaluations"].values()))
        lines += ["", f"Outcomes right on {test['clips']} unseen scenes ({'; '.join(beside)}):", ""]
        for name, share in rollout["outcome"].items():
            others = "; ".join(f"{other['outcome'][name]:.1%}" for other in beside.values())
            lines.append(f"- {name}: {share:.1%} ({others})")
    (out / "README.md").write_text("\n".join(lines) + "\n")


def build_world(
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    scratch: Path | None = None,
    start: Path | None = None,
    train_clips: int = 12_000,
    test_scenes: int = 400,
    vae_share: float = 0.25,
    base_dim: int = 8,
    layers: int = 4,
    batch: int = 16,
    families: Sequence[str] = tuple(FAMILIES),
    keep_vae: bool = False,
    regression: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a worldlet and write it to `out`; returns its card.

    Args:
        minutes: CPU minutes for the two trainings together. Simulating and encoding come on top: about
            0.1 CPU seconds per clip.
        scratch: clips, latents and training states, a few GB for the default count; `out`'s neighbour
            `<out>.scratch` if not given. A second call with the same folder goes on where the first stopped.
        start: a trained world to begin with, instead of from nothing; with `keep_vae` or `regression`, the embedded one
            by default.
        families: of the clips, in turn; the figures are of these, too.
        keep_vae: leave the autoencoder of `start` as it is, and give all the time to the transformer.
        regression: predict the future's mean in one evaluation; keeps the autoencoder, too.
        train_clips: unlabelled; a quarter of them drawn like the scenes of `train`, with another seed than those.
        vae_share: the part of `minutes` the autoencoder gets.
        progress: where a person watches; None is `Progress.to_logger()`.
    Raises:
        ConfigError: an unknown family, or `scratch` holds a build of other settings.
        WorldModelError: `start` cannot be loaded.
    """
    require_families(families)
    keep_vae = keep_vae or regression
    start = WEIGHTS if start is None and keep_vae else start
    kept_vae = start / "vae" if start is not None and keep_vae else None
    progress = progress or Progress.to_logger()
    scratch = scratch or out.with_name(f"{out.name}.scratch")
    made_with = {"seed": seed, "start": None if start is None else str(start.resolve()), "families": list(families)}
    made_with |= {"keep_vae": keep_vae, "regression": regression, "train_clips": train_clips}
    made_with |= {"base_dim": base_dim, "layers": layers, "batch": batch}
    _require_same_build(scratch, made_with)
    size = min(CHUNK_SIZE, train_clips)
    chunks = train_clips // size
    chunk_of = partial(Chunk, size=size, families=tuple(families))
    began = time.process_time()
    vae_s = 0.0 if keep_vae else 60 * minutes * vae_share
    dynamics_s = 60 * minutes - vae_s
    if kept_vae is not None:
        vae = load_pretrained(AutoencoderKLWan, kept_vae, error=WorldModelError, what="VAE to keep")
        vae = vae.float().eval()
    else:
        seen = min(train_clips, 14 * CHUNK_SIZE)
        videos = [chunk_of(split="video", number=n, seed=seed) for n in range(-(-seen // size))]
        vae = train_vae(
            scratch / "vae",
            load_clips(scratch / "clips", videos, seen),
            seconds=vae_s,
            seed=seed,
            base_dim=base_dim,
            start=start and start / "vae",
            progress=progress,
        )
    # A quarter shows halves of minimal pairs: their changes lead to layouts that are seldom drawn, and are asked about.
    drawn = [chunk_of(split="video", number=n, seed=seed) for n in range(chunks - chunks // 4)]
    drawn += [chunk_of(split="train", number=n, seed=seed + 1) for n in range(chunks // 4)]
    if stale := forget_latents_of_another(scratch / "latents", vae):
        progress.say(f"the autoencoder was trained on: {stale} files of latents of the earlier one are made again")
    files = [encode_chunk(vae, scratch / "clips", scratch / "latents", chunk) for chunk in drawn]
    statistics = measure_statistics(files[: max(1, 1440 // size)])
    if keep_vae:
        statistics = list(vae.config["latents_mean"]), list(vae.config["latents_std"])
    latents = load_latents(files, *statistics)
    transformer = train_dynamics(
        scratch / "dynamics",
        lambda: latents,
        seconds=dynamics_s,
        seed=seed,
        layers=layers,
        batch=batch,
        start=start and start / "transformer",
        loss_of=regression_loss if regression else denoising_loss,
        progress=progress,
    )
    save_world(out, vae, transformer, statistics)
    card = new_card(
        seed=seed,
        train_clips=chunks * size,
        cpu_seconds={"vae": round(vae_s), "dynamics": round(dynamics_s)},
        families=families,
    )
    if regression:
        card["what"] = "the worldlet's network, trained to predict the future's mean in one evaluation"
        card["defaults"] = DEFAULTS
    world = CosmosWorld.load(out)
    evaluations = (1,) if regression else (9, *EVALUATIONS)
    unseen = {split: clips_of(draw_scenes(split, test_scenes, families=families)) for split in ("test", "ood")}
    card["figures"] = {split: measure_world(world, clips, evaluations=evaluations) for split, clips in unseen.items()}
    if OPEN_FAMILIES.keys() & set(families):
        card["draws"] = measure_draws(world, unseen["test"], evaluations=evaluations[0])
    write_card(out, card)
    progress.say(f"worldlet built in {time.process_time() - began:.0f} CPU s: {out}")
    return card


def _require_same_build(scratch: Path, made_with: dict[str, object]) -> None:
    """Note what the trainings in this folder are made with, or check that it is the same.

    Raises:
        ConfigError: other settings; the trainings there would go on as if they were of these.
    """
    path = scratch / "build.json"
    if path.exists():
        try:
            before: Any = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}). Remove {scratch}, or name another OUT") from error
        if not isinstance(before, dict):
            raise ConfigError(f"{path} is damaged (it is no JSON object). Remove {scratch}, or name another OUT")
        if other := [name for name, value in made_with.items() if before.get(name) != value]:
            told = ", ".join(f"{name} {before.get(name)} (now {made_with[name]})" for name in other)
            raise ConfigError(
                f"{scratch} holds a build of other settings: {told}. Name another OUT, or remove {scratch}"
            )
        return
    if (scratch / "dynamics").exists() or (scratch / "vae").exists():
        raise ConfigError(
            f"{scratch} holds trainings of an earlier version, which did not note their settings. Name another OUT, or "
            f"remove {scratch}"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    replace(scratch, path, json.dumps(made_with).encode())


def new_card(
    *, seed: int, train_clips: int, cpu_seconds: dict[str, int], families: Sequence[str] = tuple(FAMILIES)
) -> dict[str, Any]:
    """The card of a world before its figures are known."""
    return {
        "name": "worldlet",
        "what": "a miniature of Cosmos-Predict2 Video2World, trained on unlabelled simulated clips",
        "classes": {
            "vae": "AutoencoderKLWan",
            "transformer": "CosmosTransformer3DModel",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
        },
        "defaults": OPEN_DEFAULTS if OPEN_FAMILIES.keys() & set(families) else DEFAULTS,
        "sigma": {"max": SIGMA_MAX, "min": SIGMA_MIN, "data": 1.0, "conditioning": SIGMA_CONDITIONING},
        "data": {
            "families": list(families),
            "scenes_version": VERSION,
            "split": "video, and a quarter drawn like train with the next seed",
            "seed": seed,
            "train_clips": train_clips,
            "video_frames": VIDEO_FRAMES,
        },
        "cpu_seconds": cpu_seconds,
        "torch": torch.__version__,
    }

"""Measure a trained worldlet: rollouts of unseen scenes, read by a fixed parser, against the truth.

Every figure stands beside its floors (a copy of frame 0 and, if there is one, a deterministic regression) and its
ceiling (the true clip through the autoencoder).

    python -m theworld.precompute.worldlet.training.figures WEIGHTS --families push --scenes 1000
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ....pipeline.latents.keys import key_of_bytes
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.tensors import standardise
from ...worlds.cosmos.predict2 import CosmosWorld
from ..scenes.outcomes import Video, read_outcome, track
from ..scenes.physics import COLORS, SIZE, UNSEEN_COLORS, Ball
from ..scenes.scenes import FAMILIES, OPEN_FAMILIES, require_families
from .clips import Clips, clips_of, draw_scenes
from .encode import encode_clips

_BATCH = 8
EVALUATIONS = (1, 2, 4, 10, 35)
"""Forward passes of the network; the stock pipeline counts one denoise step more, whose forward changes nothing."""


def first_frames(clips: Clips) -> tuple[Tensor, list[str]]:
    """Frame 0 of every clip as the engine takes it, (N, 3, 64, 64) in [-1, 1], and its key."""
    frames = np.asarray(clips.frames[:, 0])
    pixels = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    return pixels, [key_of_bytes(frame.tobytes()) for frame in frames]


def roll_out(world: CosmosWorld, clips: Clips, *, denoise_steps: int = 10, seed: int = 0) -> Tensor:
    """Standardised latents (N, 16, 9, 8, 8) of the future that the world predicts from each clip's frame 0."""
    pixels, keys = first_frames(clips)
    recipe = Recipe(world="figures", height=SIZE, width=SIZE, denoise_steps=denoise_steps, seed=seed)
    batches = range(0, len(keys), _BATCH)
    return torch.cat([world.rollout(pixels[n : n + _BATCH], keys[n : n + _BATCH], recipe) for n in batches])


def decode_clips(world: CosmosWorld, standardised: Tensor) -> Video:
    """Pictures (N, frames, 64, 64, 3) in 0 to 1 of standardised latents."""
    videos = [world.decode(part).permute(0, 2, 3, 4, 1) for part in standardised.split(_BATCH)]
    return (torch.cat(videos).numpy() + 1) / 2


def outcomes_right(videos: Video, clips: Clips) -> NDArray[np.bool_]:
    """Per clip, whether the parser reads its true outcome."""
    read = [read_outcome(clips.facts[n]["family"], video, clips.layout(n)) for n, video in enumerate(videos)]
    return np.array([outcome == fact["answer"] for outcome, fact in zip(read, clips.facts, strict=True)])


def by_family(values: NDArray[Any], clips: Clips) -> dict[str, float]:
    """Means per family, and over all."""
    families = np.array([fact["family"] for fact in clips.facts])
    means = {
        name: round(float(values[families == name].mean()), 4)
        for name in (*FAMILIES, *OPEN_FAMILIES)
        if name in families
    }
    return {**means, "all": round(float(values.mean()), 4)}


def ball_errors(videos: Video, clips: Clips) -> dict[str, Any]:
    """Distance of balls from their true places: median px per latent frame, and the share within 3 px at the end.

    Also the share of them that can be seen in their colour in the last frame.
    """
    distances, visible = [], []
    for number, video in enumerate(videos):
        layout = clips.layout(number)
        balls = [n for n, mover in enumerate(layout.movers) if isinstance(mover, Ball)]
        if not balls:
            continue
        tracked = track(video[::4], layout)[:, balls]
        truth = clips.states[number, ::4][:, balls, :2]
        distances += list(np.hypot(*(tracked[..., :2] - truth).transpose(2, 0, 1)).T)
        visible += list(tracked[-1, :, 2] > 0.35)
    error = np.array(distances)
    return {
        "balls": len(error),
        "median_px": [round(float(v), 2) for v in np.median(error, axis=0)],
        "within_3px": round(float((error[:, -1] < 3).mean()), 4),
        "visible_in_their_color": round(float(np.mean(visible)), 4),
    }


def skill(latents: Tensor, true: Tensor) -> list[float]:
    """Per future latent frame, 1 - MSE / MSE of a copy of frame 0, in standardised latents; 1 is perfect."""
    error = (latents - true)[:, :, 1:].square().mean(dim=(0, 1, 3, 4))
    copied = (true[:, :, :1] - true[:, :, 1:]).square().mean(dim=(0, 1, 3, 4))
    return [round(float(v), 4) for v in 1 - error / copied]


def measure_vae(reconstructed: Video, clips: Clips) -> dict[str, Any]:
    """PSNR, and what becomes of small things."""
    pictures = np.asarray(clips.frames, dtype=np.float32) / 255
    squared = (reconstructed - pictures) ** 2
    same_color = [
        max((*COLORS, *UNSEEN_COLORS), key=lambda name: _near(video[0], clips.masks(n, slice(0, 1))[m, 0], name))
        == mover.color
        for n, video in enumerate(reconstructed)
        for m, mover in enumerate(clips.layout(n).movers)
    ]
    return {
        "psnr_first_frame_db": round(float(-10 * np.log10(squared[:, 0].mean())), 2),
        "psnr_last_frame_db": round(float(-10 * np.log10(squared[:, -1].mean())), 2),
        "color_class_kept": round(float(np.mean(same_color)), 4),
        "balls": ball_errors(reconstructed, clips),
        "outcome": by_family(outcomes_right(reconstructed, clips), clips),
    }


def _near(frame: Video, mask: NDArray[np.floating[Any]], color: str) -> float:
    mean = (frame * mask[..., None]).sum(axis=(0, 1)) / mask.sum()
    return -float(np.linalg.norm(mean - np.asarray({**COLORS, **UNSEEN_COLORS}[color]) / 255))


def measure_world(
    world: CosmosWorld,
    clips: Clips,
    *,
    evaluations: Sequence[int] = (9,),
    seed: int = 0,
    regression: CosmosWorld | None = None,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """All figures of a world on unseen clips.

    Args:
        regression: the floor: the same network trained by `regression_loss`, over the same autoencoder.
        evaluations: forward passes per rollout; the first are described in full, all by their outcomes.
        sheet: gets true clips above predicted ones, every fourth frame, 30 scenes.
    """
    true = standardise(encode_clips(world.vae, clips), world.spec)
    copied = true[:, :, :1].expand_as(true)
    pictures = np.asarray(clips.frames, dtype=np.float32) / 255
    still = np.repeat(pictures[:, :1], pictures.shape[1], axis=1)
    figures: dict[str, Any] = {
        "clips": len(clips),
        "vae": measure_vae(decode_clips(world, true), clips),
        "parser_on_true_frames": by_family(outcomes_right(pictures, clips), clips),
        "copy_frame_0": {
            "outcome": by_family(outcomes_right(still, clips), clips),
            "balls": ball_errors(still, clips),
            "latent_mse": round(float((copied - true)[:, :, 1:].square().mean()), 4),
        },
    }
    if regression is not None:
        figures["regression"] = _measure(roll_out(regression, clips, denoise_steps=2, seed=seed), true, world, clips)[0]
    rollouts: dict[str, Any] = {}
    for count in evaluations:
        rolled = roll_out(world, clips, denoise_steps=count + 1, seed=seed)
        rollouts[str(count)], videos = _measure(rolled, true, world, clips)
        if sheet is not None and count == evaluations[0]:
            draw_sheet(sheet, pictures[:30], videos[:30])
    figures["evaluations"] = rollouts
    return figures


def _measure(latents: Tensor, true: Tensor, world: CosmosWorld, clips: Clips) -> tuple[dict[str, Any], Video]:
    videos = decode_clips(world, latents)
    right = outcomes_right(videos, clips)
    first = _first_of_pairs(clips)
    return {
        "outcome": by_family(right, clips),
        "pairs_right": by_family(np.array([right[n] and right[n + 1] for n in first]), clips.take(first)),
        "balls": ball_errors(videos, clips),
        "skill_by_frame": skill(latents, true),
        "latent_mse": round(float((latents - true)[:, :, 1:].square().mean()), 4),
    }, videos


def _first_of_pairs(clips: Clips) -> list[int]:
    """The first half of every whole pair."""
    return [n for n in range(len(clips) - 1) if clips.facts[n]["pair"] == clips.facts[n + 1]["pair"]]


def draw_sheet(path: Path, true: Video, predicted: Video, *, zoom: int = 2) -> None:
    """A picture of clips, every fourth frame, true above predicted."""
    rows = [np.concatenate(list(clip[::4]), axis=1) for pair in zip(true, predicted, strict=True) for clip in pair]
    image = Image.fromarray(np.rint(np.clip(np.concatenate(rows), 0, 1) * 255).astype(np.uint8))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> None:
    """Print the figures of the world in a folder on unseen scenes of test and of ood."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--families", nargs="+", default=[*FAMILIES])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[9, *EVALUATIONS])
    parser.add_argument("--regression", type=Path, help="weights of the floor")
    parser.add_argument("--sheet", type=Path, help="true clips above predicted ones")
    options = parser.parse_args(arguments)
    require_families(options.families)
    world = CosmosWorld.load(options.weights)
    floor = CosmosWorld.load(options.regression) if options.regression else None
    result = {
        split: measure_world(
            world,
            clips_of(draw_scenes(split, options.scenes, seed=options.seed, families=options.families)),
            evaluations=options.evaluations,
            regression=floor,
            sheet=options.sheet if split == "test" else None,
        )
        for split in ("test", "ood")
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

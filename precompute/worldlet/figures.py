"""What a trained worldlet is worth: rollouts of unseen scenes, read by a fixed parser, against the truth.

Lives here: the ball parser, the figures and the picture of them. Elsewhere: training (build.py), rolling out
(the product's own engine, cosmos.py). Every figure stands beside its floor (a copy of frame 0) and its
ceiling (the true clip through the autoencoder).

    python -m theworld.precompute.worldlet.figures WEIGHTS SCRATCH [SHEET.png]
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...pipeline.keys import key_of_bytes
from ...pipeline.latents import standardise
from ...pipeline.recipe import Recipe
from ..cosmos import CosmosWorld
from .buckets import BINS, COLORS, SIZE, bin_of
from .clips import Clips, load_clips
from .encode import encode_clips

_BATCH = 8
_READ_RADIUS = 6.0
_NEAR = 0.45  # distance in RGB, of at most sqrt(3), at which a pixel no longer counts as the ball


def find_ball(frame: NDArray[np.float32], color: str) -> tuple[float, float, float]:
    """Centre x, y and strength of the blob of a colour in a picture (H, W, 3) with values 0 to 1.

    The strongest 5x5 window of near-coloured pixels, then their centroid around it. Strength is the
    window's mean nearness, 0 where nothing has the colour.
    """
    target = np.asarray(COLORS[color], dtype=np.float32) / 255
    near = np.clip(1 - np.linalg.norm(frame - target, axis=-1) / _NEAR, 0, 1)
    sums = np.pad(near, 3)[:, :].cumsum(0).cumsum(1)
    windows = sums[5:, 5:] - sums[:-5, 5:] - sums[5:, :-5] + sums[:-5, :-5]
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    rows, columns = np.mgrid[: near.shape[0], : near.shape[1]]
    inside = near * (np.hypot(rows - row, columns - column) <= _READ_RADIUS)
    total = float(inside.sum())
    if total < 1e-6:
        return SIZE / 2, SIZE / 2, 0.0
    return (
        float((inside * columns).sum() / total) + 0.5,
        float((inside * rows).sum() / total) + 0.5,
        float(windows.max()) / 25,
    )


def read_video(video: NDArray[np.floating[Any]], clips: Clips) -> dict[str, Any]:
    """Read clips (N, T, 64, 64, 3) in 0 to 1 against the truth, at every fourth frame.

    Returns `landing` (share of right bins in the last frame), `color` (share whose ball keeps its colour
    class there), `error_px` (median ball distance per latent frame) and `within_3px` (in the last frame).
    """
    landed, kept, distances = [], [], []
    for number, clip in enumerate(video):
        color = str(clips.facts[number]["color"])
        found = [find_ball(frame, color) for frame in clip[::4]]
        truth = clips.balls[number, ::4]
        distances.append([np.hypot(x - tx, y - ty) for (x, y, _), (tx, ty) in zip(found, truth, strict=True)])
        landed.append(bin_of(found[-1][0]) == clips.facts[number]["answer"])
        strengths = {name: find_ball(clip[-1], name)[2] for name in COLORS}
        kept.append(max(strengths, key=lambda name: strengths[name]) == color)
    error = np.array(distances)
    return {
        "landing": round(float(np.mean(landed)), 4),
        "color": round(float(np.mean(kept)), 4),
        "within_3px": round(float((error[:, -1] < 3).mean()), 4),
        "error_px": [round(float(v), 2) for v in np.median(error, axis=0)],
    }


def first_frames(clips: Clips) -> tuple[Tensor, list[str]]:
    """Frame 0 of every clip as the engine takes it, (N, 3, 64, 64) in [-1, 1], and its key."""
    frames = np.asarray(clips.frames[:, 0])
    pixels = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    return pixels, [key_of_bytes(frame.tobytes()) for frame in frames]


def roll_out(world: CosmosWorld, clips: Clips, *, denoise_steps: int = 10, seed: int = 0) -> Tensor:
    """Standardised latents (N, 16, 9, 8, 8) of the future that the world foresees from each clip's frame 0."""
    pixels, keys = first_frames(clips)
    recipe = Recipe(world="figures", height=SIZE, width=SIZE, denoise_steps=denoise_steps, seed=seed)
    batches = range(0, len(keys), _BATCH)
    return torch.cat([world.rollout(pixels[n : n + _BATCH], keys[n : n + _BATCH], recipe) for n in batches])


def decode_clips(world: CosmosWorld, standardised: Tensor) -> NDArray[np.floating[Any]]:
    """Pictures (N, frames, 64, 64, 3) in 0 to 1 of standardised latents."""
    videos = [world.decode(part).permute(0, 2, 3, 4, 1) for part in standardised.split(_BATCH)]
    return (torch.cat(videos).numpy() + 1) / 2


def measure_world(
    world: CosmosWorld, clips: Clips, *, denoise_steps: int = 10, seed: int = 0, sheet: Path | None = None
) -> dict[str, Any]:
    """All figures of a world on unseen clips; `sheet` also gets true clips above predicted ones."""
    true = standardise(encode_clips(world.vae, clips), world.spec)
    rolled = roll_out(world, clips, denoise_steps=denoise_steps, seed=seed)
    copied = true[:, :, :1].expand_as(true)
    videos = {"rollout": decode_clips(world, rolled), "vae": decode_clips(world, true)}
    pictures = np.asarray(clips.frames, dtype=np.float32) / 255
    squared = (videos["vae"] - pictures) ** 2
    figures: dict[str, Any] = {
        "clips": len(clips),
        "denoise_steps": denoise_steps,
        "rollout": read_video(videos["rollout"], clips),
        "vae_ceiling": read_video(videos["vae"], clips),
        "copy_frame_0": read_video(np.repeat(pictures[:, :1], pictures.shape[1], axis=1), clips),
        "parser_on_true_frames": read_video(pictures, clips),
        "latent_mse": {
            "rollout": round(float((rolled - true)[:, :, 1:].square().mean()), 4),
            "copy_frame_0": round(float((copied - true)[:, :, 1:].square().mean()), 4),
        },
        "vae_psnr_db": {
            "first_frame": round(float(-10 * np.log10(squared[:, 0].mean())), 2),
            "last_frame": round(float(-10 * np.log10(squared[:, -1].mean())), 2),
        },
    }
    by_ramps: dict[str, float] = {}
    for count in (1, 2, 3):
        chosen = [n for n, fact in enumerate(clips.facts) if fact["ramps"] == count]
        if chosen:
            facts = [clips.facts[n] for n in chosen]
            part = Clips(frames=clips.frames[:0], balls=clips.balls[chosen], facts=facts)
            by_ramps[str(count)] = read_video(videos["rollout"][chosen], part)["landing"]
    figures["rollout_landing_by_ramps"] = by_ramps
    if sheet is not None:
        draw_sheet(sheet, pictures[:8], videos["rollout"][:8])
    return figures


def draw_sheet(
    path: Path, true: NDArray[np.floating[Any]], predicted: NDArray[np.floating[Any]], *, zoom: int = 2
) -> None:
    """A picture of clips, every fourth frame, true above predicted."""
    rows = [np.concatenate(list(clip[::4]), axis=1) for pair in zip(true, predicted, strict=True) for clip in pair]
    image = Image.fromarray(np.rint(np.concatenate(rows) * 255).astype(np.uint8))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main(arguments: list[str]) -> None:
    """Print the figures of the world in a folder on 250 test scenes."""
    weights, scratch = Path(arguments[0]), Path(arguments[1])
    sheet = Path(arguments[2]) if len(arguments) > 2 else None
    clips = load_clips(scratch, "test", 250)
    print(json.dumps(measure_world(CosmosWorld.load(weights), clips, sheet=sheet), indent=2))
    print("chance:", 1 / len(BINS), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])

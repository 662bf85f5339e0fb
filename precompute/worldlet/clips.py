"""Clips of scenes as plain arrays on disk, for training the worldlet: frames, ball masks' inputs, truth.

Lives here: writing chunks of clips once, reading them back memory-mapped. Elsewhere: one scene
(buckets.py), the latents of these clips (dynamics.py).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .buckets import BINS, COLORS, VERSION, ball_masks, make_scene

CHUNK = 250
"""Clips of one file; a chunk is the unit of work and of resume."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A run of clips of one split; `frames` may be a memory map."""

    frames: NDArray[np.uint8]
    """Shape (N, 33, 64, 64, 3)."""
    balls: NDArray[np.float64]
    """Shape (N, 33, 2): ball centre, x then y, in pixels."""
    facts: list[dict[str, object]]
    """Per clip: `id`, `color`, `radius`, `bin_below`, `answer`, `ramps` (a count)."""

    def __len__(self) -> int:
        return len(self.facts)

    def masks(self, number: int, frames: slice = slice(None)) -> NDArray[np.float32]:
        """Coverage by the ball of clip `number`, shape (frames, 64, 64)."""
        return ball_masks(self.balls[number, frames], float(self.facts[number]["radius"]))  # type: ignore[arg-type]

    def answers(self) -> NDArray[np.int64]:
        """Index into `BINS` of the bin each ball lands in."""
        return np.array([BINS.index(str(fact["answer"])) for fact in self.facts])

    def colors(self) -> NDArray[np.int64]:
        """Index into `COLORS` of each ball."""
        names = list(COLORS)
        return np.array([names.index(str(fact["color"])) for fact in self.facts])


def write_chunk(folder: Path, split: str, chunk: int, *, seed: int = 0, size: int = CHUNK) -> Path:
    """Simulate scenes `chunk*size … (chunk+1)*size` of a split; returns the frames' file.

    Work already there is not done again: the JSON of facts is written last and marks a whole chunk.
    """
    stem = f"v{VERSION}-{split}-{seed}-{chunk:05d}-{size}"
    path, marker = folder / f"{stem}.frames.npy", folder / f"{stem}.json"
    if marker.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [make_scene(index, split, seed=seed) for index in range(chunk * size, (chunk + 1) * size)]
    save_array(path, np.stack([scene.frames for scene in scenes]))
    save_array(folder / f"{stem}.balls.npy", np.stack([scene.positions for scene in scenes]))
    facts = [
        {
            "id": scene.id,
            "color": scene.layout.color,
            "radius": scene.layout.radius,
            "bin_below": scene.bin_below,
            "answer": scene.answer,
            "ramps": len(scene.layout.ramps),
        }
        for scene in scenes
    ]
    part = marker.with_suffix(".part")
    part.write_text(json.dumps(facts))
    part.replace(marker)
    return path


def load_chunk(folder: Path, split: str, chunk: int, *, seed: int = 0, size: int = CHUNK) -> Clips:
    """Open one chunk, making it first where it is missing."""
    path = write_chunk(folder, split, chunk, seed=seed, size=size)
    stem = path.name.removesuffix(".frames.npy")
    return Clips(
        frames=np.load(path, mmap_mode="r", allow_pickle=False),
        balls=np.load(folder / f"{stem}.balls.npy", allow_pickle=False),
        facts=json.loads((folder / f"{stem}.json").read_text()),
    )


def load_clips(folder: Path, split: str, count: int, *, seed: int = 0, size: int = CHUNK) -> Clips:
    """The first `count` clips of a split in memory, made where they are missing."""
    chunks = [load_chunk(folder, split, n, seed=seed, size=size) for n in range(-(-count // size))]
    return Clips(
        frames=np.concatenate([chunk.frames for chunk in chunks])[:count],
        balls=np.concatenate([chunk.balls for chunk in chunks])[:count],
        facts=[fact for chunk in chunks for fact in chunk.facts][:count],
    )


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write a plain .npy beside its place, then rename it into it."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
    part.replace(path)

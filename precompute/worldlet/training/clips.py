"""Clips of scenes as plain arrays on disk, for training and measuring the worldlet: frames, states, truth."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....pipeline.files.atomic import replace
from ..scenes.physics import MAX_MOVERS, VIDEO_FRAMES, Ball, Block, Layout, Mover, coverage
from ..scenes.scenes import FAMILIES, VERSION, Scene, make_pair, make_video

CHUNK_SIZE = 240


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Scenes `number * size … (number + 1) * size` of a split, in files of their own; the unit of work and resume."""

    split: str
    number: int
    seed: int = 0
    size: int = CHUNK_SIZE
    families: Sequence[str] = tuple(FAMILIES)

    @property
    def name(self) -> str:
        """What its files are called; other families than the default four are part of it."""
        named = "" if list(self.families) == list(FAMILIES) else f"-{'-'.join(self.families)}"
        return f"{self.split}-{self.seed}-{self.number:05d}-{self.size}{named}"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A run of clips; `frames` may be a memory map."""

    frames: NDArray[np.uint8]
    """(N, 33, 64, 64, 3)."""
    states: NDArray[np.float64]
    """(N, 33, 6, 3): x, y, angle of each mover, NaN where a scene has fewer."""
    facts: list[dict[str, Any]]
    """Per clip: `id`, `family`, `pair`, `shift`, `heuristic`, `answer`, `layout`; of open families `chances`, too."""

    def __len__(self) -> int:
        return len(self.facts)

    def layout(self, number: int) -> Layout:
        """What is in clip `number`."""
        return layout_of(self.facts[number]["layout"])

    def masks(self, number: int, frames: slice = slice(None)) -> NDArray[np.floating[Any]]:
        """Coverage by each mover of clip `number`, (6, frames, 64, 64); zero where there is none."""
        movers = self.layout(number).movers
        states = self.states[number, frames]
        masks = [coverage(mover, states[:, index]) for index, mover in enumerate(movers)]
        return np.stack(masks + [np.zeros_like(masks[0])] * (MAX_MOVERS - len(masks)))

    def take(self, chosen: Sequence[int]) -> Clips:
        """Some of the clips."""
        index = list(chosen)
        return Clips(frames=self.frames[index], states=self.states[index], facts=[self.facts[n] for n in index])


def layout_of(fact: dict[str, Any]) -> Layout:
    """The layout that `asdict` took apart."""
    movers: list[Mover] = [Ball(**mover) if "radius" in mover else Block(**mover) for mover in fact["movers"]]
    return Layout(
        tint=tuple(fact["tint"]),
        movers=tuple(movers),
        ramps=tuple(tuple(ramp) for ramp in fact["ramps"]),
        posts=tuple(tuple(post) for post in fact["posts"]),
    )


def clips_of(scenes: Sequence[Scene]) -> Clips:
    """Scenes in memory as clips."""
    states = np.full((len(scenes), VIDEO_FRAMES, MAX_MOVERS, 3), np.nan)
    for number, scene in enumerate(scenes):
        states[number, :, : scene.states.shape[1]] = scene.states
    facts = [
        {
            "id": scene.id,
            "family": scene.family,
            "pair": scene.pair,
            "shift": scene.shift,
            "heuristic": scene.heuristic,
            "answer": scene.answer,
            "layout": asdict(scene.layout),
            **({"chances": scene.chances} if scene.chances else {}),
        }
        for scene in scenes
    ]
    return Clips(frames=np.stack([scene.frames() for scene in scenes]), states=states, facts=facts)


def draw_scenes(
    split: str, count: int, *, start: int = 0, seed: int = 0, families: Sequence[str] = tuple(FAMILIES)
) -> list[Scene]:
    """Scenes `start … start + count` of a split, families in turn; pairs stay together, so both numbers are even."""
    if split == "video":
        return [
            make_video(families[n % len(families)], n // len(families), seed=seed) for n in range(start, start + count)
        ]
    pairs = range(start // 2, (start + count + 1) // 2)
    return [
        scene for n in pairs for scene in make_pair(families[n % len(families)], n // len(families), split, seed=seed)
    ][:count]


def write_chunk(folder: Path, chunk: Chunk) -> Path:
    """Simulate the scenes of a chunk; returns the frames' file.

    Work already there is not done again: the JSON of facts is written last and marks a whole chunk.
    """
    stem = f"v{VERSION}-{chunk.name}"
    path, marker = folder / f"{stem}.frames.npy", folder / f"{stem}.json"
    if marker.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    start = chunk.number * chunk.size
    clips = clips_of(draw_scenes(chunk.split, chunk.size, start=start, seed=chunk.seed, families=chunk.families))
    save_array(path, clips.frames)
    save_array(folder / f"{stem}.states.npy", clips.states)
    replace(folder, marker, json.dumps(clips.facts).encode())
    return path


def load_chunk(folder: Path, chunk: Chunk) -> Clips:
    """Open one chunk, making it first where it is missing."""
    path = write_chunk(folder, chunk)
    stem = path.name.removesuffix(".frames.npy")
    return Clips(
        frames=np.load(path, mmap_mode="r", allow_pickle=False),
        states=np.load(folder / f"{stem}.states.npy", allow_pickle=False),
        facts=json.loads((folder / f"{stem}.json").read_text()),
    )


def load_clips(folder: Path, chunks: Sequence[Chunk], count: int) -> Clips:
    """The first `count` clips of some chunks in memory, made where they are missing."""
    loaded = [load_chunk(folder, chunk) for chunk in chunks]
    return Clips(
        frames=np.concatenate([clips.frames for clips in loaded])[:count],
        states=np.concatenate([clips.states for clips in loaded])[:count],
        facts=[fact for clips in loaded for fact in clips.facts][:count],
    )


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write a plain .npy, whole and durable."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    replace(path.parent, path, buffer.getbuffer())

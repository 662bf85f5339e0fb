"""Scenes of the worldlet as plain files: pictures, questions with answers, and the true futures.

Lives here: the questions of a scene and the folder layout. Elsewhere: layout, physics and picture of
one scene (buckets.py). Each scene asks one question about the future and three about the present, on
the same things and with the same words, so that more tokens alone cannot pass for a seen future.

    images/<scene>.png       frame 0, all that a reader may see
    futures/<scene>.npy      all 33 frames, (33, 64, 64, 3) uint8, with `videos=True` only
    questions.jsonl          one record a line; written last, so it marks a whole folder
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from .buckets import BINS, COLORS, SPLITS, VERSION, Scene, make_scene, scene_id

__all__ = ["SPLITS", "VERSION", "Scene", "make_scene", "scene_questions", "write_scenes"]

_COUNTS = ("one", "two", "three")
_FAMILIES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "land": (
        "temporal",
        BINS,
        (
            "where will the ball land?",
            "in which bin will the ball land?",
            "where will the ball end up?",
            "which bin will the ball come to rest in?",
        ),
    ),
    "below": (
        "static",
        BINS,
        (
            "which bin is directly below the ball now?",
            "which bin is the ball above now?",
            "what bin is under the ball at the start?",
        ),
    ),
    "color": (
        "static",
        tuple(COLORS),
        ("what color is the ball?", "which color does the ball have?", "what is the color of the ball?"),
    ),
    "count": (
        "static",
        _COUNTS,
        ("how many ramps are there?", "how many ramps can you see?", "what is the number of ramps?"),
    ),
}


def scene_questions(scene: Scene, split: str) -> list[dict[str, object]]:
    """The four question records of a scene; wording and order of choices depend on its id alone."""
    answers = {
        "land": scene.answer,
        "below": scene.bin_below,
        "color": scene.layout.color,
        "count": _COUNTS[len(scene.layout.ramps) - 1],
    }
    rng = np.random.default_rng([VERSION, *scene.id.encode()])
    records: list[dict[str, object]] = []
    for family, (kind, choices, templates) in _FAMILIES.items():
        records.append(
            {
                "id": f"{scene.id}-{family}",
                "image": f"images/{scene.id}.png",
                "question": templates[rng.integers(len(templates))],
                "answer": answers[family],
                "choices": [choices[i] for i in rng.permutation(len(choices))],
                "type": kind,
                "split": split,
                "scene": scene.id,
            }
        )
    return records


def write_scenes(folder: Path, *, splits: Mapping[str, int], seed: int = 0, videos: bool = False) -> Path:
    """Write `splits[name]` scenes of each split into one folder; returns the path of `questions.jsonl`.

    The same arguments give the same bytes. Files already there are kept as they are, so a run that was
    cut short goes on where it stopped. `splits` may grow later; `questions.jsonl` is then written anew.

    Args:
        splits: scenes per split, for example `{"train": 400, "test": 200}`; names from `SPLITS`.
        seed: another seed gives other scenes, with other ids.
        videos: also write the true futures.
    Raises:
        ValueError: an unknown split, or a negative count.
    """
    for split, count in splits.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"splits are {SPLITS} with counts >= 0, got {split!r}: {count}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if videos:
        (folder / "futures").mkdir(exist_ok=True)
    lines = []
    for split, records in _write_all(folder, splits, seed, videos):
        lines += [json.dumps({**record, "split": split}, sort_keys=True) for record in records]
    path = folder / "questions.jsonl"
    _write(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def _write_all(
    folder: Path, splits: Mapping[str, int], seed: int, videos: bool
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Write what is missing, and yield every scene's records in order."""
    known = _known_records(folder / "questions.jsonl")
    for split in sorted(splits, key=SPLITS.index):
        for index in range(splits[split]):
            name = scene_id(index, split, seed=seed)
            image, future = folder / "images" / f"{name}.png", folder / "futures" / f"{name}.npy"
            if name in known and image.exists() and (future.exists() or not videos):
                yield split, known[name]
                continue
            scene = make_scene(index, split, seed=seed)
            if not image.exists():
                buffer = io.BytesIO()
                Image.fromarray(scene.frames[0]).save(buffer, "PNG")
                _write(image, buffer.getvalue())
            if videos and not future.exists():
                buffer = io.BytesIO()
                np.save(buffer, scene.frames, allow_pickle=False)
                _write(future, buffer.getvalue())
            yield split, scene_questions(scene, split)


def _known_records(path: Path) -> dict[str, list[dict[str, object]]]:
    """Records by scene from an earlier complete run, if there was one."""
    known: dict[str, list[dict[str, object]]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            known.setdefault(record["scene"], []).append(record)
    return known


def _write(path: Path, data: bytes) -> None:
    """Write beside the place, then rename into it; a file that already holds `data` is left alone."""
    if path.exists() and path.read_bytes() == data:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)

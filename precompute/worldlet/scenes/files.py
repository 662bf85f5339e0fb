"""Scenes as plain files: pictures, questions with answers, and the true futures.

images/<scene>.png     frame 0, all that a reader may see
futures/<scene>.mp4    all 33 frames, lossless, with `videos=True` only
scenes.jsonl           the truth of every scene: layout, states over time, how it ends and when
questions.jsonl        one record a line; written last, so it marks a whole folder
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from ....pipeline.errors import ConfigError
from ....pipeline.files.atomic import replace
from ....pipeline.files.places.local import require_local
from ....pipeline.files.tables.text import read_lines
from ....pipeline.progress import Progress
from .physics import FPS
from .scenes import FAMILIES, SPLITS, VERSION, Scene, make_pair, questions, require_families

QUESTIONS, TRUTH = "questions.jsonl", "scenes.jsonl"

Unit = tuple[str, str, int, int]
"""Split, family, number of the pair, and how many of its halves are wanted."""


def write_scenes(
    folder: Path,
    *,
    splits: Mapping[str, int],
    seed: int = 0,
    families: Sequence[str] = tuple(FAMILIES),
    videos: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Write `splits[name]` scenes of each split into one folder; returns the path of `questions.jsonl`.

    Families take turns, pair by pair. The same arguments give the same pictures and records. Files already there are
    kept, so a run that was cut short goes on where it stopped; `splits` may grow later.

    Args:
        splits: scenes per split, for example `{"train": 400, "test": 200}`; an odd number leaves out half a pair.
        seed: another seed gives other scenes, with other names.
        videos: also write the true futures, about 15 KB each.
        jobs: processes.
    Raises:
        ConfigError: an unknown split or family, a negative count or seed, or scenes of another version, or questions of
            somebody else, in this folder.
    """
    folder = require_local(folder)
    if bad := [name for name in splits if name not in SPLITS[1:] or splits[name] < 0]:
        raise ConfigError(f"no scenes of split {bad[0]!r}: splits are {', '.join(SPLITS[1:])}, with counts >= 0")
    require_families(families)
    if seed < 0:
        raise ConfigError(f"the seed of scenes is 0 or more, got {seed}")
    finished = _read_finished(folder, videos)
    for name in ("images", *(["futures"] if videos else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    units: list[Unit] = []
    for split in sorted(splits, key=SPLITS.index):
        for turn in range((splits[split] + 1) // 2):
            halves = min(2, splits[split] - 2 * turn)
            units.append((split, families[turn % len(families)], turn // len(families), halves))
    new = [unit for unit in units if any(name not in finished for name in _names(unit, seed))]
    scene_count = sum(halves for *_, halves in new)
    reporter = progress if progress is not None and new else Progress.silent()
    with reporter.bar("scenes", total=scene_count, unit="scenes") as bar:
        for records in _run(partial(_write_pair, folder=folder, seed=seed, videos=videos), new, jobs):
            for truth, scene_questions in records:
                finished[truth["id"]] = (truth, scene_questions)
            bar.advance(len(records))
    names = [name for unit in units for name in _names(unit, seed)]
    _write(folder / TRUTH, "".join(f"{json.dumps(finished[name][0])}\n" for name in names).encode())
    lines = [json.dumps(record, sort_keys=True) for name in names for record in finished[name][1]]
    path = folder / QUESTIONS
    _write(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def _names(unit: Unit, seed: int) -> list[str]:
    split, family, number, halves = unit
    name = f"{split}-{family}" if seed == 0 else f"{split}-s{seed}-{family}"
    return [f"{name}-{2 * number + half:06d}" for half in range(halves)]


def _run(work: Any, units: list[Unit], jobs: int) -> Iterator[Any]:
    if jobs <= 1 or len(units) < 2 * jobs:
        yield from map(work, units)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, units, chunksize=max(1, min(16, len(units) // (4 * jobs))))


def _write_pair(unit: Unit, *, folder: Path, seed: int, videos: bool) -> list[tuple[dict[str, Any], list[Any]]]:
    split, family, number, halves = unit
    return [_write_scene(folder, scene, videos) for scene in make_pair(family, number, split, seed=seed)[:halves]]


def _write_scene(folder: Path, scene: Scene, videos: bool) -> tuple[dict[str, Any], list[dict[str, object]]]:
    scene_questions = questions(scene)
    truth = {
        "id": scene.id,
        "version": VERSION,
        "family": scene.family,
        "split": scene.split,
        "pair": scene.pair,
        "shift": scene.shift,
        "heuristic": scene.heuristic,
        "answer": scene.answer,
        "event_frame": scene.event,
        "contacts": scene.contacts,
        "layout": asdict(scene.layout),
        "states": scene.states.round(3).tolist(),
    }
    if scene.chances:
        truth |= {"push": round(scene.push, 6), "chances": scene.chances}
    if videos:
        from ...media.video_writing import write_video

        frames = scene.frames()
        picture = frames[0]
        future = f"futures/{scene.id}.mp4"
        if not (folder / future).exists():
            write_video(folder / future, frames, FPS)
        scene_questions = [{**record, "future": future} for record in scene_questions]
    else:
        picture = scene.picture()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    _write(folder / "images" / f"{scene.id}.png", buffer.getvalue())
    return truth, scene_questions


def _read_finished(folder: Path, videos: bool) -> dict[str, tuple[dict[str, Any], list[dict[str, object]]]]:
    """What an earlier complete run wrote, by scene, where it is all there.

    Raises:
        ConfigError: files that have these names, and are of somebody else, are there.
    """
    finished: dict[str, tuple[dict[str, Any], list[dict[str, object]]]] = {}
    questions_by_scene: dict[str, list[dict[str, object]]] = {}
    # each is read also where the other is missing: files of the user's own are refused, not overwritten
    for record in _records(folder / QUESTIONS, "scene") if (folder / QUESTIONS).exists() else ():
        questions_by_scene.setdefault(record["scene"], []).append(record)
    for truth in _records(folder / TRUTH, "id", "version") if (folder / TRUTH).exists() else ():
        if truth["version"] != VERSION:
            raise ConfigError(
                f"{folder} holds scenes of version {truth['version']}; this release makes version {VERSION}. "
                "Choose another folder: stores and results made from the old ones still refer to them"
            )
        records = questions_by_scene.get(truth["id"], [])
        whole = (folder / "images" / f"{truth['id']}.png").exists() and bool(records)
        if videos:
            whole = whole and all((folder / str(record.get("future", "-"))).exists() for record in records)
        if whole:
            finished[truth["id"]] = (truth, records)
    return finished


def best_possible(folder: Path) -> dict[str, dict[str, float]]:
    """How often the best possible reader of frame 0 answers the temporal question right: split -> open family -> share.

    It knows the generator and gives each scene its likeliest answer. Nothing of families whose frame 0 decides.

    Raises:
        ConfigError: as `read_truth`.
    """
    chances: dict[str, dict[str, list[float]]] = {}
    for truth in read_truth(folder):
        if truth.get("chances"):
            chances.setdefault(truth["split"], {}).setdefault(truth["family"], []).append(
                max(truth["chances"].values())
            )
    return {
        split: {family: round(sum(shares) / len(shares), 4) for family, shares in by_family.items()}
        for split, by_family in chances.items()
    }


def read_truth(folder: Path) -> list[dict[str, Any]]:
    """All records of `scenes.jsonl`, in order.

    Raises:
        ConfigError: it is not what `write_scenes` wrote.
    """
    return _records(folder / TRUTH, "id", "version")


def _records(file: Path, *names: str) -> list[dict[str, Any]]:
    """The records of a file, one a line; each has these names, and text under the first."""
    records: list[dict[str, Any]] = []
    names_of = set(names)
    try:
        for number, (_, line) in enumerate(read_lines(file), start=1):
            record = json.loads(line or "")
            if not isinstance(record, dict) or not names_of <= record.keys() or not isinstance(record[names[0]], str):
                raise ValueError(f"line {number} is no record with {' and '.join(names)}")
            records.append(record)
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(
            f"{file} is not what `theworld scenes` wrote: {why}. Choose another folder, or remove this file to make "
            "the scenes again"
        ) from error
    return records


def _write(path: Path, data: bytes) -> None:
    """The file appears whole, or is left alone where it holds `data`. Not durable: see `replace`."""
    if not path.exists() or path.read_bytes() != data:
        replace(path.parent, path, data, durable=False)

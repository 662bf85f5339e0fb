"""A store of rollouts, one of true futures, and questions with scenes, families and minimal pairs: for arms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.store.folder import LatentStore, create_store

from .lm import PLACES, RECIPE, SPEC, blob_latents

FAMILIES = ("drop", "roll")
FUTURES = RECIPE.model_copy(update={"seed": 1})
"""Of the store of futures: as good as encoded videos, of the same latent space."""


def place_of(number: int) -> int:
    """Where the blob of a scene truly ends; the halves of a pair differ."""
    return (number + number // 2) % 2


def save_mini_study(
    folder: Path, *, train: int = 16, test: int = 16, ood: int = 8, wrong: int = 4
) -> tuple[LatentStore, LatentStore, Path]:
    """Rollouts (every `wrong`-th ends at the wrong place), true futures, and the questions file."""
    splits = [split for split, count in (("train", train), ("test", test), ("ood", ood)) for _ in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    stores = (
        create_store(folder / "rollouts", RECIPE, SPEC, label="mini", shard_size=64),
        create_store(folder / "futures", FUTURES, SPEC, label="mini", shard_size=64),
    )
    rows: list[list[tuple[str, bytes, np.ndarray]]] = [[], []]
    lines = []
    for number, split in enumerate(splits):
        place = place_of(number)
        shown = 1 - place if wrong and number % wrong == 0 else place
        scene = f"{split}-{number}"
        rows[0].append((f"{scene}.png", f"picture {number}".encode(), blob_latents(shown, number)))
        rows[1].append((f"{scene}.mp4", f"video {number}".encode(), blob_latents(place, number + 1000)))
        about = {
            "scene": scene,
            "image": f"{scene}.png",
            "future": f"{scene}.mp4",
            "family": FAMILIES[number // 2 % 2],
            "split": split,
            "pair": f"{number // 2}p",
            "heuristic": PLACES[0],
            "shift": "far" if split == "ood" else "",
        }
        lines += [
            {
                **about,
                "id": f"{scene}-land",
                "about": "land",
                "type": "temporal",
                "question": "where will the ball land?",
                "answer": PLACES[place],
                "choices": list(PLACES[:2]),
            },
            {
                **about,
                "id": f"{scene}-now",
                "about": "now",
                "type": "static",
                "question": "where is the ball now?",
                "answer": PLACES[2],
                "choices": list(PLACES[1:]),
            },
        ]
    for store, written in zip(stores, rows, strict=True):
        for first in range(0, len(written), 64):
            with store.new_shard() as shard:
                for name, content, latents in written[first : first + 64]:
                    (folder / name).write_bytes(content)
                    shard.add(key_of_bytes(content), latents)
                shard.commit({})
        store.record_sources([(name, key_of_bytes(content)) for name, content, _ in written])
    questions = folder / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return *stores, questions


def save_mini_draws(folder: Path, *, scenes: int = 32, seconds: float | None = None, **changes: object) -> LatentStore:
    """Three draws of each scene of the mini study; the first ends elsewhere in a quarter of them, as its rollout.

    Args:
        seconds: that a worker needed for all draws of an image, by the store's records.
    """
    recipe = RECIPE.model_copy(update={"kind": "samples", "draws": 3, "rollout_steps": 9, **changes})
    store = create_store(folder, recipe, SPEC, label="mini", shard_size=64)
    with store.new_shard() as shard:
        for number in range(scenes):
            place = place_of(number)
            ends = (1 - place if number % 4 == 0 else place, place, place)
            draws = [blob_latents(end, number) for end in ends]
            futures = [draw[:, 1 : 1 + recipe.rollout_steps // recipe.draws] for draw in draws[: recipe.draws]]
            shard.add(key_of_bytes(f"picture {number}".encode()), np.concatenate([draws[0][:, :1], *futures], 1))
        shard.commit({} if seconds is None else {"seconds": {"rollout": seconds * scenes}})
    return store

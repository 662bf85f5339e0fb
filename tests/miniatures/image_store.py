"""A store made from images by a miniature world of the real classes, in this process, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute

from ..permissions import put_row


def make_images(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def make_store(inputs: Path, cache: Path, world: Path, **changes: Any) -> LatentStore:
    fields: dict[str, Any] = {
        "images": inputs,
        "cache": cache,
        "world": str(world),
        "steps": 2,
        "size": "32x32",
        "denoise_steps": 3,
        "compute_dtype": "float32",
        "device": "cpu",
        "in_process": True,
        "batch_size": 4,
        "shard_size": 4,
    }
    fields = {name: value for name, value in (fields | changes).items() if value is not None}
    return open_store(run_precompute(PrecomputeConfig(**fields)).store)


def tamper(store: LatentStore, key: str, change: float) -> None:
    """Add to one value of a latent, and seal everything again so that no checksum knows."""
    row = store.row_of(key)
    values = store.read([key])[0].copy()
    values[3, -1, 1, 2] += np.asarray(change, values.dtype)
    written = store.layout.new_row()
    crcs = store.layout.encode(key, values, written)
    put_row(store, row // store.shard_size, row % store.shard_size, written.tobytes(), crcs)

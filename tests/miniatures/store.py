"""A store small enough to write in milliseconds, and what it should hold."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store

SPEC = LatentSpec(channels=3, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 3, std=(1.0,) * 3)
TINY = Recipe(world="sha256:" + "0" * 64, height=16, width=32, rollout_steps=2)
"""Latents of shape (3, 3, 2, 4): rows of three frames of 48 bytes, and 4 of checksum."""
FRAME_BYTES, ROW_BYTES = 48, 3 * 48 + 4


def key(number: int) -> str:
    return f"{number:032x}"


def latent(number: int, shape: tuple[int, ...] = (3, 3, 2, 4)) -> NDArray[np.float32]:
    """Of values every stored dtype holds exactly."""
    return np.random.default_rng(number).integers(-2048, 2048, shape).astype(np.float32) / 256


def create(
    cache: Path,
    *,
    shard_size: int = 4,
    recipe: Recipe = TINY,
    spec: LatentSpec = SPEC,
    format: StoreFormat | None = None,
) -> LatentStore:
    return create_store(cache, recipe, spec, label="tiny", shard_size=shard_size, format=format)


def write(store: LatentStore, numbers: range | list[int]) -> None:
    with store.new_shard() as shard:
        for number in numbers:
            shard.add(key(number), latent(number, store.sample_shape))
        shard.commit({"host": "here"})


def fill(store: LatentStore, count: int) -> None:
    for start in range(0, count, store.shard_size):
        write(store, range(start, min(count, start + store.shard_size)))
    store.publish()


def expected(store: LatentStore, numbers: range | list[int]) -> NDArray[Any]:
    return np.stack([latent(number, store.sample_shape) for number in numbers]).astype(store.dtype)


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)

"""Ways to read and write latents, with a store and with numpy: in batches, and through a whole epoch."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, Dataset

from theworld.pipeline import LatentSpec, Recipe, create_store, open_store
from theworld.train import BatchSampler, LatentDataset, Prefetcher

from .store_peers import SHARD, Batches, Read, Rows, Samples, key

BATCH, PREFIX, FRAMES = 32, 3, 9
Figures = dict[str, Any]


def make_samples(count: int, pixels: int) -> Samples:
    """(count, 16, 9, pixels / 8, pixels / 8): any bits that are finite, as nothing here compresses."""
    shape = (count, 16, FRAMES, pixels // 8, pixels // 8)
    bits = np.frombuffer(np.random.default_rng(0).bytes(2 * int(np.prod(shape))), np.uint16)
    return (bits & 0xBFFF).view(np.float16).reshape(shape)


def batches_of(rows: Rows) -> Iterable[Rows]:
    return np.split(rows, range(BATCH, len(rows), BATCH))


def sync(folder: Path, *, advise: int = os.POSIX_FADV_NORMAL) -> None:
    """Write the files below a folder out."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, advise)
            os.close(descriptor)


def evict(folder: Path) -> None:
    """Drop them from the page cache, too; what somebody maps stays."""
    sync(folder, advise=os.POSIX_FADV_DONTNEED)


def write_ours(folder: Path, samples: Samples, format: Literal["zarr", "webdataset"] = "zarr") -> None:
    pixels = 8 * samples.shape[-1]
    spec = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
    recipe = Recipe(world="sha256:" + "0" * 64, height=pixels, width=pixels, rollout_steps=FRAMES - 1)
    store = create_store(folder, recipe, spec, label="benchmark", shard_size=SHARD, format=format)
    for start in range(0, len(samples), SHARD):
        with store.new_shard() as shard:
            for row, latent in enumerate(samples[start : start + SHARD], start):
                shard.add(key(row), latent)
            shard.commit({})
    store.publish()


_buffers: dict[tuple[Path, int], Any] = {}


def open_rows(folder: Path, _: tuple[int, ...]) -> Read:
    store = open_store(folder)

    def read(rows: Rows, frames: int) -> Samples:
        if (folder, frames) not in _buffers:  # outlives the store, as a trainer's would
            _buffers[folder, frames] = store.buffer(BATCH, rollout_steps=frames - 1)
        return store.read_rows(rows, _buffers[folder, frames])

    return read


def open_keys(folder: Path, _: tuple[int, ...]) -> Read:
    store = open_store(folder)
    keys = [key(row) for row in range(len(store))]
    return lambda rows, frames: store.read([keys[row] for row in rows.tolist()], rollout_steps=frames - 1)


def write_memmap(folder: Path, samples: Samples) -> None:
    """One file a shard, as everybody else."""
    for start in range(0, len(samples), SHARD):
        part = samples[start : start + SHARD]
        file = np.memmap(folder / f"{start // SHARD:06d}.bin", np.float16, "w+", shape=part.shape)
        for place, latent in enumerate(part):
            file[place] = latent
        file.flush()


def write_one_memmap(folder: Path, samples: Samples) -> None:
    np.save(folder / "latents.npy", samples)


def _memmap(folder: Path) -> Samples:
    return np.load(folder / "latents.npy", mmap_mode="r")


def open_memmap(folder: Path, _: tuple[int, ...]) -> Read:
    latents = _memmap(folder)
    return lambda rows, frames: latents[rows, :, :frames]


def open_memmap_take(folder: Path, shape: tuple[int, ...]) -> Read:
    latents = _memmap(folder)
    outs = {frames: np.empty((BATCH, shape[0], frames, *shape[2:]), np.float16) for frames in (PREFIX, FRAMES)}

    def read(rows: Rows, frames: int) -> Samples:
        if frames == FRAMES:  # "clip": with the default mode numpy fills a copy of `out` first
            return np.take(latents, rows, 0, out=outs[frames], mode="clip")
        for out, row in zip(outs[frames], rows.tolist(), strict=True):  # of a slice, take would copy all of it first
            out[...] = latents[row, :, :frames]
        return outs[frames]

    return read


class _Batches(Dataset[Any]):
    """A memmap as whole batches."""

    def __init__(self, folder: Path) -> None:
        self.latents = _memmap(folder)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, rows: list[int]) -> tuple[Rows, Samples]:
        return np.array(rows), self.latents[rows]


def epochs_of_memmap(folder: Path) -> Callable[[], Batches]:
    loader = DataLoader(_Batches(folder), BATCH, shuffle=True, collate_fn=lambda batch: batch)
    return lambda: iter(loader)


def epochs_of_ours(folder: Path) -> Callable[[], Batches]:
    dataset = LatentDataset(open_store(folder))

    def epoch() -> Batches:
        rows = list(batches_of(np.random.permutation(len(dataset))))  # made before: a DataLoader tells nobody its rows
        loader = DataLoader(dataset, batch_sampler=[part.tolist() for part in rows], collate_fn=LatentDataset.collate)
        return ((part, batch.numpy()) for part, batch in zip(rows, loader, strict=True))

    return epoch


def epochs_of_prefetcher(folder: Path) -> Callable[[], Batches]:
    dataset = LatentDataset(open_store(folder))

    def epoch() -> Batches:
        order = BatchSampler(len(dataset), batch_size=BATCH, seed=random.randrange(2**31), epochs=1)
        with Prefetcher(dataset, order) as batches:
            for rows, latents in batches:
                yield np.asarray(rows), latents.numpy()

    return epoch

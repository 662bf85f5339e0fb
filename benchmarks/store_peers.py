"""Other libraries' formats for benchmarks/store.py, each written and read in the fastest way that it documents."""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float16]
"""(B, C, T, H, W)"""
Rows = NDArray[np.int64]
Read = Callable[[Rows, int], Samples]
"""(rows, frames) -> the first frames of these rows"""
Batches = Iterator[tuple[Rows, Samples]]
"""(rows, samples) in batches of 32, each row once, shuffled"""
OpenEpochs = Callable[[Path], Callable[[], Batches]]
"""folder -> what starts an epoch"""

SHARD = 256
"""Samples a file, where a peer lets one choose."""
_CHUNK_BYTES = 2**26
"""Of a file, where it does not."""


@dataclass(frozen=True)
class Way:
    """One way to read chosen rows from disk."""

    name: str
    folder: str
    """Ways that share files share its name; the first of them writes it."""
    open: Callable[[Path, tuple[int, ...]], Read]
    """(folder, (C, T, H, W)) -> reader"""
    write: Callable[[Path, Samples], None] | None = None
    reopen: Literal["never", "cold", "always"] = "never"
    """Before which slices; "cold" for readers that map their files: mapped pages cannot be evicted."""


def key(row: int) -> str:
    return hashlib.sha256(row.to_bytes(8, "little")).hexdigest()[:32]


def peers() -> list[Way]:
    return [
        Way("zarr-python, chunk a sample", "zarr", open_zarr_python, write_zarr),
        Way("tensorstore, chunk a sample", "zarr", open_tensorstore),
        Way("MDS, LocalDataset", "mds", open_mds, write_mds),
        Way("LitData, StreamingDataset[row]", "litdata", open_litdata, write_litdata, reopen="cold"),
        Way("Lance, take", "lance", open_lance, write_lance),
        Way("HF datasets, numpy format", "hf", open_hf, write_hf, reopen="cold"),
    ]


def streams() -> dict[str, tuple[str, OpenEpochs]]:
    """Of the same folders, by name; WebDataset reads the tars of ours."""
    return {
        "WebDataset, shuffle(1000)": ("ours-webdataset", stream_webdataset),
        "MDS, StreamingDataset": ("mds", stream_mds),
        "LitData, StreamingDataset": ("litdata", stream_litdata),
    }


def write_zarr(folder: Path, samples: Samples) -> None:
    import zarr

    array = zarr.create_array(
        folder, shape=samples.shape, shards=(SHARD, *samples.shape[1:]), chunks=(1, *samples.shape[1:]),
        dtype="float16", compressors=None, filters=None,
    )  # fmt: skip
    array[:] = samples


def open_zarr_python(folder: Path, _: tuple[int, ...]) -> Read:
    import zarr

    array: Any = zarr.open_array(folder, mode="r")
    # an index list on a sharded array is forty times slower than this loop
    return lambda rows, frames: np.stack([array[int(row), :, :frames] for row in rows])


def open_tensorstore(folder: Path, shape: tuple[int, ...]) -> Read:
    import tensorstore

    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder)},
        "context": {"cache_pool": {"total_bytes_limit": 4 * 2**20}},  # else decoded samples come from its cache
    }
    array = tensorstore.open(spec, open=True, read=True).result()
    out = np.empty((0, *shape), np.float16)

    def read(rows: Rows, frames: int) -> Samples:
        nonlocal out
        wanted = (len(rows), shape[0], frames, *shape[2:])
        if out.shape != wanted:
            out = np.empty(wanted, np.float16)
        tensorstore.array(out).write(array[rows, :, :frames]).result()  # faster than .read(): no fresh memory
        return out

    return read


def write_mds(folder: Path, samples: Samples) -> None:
    encoding = f"ndarray:float16:{','.join(map(str, samples.shape[1:]))}"
    with mosaicml_streaming().MDSWriter(out=str(folder), columns={"row": "int", "latent": encoding}) as writer:
        for row, latent in enumerate(samples):
            writer.write({"row": row, "latent": latent})


def open_mds(folder: Path, _: tuple[int, ...]) -> Read:
    dataset = mosaicml_streaming().LocalDataset(local=str(folder))
    return lambda rows, frames: np.stack([dataset[int(row)]["latent"][:, :frames] for row in rows])


def stream_mds(folder: Path) -> Callable[[], Batches]:
    module = mosaicml_streaming()
    module.base.util.clean_stale_shared_memory()  # of the one opened before
    dataset = module.StreamingDataset(local=str(folder), shuffle=True, batch_size=32, num_canonical_nodes=1)
    return lambda: in_batches((sample["row"], sample["latent"]) for sample in dataset)


def write_litdata(folder: Path, samples: Samples) -> None:
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=_CHUNK_BYTES)
    for row, latent in enumerate(samples):
        cache._add_item(row, {"row": row, "latent": latent})
    cache.done()
    cache.merge(1)


def open_litdata(folder: Path, _: tuple[int, ...]) -> Read:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder), batch_decode=0)  # its default decodes neighbours, unasked
    return lambda rows, frames: np.stack([dataset[int(row)]["latent"][:, :frames] for row in rows])


def stream_litdata(folder: Path) -> Callable[[], Batches]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, batch_decode=0)
    return lambda: in_batches((sample["row"], sample["latent"]) for sample in dataset)


def write_lance(folder: Path, samples: Samples) -> None:
    import lance
    import pyarrow

    table = pyarrow.table({"latent": pyarrow.array([latent.tobytes() for latent in samples], pyarrow.large_binary())})
    lance.write_dataset(table, str(folder))  # as bytes: 1.5 times as fast as a fixed-size list


def open_lance(folder: Path, shape: tuple[int, ...]) -> Read:
    import lance

    dataset = lance.dataset(str(folder))

    def read(rows: Rows, frames: int) -> Samples:
        column = dataset.take(rows.tolist()).column(0)
        latents = [np.frombuffer(value.as_buffer(), np.float16).reshape(shape)[:, :frames] for value in column]
        return np.stack(latents)

    return read


def write_hf(folder: Path, samples: Samples) -> None:
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(samples.reshape(-1)), samples[0].size)
    datasets.Dataset(pyarrow.table({"latent": flat})).save_to_disk(folder)


def open_hf(folder: Path, shape: tuple[int, ...]) -> Read:
    import datasets

    # with its dtype: the format makes float32 else. A fixed-size list: its Array4D type is ten times slower
    dataset: Any = datasets.load_from_disk(folder).with_format("numpy", dtype=np.float16)
    return lambda rows, frames: dataset[rows]["latent"].reshape(-1, *shape)[:, :, :frames]


def stream_webdataset(folder: Path) -> Callable[[], Batches]:
    import webdataset

    files = sorted(map(str, folder.glob("*/shards/*.tar")))
    dataset = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False).shuffle(1000)
    row_of = {key(row): row for row in range(SHARD * len(files))}
    decode = np.lib.format.read_array
    return lambda: in_batches(
        (row_of[sample["__key__"]], decode(io.BytesIO(sample["npy"]), allow_pickle=False)) for sample in dataset
    )


def in_batches(samples: Iterator[tuple[int, NDArray[Any]]]) -> Batches:
    """Of rows one by one."""
    while batch := list(itertools.islice(samples, 32)):
        rows, latents = zip(*batch, strict=True)
        yield np.array(rows), np.stack(latents)


def mosaicml_streaming() -> Any:
    """mosaicml-streaming. Its picture classes import torchvision, whose wheels fit one build of torch; unused here."""
    if "streaming" not in sys.modules:
        from transformers.feature_extraction_utils import BatchFeature  # noqa: F401 - looks for torchvision in earnest

        stand_ins = {name: types.ModuleType(name) for name in _TORCHVISION}
        stand_ins["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        stand_ins["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
        sys.modules.update(stand_ins)
        import streaming  # noqa: F401

        for name in stand_ins:
            del sys.modules[name]
    return sys.modules["streaming"]


_TORCHVISION = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")

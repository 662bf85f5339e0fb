"""Stores in the Zarr layout, opened by programs that know nothing of theworld: zarr-python, tensorstore, xarray."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numpy.typing import NDArray

from tests import interop
from tests.interop import DTYPES, Dtype, every_number, same_bits, write_all
from tests.miniatures.store import expected, fill, flip, key, write
from tests.patience import patience
from theworld.pipeline.store.folder import LatentStore

AXES = ("sample", "channel", "time", "y", "x")

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def store_of(cache: Path, dtype: Dtype) -> LatentStore:
    return interop.store_of(cache, dtype, "zarr")


def with_zarr(store: LatentStore) -> NDArray[Any]:
    array = zarr.open(store.path, mode="r")["latents"]
    assert isinstance(array, zarr.Array)
    assert array.metadata.dimension_names == AXES
    return np.asarray(array[...])


def with_tensorstore(store: LatentStore) -> NDArray[Any]:
    return tensorstore_of(store).read().result()


def tensorstore_of(store: LatentStore) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / "latents")}}
    opened = tensorstore.open(spec, read=True).result()
    assert opened.domain.labels == AXES
    return opened


def with_xarray(store: LatentStore) -> NDArray[Any]:
    latents = xarray_of(store)
    assert latents.dims == AXES
    return latents.values


def xarray_of(store: LatentStore) -> xarray.DataArray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xarray.open_zarr(store.path, chunks=None)["latents"]


each_reader = pytest.mark.parametrize("read", [with_zarr, with_tensorstore, with_xarray])
Read = Callable[[LatentStore], NDArray[Any]]


def nan_rows(store: LatentStore, count: int) -> NDArray[Any]:
    return np.full((count, *store.sample_shape), np.nan, store.dtype)


@each_reader
@each_dtype
def test_others_read_the_bits_we_wrote(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    fill(store, 10)  # shards of 4, 4 and 2
    found = read(store)
    assert found.shape == (10, 16, 5, 4, 6)
    assert found.dtype == np.dtype(dtype)
    same_bits(found, expected(store, range(10)))
    same_bits(found, store.read([key(number) for number in range(10)]))


@each_reader
@each_dtype
def test_every_finite_number_keeps_its_bits(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    write_all(store, every_number(dtype))
    same_bits(read(store), every_number(dtype))


@each_reader
@each_dtype
def test_rows_of_shards_that_are_not_full_are_nan(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    write(store, [0])
    write(store, range(1, 5))
    write(store, [5, 6])
    store.publish()
    found = read(store)
    same_bits(found[[0, 4, 5, 6, 7, 8, 9]], expected(store, range(7)))
    same_bits(found[1:4], nan_rows(store, 3))
    assert len(found) == 10


@each_reader
@each_dtype
def test_a_shard_number_nobody_committed_is_rows_of_nan(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    write(store, range(4))
    with store.new_shard(2) as shard:
        shard.add(key(4), expected(store, [4])[0])
        shard.commit({})
    store.publish()
    found = read(store)
    same_bits(found[[0, 1, 2, 3, 8]], expected(store, range(5)))
    same_bits(found[4:8], nan_rows(store, 4))
    assert len(found) == 9


@each_reader
@each_dtype
def test_what_others_see_grows_with_every_publish_and_keeps_its_rows(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    assert read(store).shape == (0, 16, 5, 4, 6)
    fill(store, 3)
    same_bits(read(store), expected(store, range(3)))
    write(store, range(3, 6))
    same_bits(read(store), expected(store, range(3)))  # committed, not yet published
    store.publish()
    found = read(store)
    same_bits(found[[0, 1, 2, 4, 5, 6]], expected(store, range(6)))
    same_bits(found[3:4], nan_rows(store, 1))
    assert len(found) == 7


def test_an_array_opened_before_more_shards_keeps_reading_its_rows(tmp_path: Path) -> None:
    store = store_of(tmp_path, "bfloat16")
    fill(store, 6)
    by_zarr = zarr.open(store.path, mode="r")["latents"]
    by_tensorstore = tensorstore_of(store)
    write(store, range(6, 10))
    store.publish()
    assert isinstance(by_zarr, zarr.Array)
    for found in (np.asarray(by_zarr[...]), by_tensorstore.read().result()):
        same_bits(found, expected(store, range(6)))


@each_dtype
def test_single_frames_and_prefixes_are_read_alone(tmp_path: Path, dtype: Dtype) -> None:
    store = store_of(tmp_path, dtype)
    fill(store, 6)
    wanted = expected(store, range(6))
    by_zarr = zarr.open(store.path, mode="r")["latents"]
    assert isinstance(by_zarr, zarr.Array)
    assert by_zarr.chunks == (1, 16, 5, 4, 6), "a task a sample"
    same_bits(np.asarray(by_zarr[5, :, :3]), wanted[5, :, :3])
    same_bits(tensorstore_of(store)[5, :, :3].read().result(), wanted[5, :, :3])
    same_bits(xarray_of(store).isel(sample=5, time=slice(0, 3)).values, wanted[5, :, :3])


@each_dtype
def test_xarray_calculates_with_latents_by_their_axes(tmp_path: Path, dtype: Dtype) -> None:
    store = store_of(tmp_path, dtype)
    write(store, [0])
    write(store, range(1, 4))
    store.publish()
    latents = xarray_of(store)
    assert dict(latents.sizes) == {"sample": 7, "channel": 16, "time": 5, "y": 4, "x": 6}
    values = latents.values
    change = latents.isel(time=slice(1, None)) - latents.isel(time=0)
    same_bits(change.values, values[:, :, 1:] - values[:, :, :1])
    same_bits((latents * 2 + 1).values, values * 2 + 1)
    # NaN-aware reductions know numpy's own dtypes only; float32 holds every bfloat16 exactly
    mean = latents.astype("float32").mean(["sample", "y", "x"])
    assert mean.dims == ("channel", "time")
    np.testing.assert_allclose(
        mean.values, expected(store, range(4)).astype(np.float64).mean((0, 3, 4)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (with_zarr, "checksum"),
        (with_xarray, "checksum"),
        (with_tensorstore, "Digest mismatch"),
    ],
)
def test_others_notice_a_flipped_bit(tmp_path: Path, read: Read, words: str) -> None:
    store = store_of(tmp_path, "bfloat16")
    fill(store, 4)
    flip(store.payload_path(0), 1000)
    with pytest.raises(ValueError, match=words):
        read(store)


def test_our_stores_need_none_of_the_readers() -> None:
    others = {"zarr", "tensorstore", "xarray", "webdataset", "datasets", "pandas", "pyarrow"}
    code = f"import sys, theworld.pipeline.store.folder; print(*sorted({others!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(120))
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")

"""Stores written by every version there was: each later one reads them to the bit, and can add to them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.pipeline.store.folder import create_store, open_store
from theworld.pipeline.store.formats.base import STORED_DTYPES
from theworld.pipeline.store.keys.index import SNAPSHOT
from theworld.pipeline.store.upkeep.verify import verify

from ...golden.make import FAILURE, GOLDEN, SAMPLES
from ...miniatures.store import SPEC, TINY, expected, key, latent

CACHES = sorted(path for path in GOLDEN.glob("*/*") if path.is_dir() and path.parent.name[0].isdigit())
VERSIONS = {"0.1.0-before-catalog": 1, "0.1.0": 1, "0.1.0-format-2": 2}
"""Of the format, by the folder here."""
IDS = {  # golden: another id would orphan every store of the recipe
    "float16": "1381071c0e9e0f643dff3b3ec30aea91c67f687b216f55fb77ecd772f9f3e393",
    "bfloat16": "e9ad4786e61d812cf9313585c014dc812d01c1321af67c21ec2ed7d2e1429354",
    "float32": "761bdc0fb3f7bd96007af8714c65bb2f02a44e2dc00da6a7bcf7931053ae7c53",
}


def test_there_are_golden_stores_of_both_formats_and_all_dtypes() -> None:
    assert {cache.name for cache in CACHES} == {f"{f}-{d}" for f in ("zarr", "webdataset") for d in STORED_DTYPES}


@pytest.mark.parametrize("cache", CACHES, ids=lambda path: f"{path.parent.name} {path.name}")
def test_a_store_of_every_version_is_read_to_the_bit(cache: Path) -> None:
    format, dtype = cache.name.split("-")
    store = open_store(cache)
    assert (store.format, store.dtype, store.spec) == (format, STORED_DTYPES[dtype], SPEC)
    assert store.layout.version == VERSIONS[cache.parent.name]
    assert store.recipe == TINY.model_copy(update={"dtype": dtype})
    assert store.recipe.id == IDS[dtype]
    assert store.keys == tuple(key(number) for number in range(SAMPLES))
    np.testing.assert_array_equal(store.read(store.keys), expected(store, range(SAMPLES)))
    assert store.sources() == {f"{number}.png": (key(number),) for number in range(SAMPLES)}
    assert store.failures() == [FAILURE]
    assert [record.facts for record in store.records()] == [{"host": "golden", "seconds": {"rollout": 1.5}}] * 2
    found = verify(store.path, level="deep")
    assert found.findings == ()
    assert found.shards == 2


@pytest.mark.parametrize("cache", CACHES, ids=lambda path: f"{path.parent.name} {path.name}")
def test_a_store_of_every_version_can_grow(cache: Path, tmp_path: Path) -> None:
    format, dtype = cache.name.split("-")
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    recipe: Any = TINY.model_copy(update={"dtype": dtype})
    store = create_store(tmp_path, recipe, SPEC, label="other", shard_size=99)
    assert (store.shard_size, store.format, store.layout.version) == (4, format, VERSIONS[cache.parent.name])
    payload = store.payload_path(0).read_bytes()
    with store.new_shard() as shard:
        shard.add(key(SAMPLES), latent(SAMPLES))
        shard.commit({})
    store.publish()
    np.testing.assert_array_equal(store.read(store.keys), expected(store, range(SAMPLES + 1)))
    assert store.records()[-1].format == VERSIONS[cache.parent.name]
    assert not (store.path / SNAPSHOT).exists()
    assert store.payload_path(0).read_bytes() == payload
    assert verify(store.path, level="deep").findings == ()


@pytest.mark.parametrize("cache", [cache for cache in CACHES if cache.name.startswith("zarr")], ids=str)
def test_zarr_python_reads_a_store_of_every_version(cache: Path) -> None:
    store = open_store(cache)
    np.testing.assert_array_equal(store.as_zarr()["latents"][...], expected(store, range(SAMPLES)))

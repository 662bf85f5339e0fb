"""A store as objects of other libraries: the committed rows, each once, to the bit."""

import os
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from theworld.pipeline.errors import ConfigError, DamagedShardError
from theworld.pipeline.store.folder import StoreFormat, open_store
from theworld.pipeline.store.formats.base import STORED_DTYPES
from theworld.pipeline.store.latent_store import LatentStore
from theworld.pipeline.store.reading import views
from theworld.pipeline.store.upkeep.verify import verify

from ....interop import same_bits
from ....miniatures.store import TINY, create, expected, fill, flip, key, write
from ....patience import patience

FORMATS: tuple[StoreFormat, ...] = ("zarr", "webdataset")


def with_gaps(cache: Path, format: StoreFormat = "zarr", dtype: str = "float16") -> LatentStore:
    """Nine latents in four shards of up to four: one is short, one holds a key again, one was begun and left."""
    store = create(cache, format=format, recipe=TINY.model_copy(update={"dtype": dtype, "fps": 16.0}))
    fill(store, 6)
    write(store, [3, 6])
    orphan = store.payload_path(3)
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(store.payload_path(0).read_bytes())
    with store.new_shard(4) as shard:
        for number in (7, 8):
            shard.add(key(number), expected(store, [number])[0])
        shard.commit({})
    return open_store(cache)


@pytest.mark.parametrize("dtype", STORED_DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_xarray_shows_every_committed_latent_once_and_no_row_without_one(
    tmp_path: Path, format: StoreFormat, dtype: str
) -> None:
    pytest.importorskip("dask")
    store = with_gaps(tmp_path, format, dtype)
    found = store.as_xarray()
    assert found["key"].values.tolist() == [key(n) for n in range(9)] == list(store.keys)
    assert found["time_s"].values.tolist() == [0.0, 0.25, 0.5]
    same_bits(found["latents"].values, expected(store, range(9)))
    same_bits(np.asarray(store.as_dask()[2:7, 1:, :2, 0]), expected(store, range(2, 7))[:, 1:, :2, 0])
    chosen = found["latents"].isel(sample=[8, 1, 4], time=[2, 0])
    same_bits(chosen.values, expected(store, [8, 1, 4])[:, :, [2, 0]])
    assert (found.attrs["recipe_id"], found["latents"].attrs["units"]) == (store.recipe.id, "1")


def test_a_chunk_of_dask_is_a_shard_or_some_small_ones_and_goes_to_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask")
    store = with_gaps(tmp_path)
    assert store.as_dask().chunks[0] == (9,)
    monkeypatch.setattr(views, "_CHUNK_BYTES", 4 * expected(store, [0]).nbytes)
    assert store.as_dask().chunks[0] == (4, 3, 2)
    again = ForkingPickler.loads(ForkingPickler.dumps(store.as_xarray()))
    same_bits(again["latents"].values, expected(store, range(9)))


def test_a_prefix_of_frames_reads_no_byte_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask")
    store = with_gaps(tmp_path)
    asked: list[Any] = []
    buffer = store.buffer
    monkeypatch.setattr(store, "buffer", lambda *n, **how: (asked.append(how["rollout_steps"]), buffer(*n, **how))[1])
    found = store.as_xarray(rollout_steps=1)
    assert found["time_s"].values.tolist() == [0.0, 0.25]
    same_bits(found["latents"].values, expected(store, range(9))[:, :, :2])
    assert asked == [1, 1]
    with pytest.raises(ConfigError, match="3 were asked for"):
        store.as_dask(rollout_steps=3)


def test_a_flipped_bit_is_not_read_as_a_number_through_dask(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    store = with_gaps(tmp_path)
    flip(store.payload_path(1), 3)
    with pytest.raises(DamagedShardError, match="does not match its checksums"):
        store.as_dask()[4:].compute()


def test_without_dask_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[xarray\]'"):
        create(tmp_path).as_xarray()


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_zarr_sees_what_is_committed_though_it_is_not_published_and_no_leftovers(tmp_path: Path, dtype: str) -> None:
    store = with_gaps(tmp_path, dtype=dtype)
    group = store.as_zarr()
    latents, rows = np.asarray(group["latents"][...]), store.rows_of(store.keys)
    same_bits(latents[rows], expected(store, range(9)))
    assert np.isnan(np.delete(latents, [*rows.tolist(), 8], axis=0).astype(np.float32)).all()
    assert group["key"][...].tolist()[16:] == [key(7), key(8)]
    assert group["time_s"][...].tolist() == [0.0, 0.25, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        group["latents"][0] = 0


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_webdataset_iterates_the_committed_tars(tmp_path: Path, dtype: str) -> None:
    store = with_gaps(tmp_path, "webdataset", dtype)
    samples = list(store.as_webdataset())
    assert [sample["__key__"] for sample in samples] == [key(n) for n in range(9)]
    same_bits(np.stack([sample["npy"] for sample in samples]), expected(store, range(9)))
    assert samples[0]["json"]["recipe_id"] == store.recipe.id


def test_webdataset_reads_in_its_secure_mode_too(tmp_path: Path) -> None:
    store = create(tmp_path, format="webdataset")
    fill(store, 6)
    code = f"""
from pathlib import Path
from theworld.pipeline import open_store
print(*[sample["__key__"] for sample in open_store(Path({str(tmp_path)!r})).as_webdataset().shuffle(1)])
"""
    env = {**os.environ, "WDS_SECURE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=patience(120))
    assert done.stdout.split() == [key(n) for n in range(6)], done.stderr


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1), (2, 3), (3, 8)])
def test_ranks_and_workers_share_the_samples_however_few_the_shards_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int
) -> None:
    store = create(tmp_path, format="webdataset")
    fill(store, 10)
    dataset = ForkingPickler.loads(ForkingPickler.dumps(store.as_webdataset()))  # as a DataLoader's worker gets it
    seen: list[str] = []
    for rank in range(ranks):
        for worker in range(workers):
            for name, value in (("RANK", rank), ("WORLD_SIZE", ranks), ("WORKER", worker), ("NUM_WORKERS", workers)):
                monkeypatch.setenv(name, str(value))
            seen += [sample["__key__"] for sample in dataset]
    assert sorted(seen) == [key(n) for n in range(10)]


def test_a_view_of_the_other_format_says_what_to_ask_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache export"):
        create(tmp_path / "z").as_webdataset()
    with pytest.raises(ConfigError, match="cache export"):
        create(tmp_path / "w", format="webdataset").as_zarr()
    with pytest.raises(ConfigError, match="holds no latents yet"):
        create(tmp_path / "w", format="webdataset").as_webdataset()


@pytest.mark.parametrize("format", FORMATS)
def test_verify_deep_asks_the_library_and_reports_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: StoreFormat
) -> None:
    store = create(tmp_path, format=format)
    fill(store, 10)
    assert verify(store.path, level="deep").findings == ()
    latents = LatentStore.read_rows
    monkeypatch.setattr(LatentStore, "read_rows", lambda *arguments: latents(*arguments) + np.float16(1))
    found = verify(store.path, level="deep").damage
    assert len(found) == 3
    assert all("reads other numbers in row" in finding.message and not finding.paths for finding in found)


def test_nothing_here_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    fill(create(tmp_path), 4)
    code = f"""
import sys
from pathlib import Path
from theworld.pipeline import open_store
store = open_store(Path({str(tmp_path)!r}))
store.read(store.keys)
print(*sorted({{"zarr", "xarray", "dask", "webdataset"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(120))
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")

"""Stores in the WebDataset layout, opened by programs that know nothing of theworld: webdataset, datasets, tarfile.

Nothing here unpickles: `.npy` is read with allow_pickle=False, the rest is JSON. Nothing here reaches a network.
"""

import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ["WDS_SECURE"] = "1"  # webdataset reads it once, when it is imported

import datasets
import google_crc32c
import numpy as np
import pytest
import webdataset
import webdataset.utils
from numpy.typing import NDArray

from tests import interop
from tests.interop import DTYPES, SHAPE, SPEC, Dtype, every_number, same_bits, write_all
from tests.miniatures.store import create, expected, fill, key, write
from theworld.pipeline.store.folder import LatentStore

Sample = tuple[str, NDArray[Any], dict[str, Any]]
"""Key, what the npy holds, what the json says."""

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: object) -> None:
        raise AssertionError(f"this test reached out to {address}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def store_of(cache: Path, dtype: Dtype, count: int = 10) -> LatentStore:
    """Tars of 4 samples, the last of what is left."""
    store = interop.store_of(cache, dtype, "webdataset")
    fill(store, count)
    return store


def tars(store: LatentStore) -> list[str]:
    return sorted(str(path) for path in (store.path / "shards").iterdir())


def numbers(content: bytes) -> NDArray[Any]:
    return np.load(BytesIO(content), allow_pickle=False)


def with_webdataset(store: LatentStore) -> Iterator[Sample]:
    assert webdataset.utils.enforce_security
    decoders = [webdataset.handle_extension("npy", numbers), webdataset.handle_extension("json", json.loads)]
    samples = webdataset.WebDataset(tars(store), shardshuffle=False).decode(*decoders, post=[])
    yield from samples.to_tuple("__key__", "npy", "json")


def with_tarfile(store: LatentStore) -> Iterator[Sample]:
    for path in tars(store):
        with tarfile.open(path, "r:") as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            for name in members:
                stem, suffix = name.split(".")
                if suffix == "npy":
                    npy, description = members[name], members[f"{stem}.json"]
                    assert npy is not None
                    assert description is not None
                    yield stem, numbers(npy.read()), json.loads(description.read())


each_reader = pytest.mark.parametrize("read", [with_webdataset, with_tarfile])
Read = Callable[[LatentStore], Iterator[Sample]]


def latents_of(sample: Sample) -> NDArray[Any]:
    """(C, T, H, W). Only bfloat16 needs this line, after `import ml_dtypes`; it changes no other."""
    return sample[1].view(sample[2]["dtype"])


@each_reader
@each_dtype
def test_others_read_every_sample_we_wrote_in_order(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype)
    samples = list(read(store))
    assert [sample[0] for sample in samples] == [key(number) for number in range(10)]
    for number, sample in enumerate(samples):
        assert sample[1].dtype == {"float16": "<f2", "bfloat16": "V2", "float32": "<f4"}[dtype]
        same_bits(latents_of(sample), expected(store, [number])[0])
    same_bits(np.stack([latents_of(sample) for sample in samples]), store.read([sample[0] for sample in samples]))


@each_reader
@each_dtype
def test_every_finite_number_keeps_its_bits(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype, 0)
    write_all(store, every_number(dtype))
    same_bits(np.stack([latents_of(sample) for sample in read(store)]), every_number(dtype))


@each_reader
@each_dtype
def test_the_json_says_what_the_numbers_are_and_proves_each_frame(tmp_path: Path, dtype: Dtype, read: Read) -> None:
    store = store_of(tmp_path, dtype, 2)
    for stem, values, description in read(store):
        crcs = [google_crc32c.value(values[:, frame].tobytes()) for frame in range(5)]
        assert description == {
            "key": stem,
            "frames_crc32c": "".join(f"{crc:08x}" for crc in crcs),
            "dtype": dtype,
            "shape": list(SHAPE),
            "axes": "channel,time,y,x",
            "recipe_id": store.recipe.id,
        }


def test_bfloat16_is_never_taken_for_numbers_it_is_not(tmp_path: Path) -> None:
    store = store_of(tmp_path, "bfloat16", 1)
    [(_, values, _)] = with_webdataset(store)
    with pytest.raises(TypeError):
        values + 1
    with pytest.raises(TypeError):
        values.mean()


@each_dtype
def test_a_tar_holds_pairs_of_npy_and_json_and_nothing_that_could_run_or_leave_its_folder(
    tmp_path: Path, dtype: Dtype
) -> None:
    store = store_of(tmp_path, dtype)
    for shard, path in enumerate(tars(store)):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
        rows = range(4 * shard, min(10, 4 * shard + 4))
        assert [member.name for member in members] == [
            f"{key(number)}.{suffix}" for number in rows for suffix in ("npy", "json")
        ]
        assert {(member.type, member.mode, member.mtime) for member in members} == {(tarfile.REGTYPE, 0o644, 0)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_every_sample_we_wrote(tmp_path: Path, dtype: Dtype, streaming: bool) -> None:
    store = store_of(tmp_path, dtype, 0)
    wanted = every_number(dtype)
    write_all(store, wanted)
    rows = list(with_datasets(store, tmp_path / "hf", streaming=streaming))
    assert [row["__key__"] for row in rows] == [key(number) for number in range(len(wanted))]
    for row, latent in zip(rows, wanted, strict=True):
        same_bits(np.asarray(row["npy"], row["json"]["dtype"]), latent)  # it hands out lists, of floats that hold both
        assert row["json"]["key"] == row["__key__"]
        assert tuple(row["json"]["shape"]) == SHAPE


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_refuses_bfloat16_and_shows_no_wrong_number(tmp_path: Path, streaming: bool) -> None:
    store = store_of(tmp_path, "bfloat16")
    with pytest.raises(Exception, match="Unsupported numpy type"):
        list(with_datasets(store, tmp_path / "hf", streaming=streaming))


def with_datasets(store: LatentStore, cache: Path, *, streaming: bool) -> Iterator[dict[str, Any]]:
    yield from datasets.load_dataset(
        "webdataset", data_files=tars(store), split="train", streaming=streaming, cache_dir=str(cache)
    )


@each_reader
def test_tars_from_several_runs_are_read_together(tmp_path: Path, read: Read) -> None:
    store = store_of(tmp_path, "float16", 3)
    again = create(tmp_path, recipe=store.recipe, spec=SPEC, format="webdataset")
    write(again, [3])
    write(again, range(4, 8))
    again.publish()
    assert [Path(path).name for path in tars(store)] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [sample[0] for sample in read(store)] == [key(number) for number in range(8)]

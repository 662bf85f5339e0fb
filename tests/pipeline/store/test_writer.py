"""What may enter a shard, and what becomes visible."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from theworld.pipeline.errors import LatentShapeError, StoreError
from theworld.pipeline.files.sealed import seal
from theworld.pipeline.store import writer
from theworld.pipeline.store.folder import open_store

from ...miniatures.store import create, expected, key, latent, write


def with_value(value: float) -> NDArray[np.float32]:
    array = latent(0)
    array[1, 2, 0, 3] = value
    return array


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (with_value(float("nan")), "1 values that are NaN"),
        (with_value(float("-inf")), "infinite"),
        (with_value(70_000.0), "70000"),
        (latent(0)[:, :2], r"\(3, 2, 2, 4\)"),
        (latent(0).astype(np.float64), "float64"),
        (latent(0).astype(np.int16), "int16"),
    ],
)
def test_a_bad_latent_is_refused_and_the_shard_goes_on(tmp_path: Path, bad: NDArray[Any], words: str) -> None:
    store = create(tmp_path)
    with store.new_shard() as shard:
        shard.add(key(0), latent(0))
        with pytest.raises(LatentShapeError, match=words) as caught:
            shard.add(key(7), bad)
        assert key(7) in str(caught.value)
        shard.add(key(1), latent(1))
        shard.commit({})
    assert store.keys == (key(0), key(1))
    np.testing.assert_array_equal(store.read([key(0), key(1)]), expected(store, range(2)))


def test_a_shard_takes_each_key_once_and_no_more_than_it_holds(tmp_path: Path) -> None:
    store = create(tmp_path, shard_size=2)
    with store.new_shard() as shard:
        shard.add(key(0), latent(0))
        for wrong in (key(0), "../../evil", key(0).upper() + "A"):
            with pytest.raises(StoreError, match="cannot add"):
                shard.add(wrong, latent(0))
        shard.add(key(1), latent(1))
        with pytest.raises(StoreError, match="full"):
            shard.add(key(2), latent(2))


def test_leaving_without_commit_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    store = create(tmp_path)
    with store.new_shard() as shard:
        shard.add(key(0), latent(0))
    with pytest.raises(KeyboardInterrupt), store.new_shard() as shard:  # noqa: PT012
        shard.add(key(0), latent(0))
        raise KeyboardInterrupt
    with pytest.raises(StoreError, match="closed"):
        shard.add(key(1), latent(1))
    store.refresh()
    assert len(store) == 0
    assert list((store.path / "tmp").iterdir()) == []


def test_facts_that_json_cannot_say_are_refused_before_anything_is_placed(tmp_path: Path) -> None:
    store = create(tmp_path)
    for facts in ({"a": float("nan")}, {"a": Path("b")}, {"a": "\ud800"}):
        with pytest.raises(StoreError, match="plain JSON"), store.new_shard() as shard:  # noqa: PT012
            shard.add(key(0), latent(0))
            shard.commit(facts)
    assert list((store.path / "latents" / "c").iterdir()) == []
    with store.new_shard() as shard:
        shard.add(key(0), latent(0))
        record = shard.commit({"seconds": 1.5, "versions": {"torch": "2.13"}})
    assert record is not None
    assert open_store(store.path).records() == [record]
    assert record.facts == {"seconds": 1.5, "versions": {"torch": "2.13"}}


def test_a_record_may_be_as_large_as_the_limit_and_not_a_byte_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def measured(body: dict[str, Any]) -> bytes:
        sealed = seal(body)
        sizes.append(len(sealed))
        return sealed

    monkeypatch.setattr(writer, "seal", measured)
    write(create(tmp_path / "measured"), [0, 1])
    monkeypatch.setattr(writer, "RECORD_LIMIT_BYTES", sizes[0])
    store = create(tmp_path / "limit")
    write(store, [0, 1])
    assert len(store) == 2
    monkeypatch.setattr(writer, "RECORD_LIMIT_BYTES", sizes[0] - 1)
    with pytest.raises(StoreError, match=f"{sizes[0]} bytes, more than {sizes[0] - 1}"):
        write(store, [2, 3])

"""Writing behind: rows keep their order, and a write that fails is raised before anything commits over it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from tests.miniatures.lm import SPEC
from theworld.pipeline.errors import StoreError
from theworld.pipeline.failures import FailureReason
from theworld.pipeline.files.atomic import TempFile
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store.folder import LatentStore, create_store, open_store
from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.inputs.locations import File
from theworld.precompute.job.workers.decode_ahead import Decoded, failure_of
from theworld.precompute.job.workers.write_behind import WriteBehind

RECIPE = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=1)
SAMPLES = [Sample(f"{number}.png", File(f"{number}.png"), f"{number + 1:032x}") for number in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return create_store(tmp_path, RECIPE, SPEC, label="behind", shard_size=8)


def latents(store: LatentStore, count: int) -> list[torch.Tensor | None]:
    return [torch.full(store.sample_shape, float(number)) for number in range(count)]


def no_note(*_: int) -> None:
    return


def test_rows_failures_and_counts_are_in_the_order_of_the_batches(store: LatentStore) -> None:
    notes: list[tuple[int, int]] = []
    with store.new_shard() as shard, WriteBehind(shard, lambda *counts: notes.append(counts)) as behind:
        first = latents(store, 3)
        first[1] = None
        damaged = failure_of(SAMPLES[3], FailureReason.DECODE, "damaged")
        behind.add(Decoded(SAMPLES[:3], failures=[damaged]), first)
        behind.add(Decoded(failures=[failure_of(SAMPLES[4], FailureReason.DECODE, "damaged")]), [])
        behind.add(Decoded(SAMPLES[5:7]), [torch.full(store.sample_shape, torch.nan), *latents(store, 1)])
        behind.finish()
        assert (behind.written, behind.batches) == (3, 2)
        assert [(failure.source, failure.reason) for failure in behind.failures] == [
            ("3.png", "decode"), ("1.png", "oom"), ("4.png", "decode"), ("5.png", "latent"),
        ]  # fmt: skip
        assert notes == [(4, 1), (5, 1), (7, 2)]
        shard.commit({})
    assert list(open_store(store.path).keys) == [SAMPLES[number].key for number in (0, 2, 6)]


@pytest.fixture
def full_disk(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    del store  # it is there already

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TempFile, "write", refuse)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("ends", ["next batch", "finish", "end of the block", "another error"])
def test_a_write_that_failed_is_raised_wherever_the_worker_is_by_then(store: LatentStore, ends: str) -> None:
    def write() -> None:
        with store.new_shard() as shard, WriteBehind(shard, no_note) as behind:
            behind.add(Decoded(SAMPLES[:2]), latents(store, 2))
            if ends == "next batch":
                behind.add(Decoded(SAMPLES[2:4]), latents(store, 2))
                pytest.fail("the second batch was taken")
            if ends == "finish":
                behind.finish()
                pytest.fail("the shard could be committed")
            if ends == "another error":
                raise RuntimeError("the world model broke as well")

    with pytest.raises(StoreError, match="No space left"):
        write()
    assert list((store.path / "tmp").iterdir()) == []
    assert len(open_store(store.path)) == 0

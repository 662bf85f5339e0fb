"""Decoding ahead: the order stays, what is ahead is bounded, and a sample that cannot be decoded costs itself."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from tests.patience import eventually
from theworld.pipeline.errors import ImageError
from theworld.pipeline.failures import FailureReason
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.inputs.listing.inputs import Sample
from theworld.precompute.inputs.locations import File
from theworld.precompute.job.workers import decode_ahead as module
from theworld.precompute.job.workers.decode_ahead import decode_ahead, default_decoders
from theworld.precompute.rollout.kind import Loaded

SAMPLES = [Sample(f"{number}.png", File(f"{number}.png"), f"{number:032x}") for number in range(20)]


def number_of(sample: Sample) -> int:
    return int(sample.key, 16)


def pixels_of(sample: Sample, values: int = 1) -> Loaded:
    return Loaded(torch.full((values,), float(number_of(sample))))


@pytest.mark.parametrize("decoders", [1, 3])
def test_batches_come_in_the_order_of_the_task_with_any_number_of_decoders(decoders: int) -> None:
    turns = threading.Barrier(decoders)

    def load(sample: Sample) -> Loaded:
        if number_of(sample) < 18:
            turns.wait(20)  # so many are at work at once
        if number_of(sample) % 7 == 3:
            raise ImageError(FailureReason.DECODE, f"{sample.source} is damaged")
        return pixels_of(sample)

    batches = [batch for batch, _ in decode_ahead(SAMPLES, load, lambda: 6, decoders)]
    assert [[number_of(sample) for sample in batch.samples] for batch in batches] == [
        [0, 1, 2, 4, 5], [6, 7, 8, 9, 11], [12, 13, 14, 15, 16], [18, 19],
    ]  # fmt: skip
    assert all(int(one.pixels[0]) == number_of(s) for b in batches for s, one in zip(b.samples, b.loaded, strict=True))
    assert [[int(failure.key or "", 16) for failure in batch.failures] for batch in batches] == [[3], [10], [17], []]


def are_begun(batch_size: int, decoders: int, *, ahead: tuple[int, int], sample_bytes: int = 4) -> bool:
    """Whether so many samples are begun beyond the first batch, and beyond the second, while nobody asks for more."""
    begun: list[Sample] = []

    def load(sample: Sample) -> Loaded:
        begun.append(sample)
        return pixels_of(sample, sample_bytes // 4)

    with closing(decode_ahead(SAMPLES, load, lambda: batch_size, decoders)) as batches:
        for taken, beyond in enumerate(ahead, start=1):
            next(batches)
            if not eventually(lambda: len(begun) >= taken * batch_size + beyond):  # noqa: B023 - called at once
                return False
    return len(begun) == 2 * batch_size + ahead[1]


@pytest.mark.parametrize(
    ("batch_size", "decoders", "expected"),
    [(4, 1, (4, 8)), (2, 3, (2, 4)), (1, 6, (1, 6))],
)
def test_two_batches_are_ahead_or_one_sample_for_each_decoder(
    batch_size: int, decoders: int, expected: tuple[int, int]
) -> None:
    assert are_begun(batch_size, decoders, ahead=expected)


def test_large_samples_are_one_batch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES_AHEAD", 5 * 400)
    assert are_begun(4, 3, ahead=(4, 5), sample_bytes=400)
    assert are_begun(4, 3, ahead=(4, 4), sample_bytes=4000)


def test_what_was_not_asked_for_is_not_begun_any_more_at_the_end() -> None:
    begun: list[int] = []

    def load(sample: Sample) -> Loaded:
        begun.append(number_of(sample))
        return pixels_of(sample)

    batches = decode_ahead(SAMPLES, load, lambda: 2, 1)
    next(batches)
    batches.close()
    threads = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("decode") for name in threads)
    assert len(begun) <= 4


def test_a_kind_that_encodes_only_has_a_decoder_a_core_but_one() -> None:
    def recipe(**fields: object) -> Recipe:
        return Recipe(world="sha256:" + "0" * 64, height=32, width=32, **fields)  # type: ignore[arg-type]

    encodes = [
        recipe(kind="frames", rollout_steps=2),
        recipe(kind="posterior", rollout_steps=1),
        recipe(rollout_steps=0),
    ]
    assert [[default_decoders(one, cores) for cores in (0, 1, 4, 64)] for one in encodes] == [[1, 1, 3, 8]] * 3
    assert default_decoders(recipe(rollout_steps=8), 64) == 1

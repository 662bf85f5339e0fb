"""What a worker keeps from one shard to the next: the batch that fitted, and that the world model works at all."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.errors import StoreError, WorldModelError
from theworld.pipeline.files.atomic import TempFile
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.machine import device_name
from theworld.pipeline.store.folder import LatentStore, create_store, open_store
from theworld.pipeline.store.writer import ShardWriter
from theworld.precompute.inputs.listing.inputs import Sample, list_inputs
from theworld.precompute.inputs.sandbox import DecodeLimits, SandboxedDecoder
from theworld.precompute.job.planning.throughput import ANY_DEVICE
from theworld.precompute.job.signals import Signals
from theworld.precompute.job.workers.worker import Worker, WorkerSetup
from theworld.precompute.rollout.kind import Loaded
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.network.offloading import Offload

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Bench:
    """A miniature world model that counts its batches and runs out of memory when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.world, self.images = save_mini_world(folder / "world"), make_images(folder / "in", 8)
        self.made: LatentStore = make_store(self.images, folder / "made", self.world)
        self.samples: tuple[Sample, ...] = tuple(list_inputs(self.images, KINDS["rollout"]).samples)
        self.sizes: list[int] = []
        self.fits: Callable[[Sequence[str]], bool] = lambda _: True

    def store(self, cache: Path) -> LatentStore:
        return create_store(cache, self.made.recipe, self.made.spec, label="bench", shard_size=8)

    def worker(
        self,
        store: LatentStore,
        *,
        batch_size: int = 4,
        fitted: dict[str, int] | None = None,
        compile: bool = False,
        offload: Offload | None = None,
    ) -> Worker:
        setup = WorkerSetup(
            world_folder=str(self.world), store=str(store.path), device="cpu", batch_size=batch_size,
            fitted=fitted or {}, compile=compile, offload=offload,
        )  # fmt: skip
        return Worker(setup)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    rollout = CosmosWorld.rollout
    whole.sizes, whole.fits = [], lambda _: True

    def counted(self: CosmosWorld, pixels: torch.Tensor, keys: Sequence[str], recipe: Recipe) -> torch.Tensor:
        whole.sizes.append(len(keys))
        if not whole.fits(keys):
            raise OUT_OF_MEMORY
        return rollout(self, pixels, keys, recipe)

    monkeypatch.setattr(CosmosWorld, "rollout", counted)
    return whole


def here() -> str:
    return device_name("cpu", torch.get_num_threads())


def test_a_worker_starts_with_the_batch_that_fitted_on_its_device(bench: Bench, tmp_path: Path) -> None:
    worker = bench.worker(bench.store(tmp_path), fitted={here(): 2, "another card": 1})
    receipt = worker.process(bench.samples[:4])
    assert (receipt.batch_size, bench.sizes) == (2, [2, 2])


def test_a_batch_that_fitted_elsewhere_or_is_larger_than_asked_for_decides_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    worker = bench.worker(bench.store(tmp_path), fitted={here(): 16, "another card": 1})
    assert worker.process(bench.samples[:4]).batch_size == 4
    assert worker.process(bench.samples[4:], None, {here(): 16, "another card": 1}).batch_size == 4
    assert bench.sizes == [4, 4]


def test_a_halved_batch_stays_halved_for_later_shards(bench: Bench, tmp_path: Path) -> None:
    worker = bench.worker(bench.store(tmp_path))
    bench.fits = lambda keys: len(keys) <= 2
    assert worker.process(bench.samples[:4]).batch_size == 2
    bench.fits = lambda _: True
    assert worker.process(bench.samples[4:], None, {here(): 4}).batch_size == 2, "what others fitted raises nothing"
    assert bench.sizes == [4, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["own", ANY_DEVICE])
def test_what_others_learned_of_this_device_or_of_all_holds_from_the_next_shard_on(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    worker = bench.worker(bench.store(tmp_path))
    worker.process(bench.samples[:4])
    worker.process(bench.samples[4:6], None, {here() if name == "own" else name: 2})
    assert worker.process(bench.samples[6:]).batch_size == 2
    assert bench.sizes == [4, 2, 2]


def test_one_that_does_not_fit_alone_is_set_aside_once_others_did(bench: Bench, tmp_path: Path) -> None:
    store = bench.store(tmp_path)
    large = bench.samples[3]
    bench.fits = lambda keys: large.key not in keys
    receipt = bench.worker(store, batch_size=1).process(bench.samples[:5])
    assert receipt.written == 4
    [failure] = receipt.failures
    assert (failure.key, failure.reason) == (large.key, "oom")
    assert sorted(open_store(store.path).keys) == sorted({s.key for s in bench.samples[:5]} - {large.key})


def test_that_others_did_fit_is_remembered_over_shards_and_before_that_nobody_is_blamed(
    bench: Bench, tmp_path: Path
) -> None:
    worker = bench.worker(bench.store(tmp_path), batch_size=1)
    bench.fits = lambda _: False
    with pytest.raises(torch.OutOfMemoryError):
        worker.process(bench.samples[:1])
    bench.fits = lambda _: True
    worker.process(bench.samples[:2])
    bench.fits = lambda _: False
    receipt = worker.process(bench.samples[2:4])
    assert (receipt.written, [failure.reason for failure in receipt.failures]) == (0, ["oom", "oom"])


def test_a_changed_batch_size_moves_no_latent_to_another_key(bench: Bench, tmp_path: Path) -> None:
    store = bench.store(tmp_path)
    bench.fits = lambda keys: len(keys) <= 2
    bench.worker(store).process(bench.samples)
    store.refresh()
    for sample in bench.samples:
        ours, theirs = store.read([sample.key]), bench.made.read([sample.key])
        assert abs(ours - theirs).max() < 4e-3, sample.source


def test_how_the_engine_computed_is_recorded_beside_each_shard(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the real compiler takes a minute
    store = bench.store(tmp_path)
    for compiles, part in ((False, bench.samples[:4]), (True, bench.samples[4:])):
        bench.worker(store, compile=compiles).process(part)
    store.refresh()
    assert [record.facts["engine"] for record in store.records()] == [
        {"float32": "ieee", "compiled": False},
        {"float32": "ieee", "compiled": True},
    ]
    for sample in bench.samples:  # what is traced and not compiled keeps its bits
        assert store.read([sample.key]).tobytes() == bench.made.read([sample.key]).tobytes()


def test_tries_that_ran_out_of_memory_and_the_start_of_the_decoder_say_nothing_of_the_rate(
    bench: Bench, tmp_path: Path
) -> None:
    worker = bench.worker(bench.store(tmp_path))

    def fits(keys: Sequence[str]) -> bool:
        time.sleep(0.2 if len(keys) > 2 else 0.0)
        return len(keys) <= 2

    bench.fits = fits
    first = worker.process(bench.samples[:4])
    assert 0.2 + first.seconds["decode"] <= first.unrated_s + 1e-6 < sum(first.seconds.values())
    assert worker.process(bench.samples[4:]).unrated_s == 0.0


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError()])
def test_weights_that_do_not_fit_are_one_message(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("theworld.precompute.worlds.wan.vae.AutoencoderKLWan.to", too_large)
    network = "theworld.precompute.worlds.cosmos.predict2.CosmosTransformer3DModel"
    monkeypatch.setattr(f"{network}.from_pretrained", too_large)
    with pytest.raises(WorldModelError, match=r"do not fit into main memory\. Use fewer --workers"):
        bench.worker(bench.store(tmp_path))


@pytest.mark.parametrize(("offload", "words"), [(None, r"Use fewer --workers"), ("pinned", "Use --offload mapped")])
def test_where_weights_do_not_fit_the_next_thing_to_try_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: Offload | None, words: str
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("theworld.precompute.worlds.wan.vae.AutoencoderKLWan.to", too_large)
    with pytest.raises(WorldModelError, match=rf"do not fit into (pinned )?main memory\. {words}"):
        bench.worker(bench.store(tmp_path), offload=offload)


def test_weights_that_stay_in_main_memory_make_the_same_latents(bench: Bench, tmp_path: Path) -> None:
    store = bench.store(tmp_path)
    bench.worker(store, offload="mapped").process(bench.samples)
    store.refresh()
    for sample in bench.samples:
        assert store.read([sample.key]).tobytes() == bench.made.read([sample.key]).tobytes()


def encoded(images: Path, cache: Path, world: Path, *, decoders: int) -> tuple[Worker, LatentStore, tuple[Sample, ...]]:
    """A worker for an empty store of posteriors, which are encoded only."""
    posterior = {"kind": "posterior", "steps": None, "denoise_steps": None, "limit": 1}
    made = make_store(images, cache / "recipe", world, **posterior)
    store = create_store(cache, made.recipe, made.spec, label="encoded", shard_size=64)
    setup = WorkerSetup(
        world_folder=str(world), store=str(store.path), device="cpu", batch_size=4, decoders=decoders
    )  # fmt: skip
    return Worker(setup), store, tuple(list_inputs(images, KINDS["posterior"]).samples)


def test_one_decoder_and_three_make_the_same_shard_and_the_same_ledger(bench: Bench, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 30)
    for number in (2, 11, 12, 13, 14, 15, 29):
        (images / f"{number:03d}.png").write_bytes(b"GIF87a" if number % 2 else b"no image at all")
    payloads, failures = [], []
    for decoders in (1, 3):
        worker, store, samples = encoded(images, tmp_path / f"{decoders}", bench.world, decoders=decoders)
        receipt = worker.process(samples)
        store.refresh()
        payloads.append(store.payload_path(0).read_bytes())
        failures.append([(failure.source, failure.reason, failure.message) for failure in receipt.failures])
        assert (receipt.written, receipt.undone, receipt.batches) == (23, 0, 7)
        made = {failure.key for failure in receipt.failures}
        assert list(store.keys) == [sample.key for sample in samples if sample.key not in made]
    assert payloads[0] == payloads[1]
    assert failures[0] == failures[1]
    assert len(failures[0]) == 7


def test_a_decoder_that_is_killed_costs_the_one_input_it_had(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "in", 24)
    worker, store, samples = encoded(images, tmp_path / "cache", bench.world, decoders=3)
    take, answer, victims = SandboxedDecoder._take, SandboxedDecoder._answer, samples[7:9]

    def taken(self: SandboxedDecoder, *, anew: bool) -> Any:
        child = take(self, anew=anew)
        os.kill(child.pid, signal.SIGSTOP)  # until it is decided what becomes of its input
        return child

    def answered(self: SandboxedDecoder, child: Any, source: str, limits: DecodeLimits) -> Loaded:
        is_victim = source in [victim.source for victim in victims]
        os.kill(child.pid, signal.SIGKILL if is_victim else signal.SIGCONT)
        return answer(self, child, source, limits)

    monkeypatch.setattr(SandboxedDecoder, "_take", taken)
    monkeypatch.setattr(SandboxedDecoder, "_answer", answered)
    receipt = worker.process(samples)
    assert [(one.key, one.reason) for one in receipt.failures] == [(victim.key, "crash") for victim in victims]
    store.refresh()
    assert (receipt.written, len(store)) == (22, 22)


def test_a_disk_that_fills_up_behind_the_world_model_ends_the_task_and_leaves_nothing_behind(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, store, samples = encoded(make_images(tmp_path / "in", 24), tmp_path / "cache", bench.world, decoders=3)
    write, writes = TempFile.write, itertools.count()

    def full(self: TempFile, data: bytes | memoryview) -> None:
        if next(writes) >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(TempFile, "write", full)
        with pytest.raises(StoreError, match="No space left"):
            worker.process(samples)
    store.refresh()
    assert (len(store), list((store.path / "tmp").iterdir())) == (0, [])
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "write"))]
    assert worker.process(samples).written == 24


def test_a_signal_while_inputs_are_encoded_costs_no_batch_that_was_finished(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, store, samples = encoded(make_images(tmp_path / "in", 24), tmp_path / "cache", bench.world, decoders=3)
    posterior, add, batches = CosmosWorld.posterior, ShardWriter.add, itertools.count(1)

    def ended(self: CosmosWorld, images: torch.Tensor) -> torch.Tensor:
        if next(batches) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return posterior(self, images)

    def slow(self: ShardWriter, key: str, latent: NDArray[Any]) -> None:
        time.sleep(0.02)  # so that two batches wait to be written
        add(self, key, latent)

    monkeypatch.setattr(CosmosWorld, "posterior", ended)
    monkeypatch.setattr(ShardWriter, "add", slow)
    with Signals().caught():
        receipt = worker.process(samples)
    store.refresh()
    assert (receipt.written, receipt.undone, next(batches)) == (12, 12, 4)
    assert list(store.keys) == [sample.key for sample in samples[:12]]

"""What a worker keeps from one shard to the next: the batch that fitted, and that the world model works at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.machine import device_name
from theworld.pipeline.store.folder import LatentStore, create_store, open_store
from theworld.precompute.inputs.listing import Sample, list_inputs
from theworld.precompute.job.throughput import ANY_DEVICE
from theworld.precompute.job.worker import Worker, WorkerSetup
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.cosmos import CosmosWorld
from theworld.precompute.worlds.offloading import Offload

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Bench:
    """A miniature world model that counts its batches and runs out of memory when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.world, self.images = save_mini_world(folder / "world"), make_images(folder / "in", 8)
        self.made: LatentStore = make_store(self.images, folder / "made", self.world)
        self.samples: tuple[Sample, ...] = list_inputs(self.images, KINDS["rollout"]).samples
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

    monkeypatch.setattr("theworld.precompute.worlds.wan_vae.AutoencoderKLWan.to", too_large)
    monkeypatch.setattr("theworld.precompute.worlds.cosmos.CosmosTransformer3DModel.from_pretrained", too_large)
    with pytest.raises(WorldModelError, match=r"do not fit into main memory\. Use fewer --workers"):
        bench.worker(bench.store(tmp_path))


@pytest.mark.parametrize(("offload", "words"), [(None, r"Use fewer --workers"), ("pinned", "Use --offload mapped")])
def test_where_weights_do_not_fit_the_next_thing_to_try_is_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: Offload | None, words: str
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("theworld.precompute.worlds.wan_vae.AutoencoderKLWan.to", too_large)
    with pytest.raises(WorldModelError, match=rf"do not fit into (pinned )?main memory\. {words}"):
        bench.worker(bench.store(tmp_path), offload=offload)


def test_weights_that_stay_in_main_memory_make_the_same_latents(bench: Bench, tmp_path: Path) -> None:
    store = bench.store(tmp_path)
    bench.worker(store, offload="mapped").process(bench.samples)
    store.refresh()
    for sample in bench.samples:
        assert store.read([sample.key]).tobytes() == bench.made.read([sample.key]).tobytes()

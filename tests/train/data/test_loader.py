"""Latents come as the order says, ahead of time, and never from another batch's memory."""

import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset, default_collate

from theworld.pipeline.errors import ConfigError, DamagedShardError, MissingLatentError
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.train.data.loader import LatentDataset, Prefetcher

from ...miniatures.store import TINY, create, expected, fill, flip, key, latent
from ...patience import eventually, patience
from .test_sampler import COUNT, order, plain


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LatentStore]:
    written = create(tmp_path, format=request.param)
    fill(written, COUNT)
    store = open_store(written.path)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread of a reader outlives its test."""
    yield
    if readers():
        gc.collect()
    assert eventually(lambda: not readers())


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("latents")]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def in_a_child(check: Callable[[], bool]) -> bool:
    """Whether it holds in a forked process; False where it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(patience(20)))
        try:
            held = check()
        except BaseException:
            held = False
        os._exit(0 if held else 1)
    return os.waitpid(pid, 0)[1] == 0


# The dataset


def test_a_dataset_is_the_store_in_its_order(store: LatentStore) -> None:
    dataset = LatentDataset(store)
    assert (len(dataset), dataset.keys) == (COUNT, store.keys)
    whole = as_tensor(store.read(store.keys))
    assert all(torch.equal(dataset[index], whole[index]) for index in range(COUNT))
    assert torch.equal(dataset[-1], whole[-1])
    assert len(list(dataset)) == COUNT  # it ends by itself
    assert torch.equal(torch.stack(dataset.__getitems__([5, 0, 5])), whole[[5, 0, 5]])
    assert LatentDataset(str(store.path)).keys == store.keys  # a path is opened


def test_a_dataset_of_some_keys_has_their_order(store: LatentStore) -> None:
    numbers = [9, 2, 9, 17]
    dataset = LatentDataset(store, keys=[key(number) for number in numbers])
    assert len(dataset) == 4
    np.testing.assert_array_equal(dataset.read(range(4)).numpy(), expected(store, numbers))


def test_a_prefix_is_the_first_frames(store: LatentStore) -> None:
    dataset = LatentDataset(store, rollout_steps=1)
    assert dataset[3].shape == (3, 2, 2, 4)
    np.testing.assert_array_equal(dataset.read([3, 20]).numpy(), expected(store, [3, 20])[:, :, :2])


def test_what_cannot_be_read_is_refused_at_the_start(store: LatentStore) -> None:
    with pytest.raises(MissingLatentError, match=key(99)):
        LatentDataset(store, keys=[key(0), key(99)])
    with pytest.raises(ConfigError, match="rollouts of 2 steps, 3 were asked for"):
        LatentDataset(store, rollout_steps=3)


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_bfloat16_arrives_as_bfloat16(tmp_path: Path, format: Any) -> None:
    store = create(tmp_path, recipe=TINY.model_copy(update={"dtype": "bfloat16"}), format=format)
    fill(store, 6)
    dataset = LatentDataset(store)
    truth = torch.from_numpy(expected(store, range(6)).astype(np.float32))
    assert dataset[2].dtype == torch.bfloat16
    with Prefetcher(dataset, [[4, 1]]) as batches, Prefetcher(dataset, [[4, 1]], device=torch.device("cpu")) as copies:
        for _, latents in [*batches, *copies]:
            assert latents.dtype == torch.bfloat16
            assert torch.equal(latents.float(), truth[[4, 1]])


def test_collating_a_batch_copies_nothing(store: LatentStore) -> None:
    samples = LatentDataset(store).__getitems__([3, 1, 2])
    batch = LatentDataset.collate(samples)
    assert [sample.data_ptr() for sample in batch] == [sample.data_ptr() for sample in samples]
    assert torch.equal(batch, default_collate(samples))
    assert torch.equal(LatentDataset.collate(list(samples)), batch)


@pytest.mark.parametrize("collate", [LatentDataset.collate, None])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_gives_what_the_store_reads(store: LatentStore, workers: int, collate: Any) -> None:
    dataset = LatentDataset(store, keys=store.keys[::-1], rollout_steps=1)
    whole = as_tensor(store.read(store.keys[::-1], rollout_steps=1))  # its files are open already
    loader: Any = DataLoader(
        dataset,
        batch_size=5,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    assert torch.equal(torch.cat(list(loader)), whole)


def test_a_dataloader_of_spawned_workers_gives_what_the_store_reads(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, COUNT)
    loader: Any = DataLoader(
        LatentDataset(store, rollout_steps=1),
        batch_size=12,
        collate_fn=LatentDataset.collate,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert torch.equal(torch.cat(list(loader)), as_tensor(store.read(store.keys, rollout_steps=1)))


def test_a_dataset_made_again_elsewhere_holds_the_same(store: LatentStore) -> None:
    dataset = LatentDataset(store, keys=[key(4), key(1)], rollout_steps=1)
    again = copy(dataset)  # as pickle would
    assert (again.keys, again.rollout_steps) == (dataset.keys, 1)
    assert torch.equal(again.read([0, 1]), dataset.read([0, 1]))


def test_a_part_of_a_dataset_is_read_batchwise_too(store: LatentStore) -> None:
    part = Subset(LatentDataset(store), [4, 0])
    loader: Any = DataLoader(part, collate_fn=LatentDataset.collate, batch_size=2)
    np.testing.assert_array_equal(next(iter(loader)).numpy(), expected(store, [4, 0]))


def test_a_shard_made_again_in_another_order_gives_each_key_its_own_latent(tmp_path: Path) -> None:
    store = create(tmp_path)
    fill(store, 8)
    dataset = LatentDataset(store, keys=[key(1), key(5)])
    (store.path / "commits" / "0.json").rename(tmp_path / "0.json")
    store.payload_path(0).rename(tmp_path / "0")
    with store.new_shard(0) as shard:
        for number in (3, 2, 1, 0):
            shard.add(key(number), latent(number))
        shard.commit({})
    store.refresh()
    assert store.rows_of(dataset.keys).tolist() == [2, 5]
    np.testing.assert_array_equal(dataset.read([0, 1]).numpy(), expected(store, [1, 5]))


# The prefetcher


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_prefetched_batches_equal_direct_reads(store: LatentStore, depth: int, threads: int) -> None:
    dataset = LatentDataset(store)
    truth = expected(store, range(COUNT))
    with Prefetcher(dataset, order(epochs=9), depth=depth, threads=threads) as batches:
        taken = []
        for indices, latents in batches:
            np.testing.assert_array_equal(latents.numpy(), truth[indices])
            taken.append(list(indices))
    assert taken == [indices for *_, indices in plain(order(epochs=9))]
    assert (batches.stats.batches, batches.stats.samples) == (45, 180)
    assert batches.stats.waited_s > 0


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_batch_stays_valid_until_so_many_more_are_asked_for(store: LatentStore, keep: int) -> None:
    truth = expected(store, range(COUNT))
    held: deque[tuple[Any, torch.Tensor]] = deque(maxlen=keep)
    memory: set[int] = set()
    with Prefetcher(LatentDataset(store), order(epochs=40), depth=4, threads=4, keep=keep) as batches:
        for batch in batches:
            held.append(batch)
            memory.add(batch[1].data_ptr())
            for indices, latents in held:
                np.testing.assert_array_equal(latents.numpy(), truth[indices])
    assert len(memory) == 4 + keep
    assert [bool((latents.numpy() == truth[indices]).all()) for indices, latents in held] == [True] * keep


def test_the_next_but_one_is_the_default(store: LatentStore) -> None:  # one ahead is what accelerate's loader holds
    with Prefetcher(LatentDataset(store), order(), depth=1) as batches:
        assert len({latents.data_ptr() for _, latents in islice(batches, 12)}) == 1 + 2


def test_batches_put_on_a_device_stay_valid(store: LatentStore) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = LatentDataset(store, rollout_steps=1)
    with Prefetcher(dataset, order(epochs=9), device=device) as batches:
        everything = list(batches)
    for indices, latents in everything:
        assert latents.device.type == device.type
        np.testing.assert_array_equal(latents.cpu().numpy(), expected(store, range(COUNT))[indices][:, :, :2])


def test_batches_of_any_lists_and_sizes(store: LatentStore) -> None:
    lists = [[1], [2, 3, 4, 5, 6], [], [7, 7], list(range(COUNT))]
    with Prefetcher(LatentDataset(store), iter(lists), depth=1) as batches:
        for wanted, (indices, latents) in zip(lists, batches, strict=True):
            assert indices is wanted
            np.testing.assert_array_equal(latents.numpy(), expected(store, range(COUNT))[wanted])


def test_restored_at_any_position_a_prefetcher_goes_on_though_its_threads_were_ahead(store: LatentStore) -> None:
    dataset = LatentDataset(store)
    whole = [indices for *_, indices in plain(order(epochs=2))]
    for position in range(len(whole) + 1):
        left = order(epochs=2)
        with Prefetcher(dataset, left, depth=4) as batches:
            assert [list(indices) for indices, _ in islice(batches, position)] == whole[:position]
            state = left.state_dict()
        assert left.state_dict() == state
        again = order(epochs=2)
        again.load_state_dict(state)
        with Prefetcher(dataset, again) as batches:
            assert [list(indices) for indices, _ in batches] == whole[position:]


def test_a_damaged_shard_is_an_error_at_its_batch_and_the_threads_end(store: LatentStore) -> None:
    damaged, sequence = 14, order()
    flip(store.payload_path(3), 2 * store.layout.row_bytes + store.layout.reads(3).segments[0][0] + 7)
    lists = [[0, 1], [2, 3], [20, damaged], [4, 5]]
    with Prefetcher(LatentDataset(store), lists, depth=3) as batches:
        assert [indices for indices, _ in islice(batches, 2)] == lists[:2]
        with pytest.raises(DamagedShardError, match="shard 3"):
            next(batches)
        assert not readers()
        assert list(batches) == []
    position = next(n for n, (*_, indices) in enumerate(plain(order(), 5)) if damaged in indices)
    with Prefetcher(LatentDataset(store), sequence, depth=3) as batches, pytest.raises(DamagedShardError):
        list(batches)
    assert (sequence.state_dict()["epoch"], sequence.state_dict()["batch"]) == (0, position)


def test_an_error_of_the_order_ends_the_threads_too(store: LatentStore) -> None:
    def lists() -> Iterator[list[int]]:
        yield [0]
        raise ValueError("no more")

    batches = Prefetcher(LatentDataset(store), lists(), depth=1)
    with pytest.raises(ValueError, match="no more"):
        list(batches)
    assert not readers()
    out_of_range = Prefetcher(LatentDataset(store), [[0], [COUNT]])
    assert next(out_of_range)[0] == [0]
    with pytest.raises(IndexError):
        next(out_of_range)
    assert not readers()


def test_an_interrupt_while_waiting_ends_the_threads(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LatentDataset(store)
    started, interrupted = threading.Event(), threading.Event()
    monkeypatch.setattr(dataset, "read", lambda *_: interrupted.wait(patience(20)))

    def lists() -> Iterator[list[int]]:
        yield [0]
        started.set()  # the list after it is wanted once the first is being read

    batches = Prefetcher(dataset, lists(), threads=2)

    def interrupt(*_: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt_once_it_waits() -> None:
        started.wait(patience(20))
        while not interrupted.wait(0.05):  # one that comes between two instructions of a wait is heard only after it
            signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident or 0
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        thread = threading.Thread(target=interrupt_once_it_waits)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not readers()


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
@pytest.mark.parametrize("way", ["close", "error", "forget", "end"])
def test_a_prefetcher_let_go_of_leaves_no_thread_and_no_open_file(tmp_path: Path, way: str) -> None:
    fill(create(tmp_path), COUNT)
    gc.collect()
    files = open_files()
    store = open_store(tmp_path)
    batches = Prefetcher(LatentDataset(store), order(epochs=2), depth=4, threads=3)
    next(batches)
    assert readers()
    assert open_files() > files
    if way == "close":
        batches.close()
        assert not readers()
        assert list(batches) == []
    elif way == "error":
        with pytest.raises(ZeroDivisionError), batches:
            _ = [len(indices) / 0 for indices, _ in batches]
        assert not readers()
    elif way == "end":
        assert len(list(batches)) == 9
        assert not readers()
    del batches, store
    gc.collect()
    assert eventually(lambda: not readers())
    assert eventually(lambda: open_files() <= files)


def test_nothing_is_read_before_it_is_asked_for(store: LatentStore) -> None:
    sequence = order()
    Prefetcher(LatentDataset(store), sequence)
    assert not readers()
    assert sequence.state_dict() == order().state_dict()


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"threads": 0}, {"keep": 0}])
def test_a_prefetcher_that_cannot_be_is_refused(store: LatentStore, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="count from 1"):
        Prefetcher(LatentDataset(store), order(), **wrong)


# Forks


@pytest.mark.filterwarnings("ignore:This process")  # it has threads: that is the point
def test_a_process_forked_amid_reads_reads_on(store: LatentStore) -> None:
    dataset = LatentDataset(store)
    truth = expected(store, range(COUNT))

    def reads_all() -> bool:
        return bool((dataset.read(range(COUNT)).numpy() == truth).all())

    with Prefetcher(dataset, order(epochs=2000), depth=8, threads=4) as batches:
        for _ in range(10):
            next(batches)
            assert in_a_child(reads_all)
    assert reads_all()


@pytest.mark.filterwarnings("ignore:This process")
def test_a_prefetcher_goes_on_by_itself_on_both_sides_of_a_fork(store: LatentStore) -> None:
    truth = expected(store, range(COUNT))
    whole = [indices for *_, indices in plain(order(epochs=2))]
    batches = Prefetcher(LatentDataset(store), order(epochs=2), depth=4)
    before = [list(indices) for indices, _ in islice(batches, 3)]

    def the_rest() -> bool:
        rest = [(list(indices), same(latents, truth[indices])) for indices, latents in batches]
        return before + [indices for indices, _ in rest] == whole and all(right for _, right in rest)

    assert in_a_child(the_rest)
    assert in_a_child(lambda: batches.close() is None)
    assert the_rest()


def same(latents: torch.Tensor, truth: NDArray[Any]) -> bool:
    return bool((latents.numpy() == truth).all())

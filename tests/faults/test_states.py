"""Any order of write, cut, flip, read, verify, repair and gc, against a dictionary that says what must be true."""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.store.folder import StoreFormat, open_store
from theworld.pipeline.store.reading.row_reader import RowReader
from theworld.pipeline.store.records import read_record, record_path
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair

from .harness import (
    FORMATS,
    SCRATCH,
    SEED,
    Cut,
    FaultyFileLayer,
    amount,
    create,
    damage_in,
    flip_bit,
    job,
    key,
    latent,
    layer,
    record_first,
)

SAMPLES = st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True)

STEPS = 50


class StoreMachine(RuleBasedStateMachine):
    """A store, and beside it what it must say.

    Attributes:
        shards: number of a visible shard -> its samples in row order.
        torn: shards whose payload is damaged, and by which flipped bits.
        rotten: visible shards whose record is damaged, while a snapshot still says what it said.
        lost: shards whose record is damaged: nothing of them is visible.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = Path(tempfile.mkdtemp(dir=SCRATCH if SCRATCH.is_dir() else None))
        self.shards: dict[int, tuple[int, ...]] = {}
        self.torn: dict[int, frozenset[int]] = {}
        self.rotten: set[int] = set()
        self.lost: set[int] = set()

    @initialize(format=st.sampled_from(FORMATS))
    def begin(self, format: StoreFormat) -> None:
        self.format = format
        self.store = create(self.cache, format)
        self.note_new_shards([0, 1, 2, 3], job(self.cache, range(4), format=format))

    def teardown(self) -> None:
        shutil.rmtree(self.cache)

    def visible(self) -> dict[int, int]:
        """Sample -> the shard it is read from: the lowest."""
        return {number: shard for shard in sorted(self.shards, reverse=True) for number in self.shards[shard]}

    @rule(numbers=SAMPLES)
    def write(self, numbers: list[int]) -> None:
        """A job writes what is missing of its plan, and nothing else."""
        missing = [number for number in numbers if number not in self.visible()]
        self.note_new_shards(numbers, job(self.cache, numbers, format=self.format))
        new = [number for shard in self.shards for number in self.shards[shard]]
        assert set(missing) <= set(new)

    @rule(numbers=SAMPLES, moment=st.floats(0, 1, exclude_max=True))
    def cut(self, numbers: list[int], moment: float) -> None:
        """A job that dies on the way has written whole shards, and all it was told of."""
        missing = [number for number in numbers if number not in self.visible()]
        told: list[str] = []
        try:
            with layer(FaultyFileLayer(1 + int(moment * (60 + 20 * len(missing))))):
                job(self.cache, numbers, format=self.format, tell=told.append)
        except Cut:
            pass
        self.note_new_shards(numbers)
        assert {int(word) for word in told if word.isdecimal()} <= self.visible().keys()

    def note_new_shards(self, allowed: Sequence[int], count: int | None = None) -> None:
        """Learn the numbers of the shards a job committed: of its missing samples, each once."""
        missing = [number for number in allowed if number not in self.visible()]
        store = open_store(self.cache, tolerate_damage=True)
        records = [read_record(store.place, n, store.recipe.id) for n in store.shards if n not in self.shards]
        new = {record.shard: tuple(int(word, 16) for word in record.keys) for record in records}
        written = [number for shard in sorted(new) for number in new[shard]]
        assert written == missing[: len(written)]
        assert count in (None, len(new))
        assert not new.keys() & self.lost, "the number of a damaged shard was given out again"
        self.shards |= new

    @precondition(lambda self: self.shards)
    @rule(data=st.data(), chance=st.integers(0, 2**16))
    def flip_a_payload(self, data: st.DataObject, chance: int) -> None:
        shard = data.draw(st.sampled_from(sorted(self.shards)))
        bits = self.torn.pop(shard, frozenset()) ^ {flip_bit(self.store.payload_path(shard), random.Random(chance))}
        if bits:  # the same bit twice is no harm
            self.torn[shard] = bits

    @precondition(lambda self: self.shards.keys() - self.rotten)
    @rule(data=st.data(), chance=st.integers(0, 2**16))
    def flip_a_record(self, data: st.DataObject, chance: int) -> None:
        """Where a snapshot speaks for it, its samples stay visible, and right; else they are lost."""
        shard = data.draw(st.sampled_from(sorted(self.shards.keys() - self.rotten)))
        flip_bit(record_path(self.store.place, shard), random.Random(chance))
        self.rotten.add(shard)
        self.note_lost_shards()

    def note_lost_shards(self) -> None:
        for shard in self.rotten & open_store(self.cache, tolerate_damage=True).bad_records.keys():
            self.rotten.remove(shard)
            del self.shards[shard]
            self.torn.pop(shard, None)
            self.lost.add(shard)

    @rule()
    def publish(self) -> None:
        create(self.cache, self.format).publish()

    @rule()
    def collect_garbage(self) -> None:
        """With nobody writing, gc needs no grace; nothing visible changes. A flipped bit is dated a second later."""
        if self.lost:  # what they name is not known
            with pytest.raises(DamagedShardError, match="repair"):
                gc(self.store.path, grace_s=-3600.0, apply=True)
        else:
            gc(self.store.path, grace_s=-3600.0, apply=True)
            assert list((self.store.path / "tmp").iterdir()) == []

    @rule()
    def verify(self) -> None:
        """`verify` names every damaged shard and no other."""
        found = damage_in(self.store.path)
        named = {
            shard
            for shard in {*self.shards, *self.lost}
            for path in (record_path(self.store.place, shard), self.store.payload_path(shard))
            if any(f"{path}" in finding for finding in found)
        }
        assert named == {*self.torn, *self.rotten, *self.lost}, found

    @rule()
    def repair(self) -> None:
        """Damage is moved out of the way, not deleted; all that was whole stays."""
        repair(self.store.path, apply=True)
        for shard in {*self.torn, *self.rotten}:
            del self.shards[shard]
        self.torn.clear()
        self.rotten.clear()
        self.lost.clear()
        assert damage_in(self.store.path) == []

    @invariant()
    def what_is_visible_is_what_must_be(self) -> None:
        store = open_store(self.cache, tolerate_damage=True)
        visible = self.visible()
        assert {int(word, 16) for word in store.keys} == visible.keys()
        assert len(store) == len(visible)
        for number, shard in visible.items():
            try:
                values = store.read([key(number)])[0]
            except DamagedShardError:
                assert shard in self.torn
            else:
                np.testing.assert_array_equal(values, latent(number))


def run(examples: int, *phases: Phase) -> None:
    # the same runs each time, from the seed; what they find is in the error, not in a database
    machine = seed(SEED)(StoreMachine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            phases=phases or (Phase.generate, Phase.shrink),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,  # it would go on looking for others
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_a_store_says_what_its_model_says(figure: Callable[[str], None]) -> None:
    runs, began = amount("RUNS", 8), time.monotonic()
    run(runs)
    figure(f"state machine: {runs} runs of up to {STEPS} steps, seed {SEED}, {time.monotonic() - began:.0f} s")


def test_the_model_notices_a_writer_that_publishes_the_record_first() -> None:
    with record_first(), pytest.raises((AssertionError, BaseExceptionGroup)):
        run(40, Phase.generate)


def test_the_model_notices_a_reader_without_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowReader, "_check", lambda *_: None)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run(40, Phase.generate)

"""Bits that flipped and files that were cut short: found, or of no consequence; never read as something else.

Who must find what: opening a store, theworld.json and (but for its number of samples) Zarr's description; opening or
`verify`, a record; reading or `verify`, a payload; asking for them, sources and failures. The snapshot is a cache: with
a damaged one, everything is read as it was.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from theworld.pipeline.errors import StoreError, TheWorldError
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store import ledger, manifest, records
from theworld.pipeline.store.folder import StoreFormat, create_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.reading.row_reader import RowReader
from theworld.pipeline.store.upkeep.verify import verify

from .harness import BAD, SEED, SPEC, amount, damage_in, key

RECIPES: dict[StoreFormat, Recipe] = {
    "zarr": Recipe(world="sha256:" + "0" * 64, height=64, width=48, rollout_steps=3),
    "webdataset": Recipe(world="sha256:" + "0" * 64, height=64, width=48, rollout_steps=3, dtype="bfloat16"),
}
SAMPLES, SHARD_SIZE = 10, 3
WEIGHTS = {"payload": 60, "record": 20, "snapshot": 8, "theworld.json": 4, "zarr": 4, "sources": 2, "failed": 2}
FAILURES = [BAD, Failure(source="nan.png", key=key(99), reason="nan", message="a NaN in frame 2", attempts=3)]


def latents() -> NDArray[np.float32]:
    return np.random.default_rng(1).integers(-128, 128, (SAMPLES, 2, 4, 8, 6)).astype(np.float32) / 16


class Victim:
    """A store, its files by kind, and the bytes of each."""

    def __init__(self, cache: Path, format: StoreFormat) -> None:
        store = create_store(cache, RECIPES[format], SPEC, label="tiny", shard_size=SHARD_SIZE, format=format)
        store.record_sources((f"{number}.png", key(number)) for number in range(SAMPLES))
        for failure in FAILURES:
            store.record_failure(failure)
        for start in range(0, SAMPLES, SHARD_SIZE):
            with store.new_shard() as shard:
                for number in range(start, min(SAMPLES, start + SHARD_SIZE)):
                    shard.add(key(number), latents()[number])
                shard.commit({"host": "here", "seconds": 1.5})
        store.publish()
        self.store = store
        self.kinds = {
            "payload": [store.payload_path(number) for number in store.shards],
            "record": sorted((store.path / "commits").iterdir()),
            "snapshot": [store.path / "index.safetensors"],
            "theworld.json": [store.path / "theworld.json"],
            "zarr": [] if store.zarr_group is None else [*store.path.glob("**/zarr.json"), *store.path.glob("key/c/*")],
            "sources": sorted((store.path / "sources").iterdir()),
            "failed": sorted((store.path / "failed").iterdir()),
        }
        self.intact = {path: path.read_bytes() for paths in self.kinds.values() for path in paths}
        self.times = {path: path.stat().st_mtime_ns for path in self.intact}

    def draw_harm(self, draw: random.Random) -> tuple[str, Path, bytes]:
        """A kind of file, one file of it, and what becomes of its bytes: mostly a flipped bit, else a shorter file."""
        kind = draw.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        if not self.kinds[kind]:
            kind = "payload"
        path = draw.choice(self.kinds[kind])
        content = self.intact[path]
        if draw.random() < 0.1:
            return kind, path, content[: draw.randrange(len(content))]
        bit = draw.randrange(8 * len(content))
        return kind, path, content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def put(path: Path, content: bytes, time_ns: int) -> None:
    """Bits that rot leave the file's time as it was; people who edit do not."""
    path.write_bytes(content)
    os.utime(path, ns=(time_ns, time_ns))


def judge(victim: Victim, kind: str, path: Path, *, ask_verify: bool) -> str:
    """Who is first to find the damage: open, read, verify; or harmless, where all that is read is right.

    Args:
        ask_verify: also where reading found it; it must find it too.
    Raises:
        AssertionError: something else was read, or nobody found it.
    """
    found = ""
    try:
        store = open_store(victim.store.path)
    except StoreError as error:
        check_message(error, path)
        assert kind in ("record", "theworld.json", "zarr"), "this file should not hinder opening"
        assert not ask_verify or names(victim, path), "verify found nothing"
        return "open"
    assert store.keys == tuple(key(number) for number in range(SAMPLES)), "other keys are visible"
    for shard in store.shards.values():
        first = shard.number * SHARD_SIZE
        try:
            values = store.read(store.keys[first : first + shard.rows])
        except StoreError as error:
            assert kind == "payload"
            check_message(error, path)
            found = "read"
        else:
            assert np.array_equal(values.astype(np.float32), latents()[first : first + shard.rows]), "wrong latents"
    try:
        sources, failures = store.sources(), store.failures()
    except StoreError as error:
        assert kind in ("sources", "failed")
        check_message(error, path)
        found = "read"
    else:
        assert sources == {f"{number}.png": (key(number),) for number in range(SAMPLES)}, "wrong sources"
        assert failures == sorted(FAILURES, key=lambda failure: failure.source), "wrong failures"
    store.close()
    if kind in ("payload", "record") and (ask_verify or not found):
        assert names(victim, path), "verify found nothing"
        found = found or "verify"
    if kind == "zarr":
        if any(str(path) in finding.message for finding in verify(victim.store.path).findings):
            found = found or "verify"
        else:  # a title, a space: what a user may have written
            assert np.array_equal(zarr.open_group(victim.store.path, mode="r")["latents"][...], latents()), "others see"
    return found or "harmless"


def names(victim: Victim, path: Path) -> bool:
    """Whether `verify` does."""
    return any(str(path) in finding for finding in damage_in(victim.store.path))


def check_message(error: StoreError, path: Path) -> None:
    assert str(path) in str(error), f"the error names another file: {error}"
    assert any(word in str(error) for word in ("theworld precompute", "theworld cache repair")), f"no advice: {error}"


def harm_at_random(victim: Victim, times: int, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """(who found how many, what went wrong) over so many damages, each healed before the next."""
    tally, wrong = Counter[str](), list[str]()
    for _ in range(times):
        kind, path, content = victim.draw_harm(draw)
        if content == victim.intact[path]:
            continue
        put(path, content, victim.times[path] + draw.choice((0, 0, 1)))
        try:
            outcome = judge(victim, kind, path, ask_verify=draw.random() < 0.2)
            tally[f"{kind}: {outcome}"] += 1
        except (AssertionError, TheWorldError) as error:
            wrong.append(f"{kind}: {error}".splitlines()[0])
        put(path, victim.intact[path], victim.times[path])
        tally["in all"] += 1
    return tally, wrong


@pytest.mark.slow
def test_every_flipped_bit_and_every_cut_is_found_or_changes_nothing(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    draw, began = random.Random(SEED), time.monotonic()
    tally, wrong = harm_at_random(Victim(cache, format), amount("FLIPS", 600) // 2, draw)
    by_whom = ", ".join(f"{who} {count}" for who, count in sorted(tally.items()) if who != "in all")
    figure(
        f"flipped bits and cuts, {format}: {tally['in all']}, undetected {len(wrong)}, seed {SEED}, "
        f"{time.monotonic() - began:.0f} s ({by_whom})"
    )
    assert wrong == []
    # a user's title or a space in a zarr.json is no damage
    assert {who for who in tally if who.endswith("harmless")} - {"zarr: harmless"} == {"snapshot: harmless"}
    assert tally["record: verify"] > tally["in all"] / 50, "the snapshot spoke for no record"
    assert tally["payload: read"] > tally["in all"] / 10, "reading itself finds little"


def test_a_snapshot_that_is_harmed_is_not_believed_and_an_intact_one_is_used(cache: Path, format: StoreFormat) -> None:
    """Else the flips above would never have met the snapshot."""
    victim = Victim(cache, format)
    (hidden,) = (path for path in victim.kinds["record"] if path.name == "0.json")
    put(hidden, b"x" * len(victim.intact[hidden]), victim.times[hidden])
    assert len(open_store(cache)) == SAMPLES
    (snapshot,) = victim.kinds["snapshot"]
    put(snapshot, victim.intact[snapshot][:-1], victim.times[snapshot])
    with pytest.raises(StoreError, match=r"commits/0\.json"):
        open_store(cache)


def blind_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowReader, "_check", lambda *_: None)


def trusting_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_without_looking(sealed: bytes) -> bytes:
        text, mark, _ = sealed.rpartition(b',"seal":"')
        if not mark:
            raise ValueError("it does not end in a seal")
        return text + b"}"

    for module in (records, manifest, ledger):
        monkeypatch.setattr(module, "unseal", open_without_looking)


@pytest.mark.parametrize("break_reader", [blind_reader, trusting_reader])
def test_the_flips_notice_a_reader_that_does_not_look(
    cache: Path,
    format: StoreFormat,
    break_reader: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    victim = Victim(cache, format)
    break_reader(monkeypatch)
    _, wrong = harm_at_random(victim, 100, random.Random(SEED))
    assert wrong

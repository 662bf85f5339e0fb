"""A drop that is killed at any moment: no dropped key comes back, no other row is lost, and the next drop finishes."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from theworld.pipeline.store.folder import StoreFormat, open_store
from theworld.pipeline.store.upkeep.drop import drop, dropped_rows
from theworld.pipeline.store.upkeep.retire import pending_retirements
from theworld.pipeline.store.upkeep.verify import verify

from .harness import SEED, amount, create, finish, job, key, latent, start

PLAN = range(24)
BAD = [number for number in PLAN if number % 5 == 0]
GOOD = [number for number in PLAN if number % 5]


def test_a_drop_that_is_killed_never_brings_a_key_back_and_loses_no_row(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    draw, kills = random.Random(SEED), amount("DROP_KILLS", 6)
    began, seconds = time.monotonic(), 0.2
    halfway = 0
    for turn in range(kills):
        here = cache / str(turn)
        job(here, PLAN, format=format)
        store = create(here, format)

        def act(tell: Callable[[str], None], path: Path = store.path) -> None:
            tell("begun")
            drop(path, [key(number) for number in BAD], apply=True)

        started = time.monotonic()
        child, words = start(act)
        time.sleep(draw.uniform(0, seconds))
        finish(child, words, kill=True)
        seconds = 0.9 * seconds + 0.1 * min(1.0, 1.5 * (time.monotonic() - started))
        after = open_store(here, check_sizes=True)
        visible = {int(word, 16) for word in after.keys}
        assert visible in (set(PLAN), set(GOOD)), "half of a drop is visible"
        rows = after.read([key(number) for number in GOOD])
        assert all((row == latent(number)).all() for row, number in zip(rows, GOOD, strict=True))
        halfway += bool(len(after.dropped) and dropped_rows(after))
        drop(store.path, [key(number) for number in BAD], apply=True)
        assert {int(word, 16) for word in open_store(here, check_sizes=True).keys} == set(GOOD)
        assert dropped_rows(open_store(here)) == {}
        assert pending_retirements(store.path) == {}
        assert verify(store.path, level="read").damage == ()
    figure(f"drop killed, {format}: {kills} kills, {halfway} halfway, 0 keys back, {time.monotonic() - began:.1f} s")

"""Writers of one bucket killed at random, while answers are lost: nothing lost, nothing twice, nothing half visible."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..s3_server import Faults, s3_server
from .bucket_writers import Found, kill_writers
from .harness import SEED, amount

WRITERS = 8
KILLS = amount("BUCKET_KILLS", 60)


def killed(folder: Path, *, way: str, kills: int) -> Found:
    with s3_server(seed=SEED) as server, server.environment():
        server.faults = Faults(lost=0.05, unavailable=0.05, conflicts=0.05)
        return kill_writers(server, folder, way=way, writers=WRITERS, kills=kills, seed=SEED)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["the_store", "as_the_store"])
def test_writers_of_a_bucket_killed_at_random_lose_nothing_and_make_nothing_twice(
    tmp_path: Path, way: str, figure: Callable[[str], None]
) -> None:
    began = time.monotonic()
    found = killed(tmp_path, way=way, kills=KILLS)
    duration_s = time.monotonic() - began
    figure(f"{way}, {WRITERS} of them, 5 % lost answers, 5 % 503, 5 % 409: {found}, {duration_s:.0f} s")
    assert found.acknowledged > found.kills / 4
    assert (found.lost, found.twice, found.half) == ([], [], [])
    assert found.orphans <= found.kills + WRITERS
    assert found.ended == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["list_then_put", "record_first", "believe_errors"])
def test_the_same_kills_find_out_naive_writers(tmp_path: Path, way: str, figure: Callable[[str], None]) -> None:
    for turn in range(5):  # by chance a few kills may do no harm
        (tmp_path / str(turn)).mkdir()
        found = killed(tmp_path / str(turn), way=way, kills=max(KILLS // 5, 20))
        figure(f"{way}: {found}")
        if found.is_broken:
            return
    pytest.fail("no kill did harm")

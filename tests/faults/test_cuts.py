"""A job cut before any of its file operations leaves whole shards and resumes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from theworld.pipeline.store.folder import StoreFormat

from .harness import Cut, FaultyFileLayer, broken, check, check_resumes, job, layer, operations, record_first


def cut_everywhere(
    cache: Path, plan: range, format: StoreFormat, only: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """What the checker finds wrong, cut by cut, of a job cut before each of its file operations."""
    found = []
    for cut_at, name in enumerate(operations(cache / "counted", plan, format), 1):
        if not only(name):
            continue
        here, acknowledged = cache / str(cut_at), list[str]()
        with layer(FaultyFileLayer(cut_at)), pytest.raises(Cut):
            job(here, plan, format=format, tell=acknowledged.append)

        def judge(here: Path = here, acknowledged: list[str] = acknowledged) -> None:
            check(here, plan, format=format, acknowledged=acknowledged)
            check_resumes(here, plan, format=format, twice=len(found) % 4 == 0)

        found.append(broken(judge))
    return found


@pytest.mark.slow
def test_a_cut_before_any_file_operation_leaves_whole_shards_and_resumes(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    found = cut_everywhere(cache, range(3), format)
    figure(f"cuts before a file operation, {format}: {len(found)}, broken promises {sum(map(bool, found))}")
    assert len(found) > 100
    assert not any(found)


def test_the_cuts_notice_a_writer_that_publishes_the_record_first(cache: Path, format: StoreFormat) -> None:
    with record_first():
        found = cut_everywhere(cache, range(2), format, only="link".__eq__)
    assert sum("No such file" in fault for fault in found) >= 1

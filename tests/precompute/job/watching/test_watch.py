"""What a person sees while a job runs: by batches, and a line when none ends."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from theworld.pipeline import progress as progress_module
from theworld.pipeline.progress import Progress
from theworld.precompute.job.watching import watch
from theworld.precompute.job.watching.watch import Figures, watched
from theworld.precompute.rollout.kinds import KINDS

AT_FIRST = Figures(
    total=100, done=0, in_hand=64, made=0, batches=0, failures=Counter(), workers=4, worker_s=0.0, gpus_a_worker=0.0
)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.005)
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(progress_module, "LOG_EVERY_S", 0.0)


def lines(capsys: pytest.CaptureFixture[str], figures: Callable[[], Figures], *, until: str) -> list[str]:
    """What is said until a line with these words is."""
    with watched(Progress.on_stderr(), KINDS["rollout"], 100, figures):
        said = ""
        while until not in said:
            time.sleep(0.01)
            said += capsys.readouterr().err
    return (said + capsys.readouterr().err).splitlines()


def test_a_line_has_batches_percent_rate_times_gpu_hours_and_failures_by_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    further = replace(
        AT_FIRST, done=30, made=18, batches=6, failures=Counter(decode=2), worker_s=7200.0, gpus_a_worker=0.5
    )
    asked: Iterator[Figures] = iter([AT_FIRST])
    first, *_ = lines(capsys, lambda: next(asked, further), until="of 100")
    assert re.fullmatch(
        r"rolling out: 48 of 100 \(48 %\), [\d.]+ images/s, 0:00:\d\d elapsed, 0:00:\d\d left, "
        r"2 failed, 2 decode, 6 batches, 1\.00 GPU-h",
        first,
    ), first


def test_work_that_has_to_be_done_again_is_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    states = iter([replace(AT_FIRST, made=16, batches=2)])
    said = lines(capsys, lambda: next(states, replace(AT_FIRST, made=8, batches=1)), until="8 of 100 (8 %)")
    assert any("16 of 100" in line for line in said)
    assert "worker-h" in said[-1], "of a CPU no GPU-hours"


def test_while_no_batch_ends_a_line_says_that_the_job_lives(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(capsys, lambda: replace(AT_FIRST, done=30), until="still at work")
    assert any("still at work: 64 images in hand, 30 of 100 made; no batch has ended for" in line for line in said)

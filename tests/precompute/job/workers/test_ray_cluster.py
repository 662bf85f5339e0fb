"""Why a cluster does not answer is said in its own last words."""

import pytest

from theworld.precompute.job.workers import ray_cluster

FAILS = """
import sys
print("a warning", file=sys.stderr)
sys.exit("the reason")
"""


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("print('open')", "open"),
        (FAILS, "the reason"),
        ("", "no reason given"),
        ("import sys; sys.exit('x' * 999)", "x" * 300),
    ],
)
def test_the_answer_is_what_the_probe_prints_else_its_last_error(
    monkeypatch: pytest.MonkeyPatch, program: str, answer: str
) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE", program)
    assert ray_cluster._probe("10.0.0.1:6379") == answer


def test_a_probe_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE", "import time; time.sleep(600)")
    monkeypatch.setattr(ray_cluster, "_PROBE_S", 0.2)
    assert "nothing that listens there answers as Ray does" in ray_cluster._probe("10.0.0.1:6379")

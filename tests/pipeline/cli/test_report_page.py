"""The page of `theworld evaluate --report`: what came is shown beside what was predicted, for one's own images too."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.command_line import theworld


def films(page: Path) -> list[str]:
    """What each clip of the page is labelled."""
    return re.findall(r'class="film"[^>]*aria-label="([^"]+)"', page.read_text())


@pytest.mark.slow
def test_a_store_of_encoded_videos_is_shown_beside_the_predicted_futures(tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = theworld(*words, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.err

    run("scenes", "s", "--train", 6, "--test", 3, "--videos")
    run("precompute", "s/images", "--steps", 2, "--cache", "rolled", "--in-process")
    run("precompute", "s/futures", "--kind", "frames", "--steps", 2, "--cache", "true", "--in-process")
    mine = tmp_path / "mine"  # without the states of the scenes: as questions about one's own images and videos
    shutil.copytree(tmp_path / "s", mine, ignore=shutil.ignore_patterns("scenes.jsonl"))
    train = ("train", "rolled", "--questions", "mine/questions.jsonl", "--train-steps", 1)
    run(*train, "--out", "runs/1", "--futures", "true")
    run(*train, "--out", "runs/2")

    run("evaluate", "runs/1", "--report", "as-trained.html")
    run("evaluate", "runs/2", "--report", "without.html")
    run("evaluate", "runs/2", "--rescore", "--report", "named.html", "--futures", "true")
    predicted = films(tmp_path / "without.html")
    assert predicted
    for page in ("as-trained.html", "named.html"):
        assert len(films(tmp_path / page)) == 2 * len(predicted)

    said = run("evaluate", "runs/2", "--rescore", "--report", "gone.html", "--futures", "nowhere")
    assert "note: true futures are not shown: nowhere" in said
    assert films(tmp_path / "gone.html") == predicted

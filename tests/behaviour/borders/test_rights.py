"""Everything a command leaves behind has the rights that the umask leaves, no more and no less."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.miniatures.image_store import make_images
from tests.miniatures.training import StopAt, lay_out, settings
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.errors import Interrupted
from theworld.pipeline.files.rights import current_umask, follow_umask
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.job.workers.ray_pool import _ray_setup
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.questions.inspect import write_questions
from theworld.train.runs.hub import copy_run
from theworld.train.runs.partial import resumed_config
from theworld.train.training.train import train


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def rights(folder: Path) -> dict[str, str]:
    return {str(path): oct(stat.S_IMODE(path.lstat().st_mode)) for path in (folder, *folder.rglob("*"))}


def usual(folder: Path, mask: int) -> dict[str, str]:
    """What they would be if this process had made each in the usual way."""
    return {str(path): oct((0o777 if path.is_dir() else 0o666) & ~mask) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_a_training_and_what_is_made_of_it_follow_the_umask(mask: int, tmp_path: Path) -> None:
    house = lay_out(tmp_path)
    with umask(mask):
        with pytest.raises(Interrupted):
            train(settings(house, train_steps=4), stop=StopAt(2))
        partial = house / "run.partial"
        assert rights(partial) == usual(partial, mask)
        train(resumed_config(partial, {}), resume=partial)
        evaluate(house / "run", device="cpu")
        copy_run(house / "run", house / "pulled")
        write_questions(house / "cache" / "questions.jsonl", house / "written", {})
    for name in ("run", "pulled", "written"):
        assert rights(house / name) == usual(house / name, mask)
    assert not [path for path in house.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_a_job_follows_the_umask(mask: int, tmp_path: Path) -> None:
    world, images = save_mini_world(tmp_path / "world"), make_images(tmp_path / "in", 3)
    with umask(mask):
        config = PrecomputeConfig(
            images=images, world=str(world), size="32x32", steps=1, denoise_steps=2, in_process=True, device="cpu",
            cache=tmp_path / "cache", events=tmp_path / "events.jsonl",
        )  # fmt: skip
        run_precompute(config)
    for name in ("cache", "events.jsonl"):
        assert rights(tmp_path / name) == usual(tmp_path / name, mask)


def test_a_worker_of_ray_is_started_with_the_umask_of_the_job() -> None:
    for mask in (0o002, 0o027):
        with umask(mask):
            setup = _ray_setup({"world_folder": None, "store": "s", "device": "cpu", "batch_size": 1}, threads=2)
        assert (setup.umask, setup.threads) == (mask, 2)


def test_the_umask_is_read_without_setting_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with umask(0o026):
        assert current_umask() == 0o026
        monkeypatch.setattr("theworld.pipeline.files.rights._STATUS", tmp_path / "absent")
        assert current_umask() == 0o026, "also where there is no /proc"
        assert current_umask() == 0o026


def test_a_folder_of_a_group_stays_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o2700)
    with umask(0o007):
        follow_umask(tmp_path / "x")
    assert oct(stat.S_IMODE((tmp_path / "x").stat().st_mode)) == "0o2770"

"""One image through the whole house, as a user types it: the embedded world, its scenes, its reader, an answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import zarr
from typer.testing import CliRunner

from tests.command_line import theworld_process
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import TheWorldError
from theworld.pipeline.files.images.decode import SUFFIXES
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.live.world import LiveWorld


def theworld(*words: str) -> str:
    """A command as it is typed: a process of its own."""
    done = theworld_process(*words, limit_s=600)
    assert done.code == 0, done.err
    return done.out


def here(*args: str) -> str:
    """The same without waiting for a new process."""
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.slow
def test_one_image_goes_through_the_whole_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = json.loads(here("precompute", "--steps", "8", "--scenes", "12", "--in-process", "--json"))
    assert (said["written"], said["failed"]) == (12, 0)
    budget = ("--train-steps", "2", "--batch-size", "4")
    for run, form in enumerate((("--cache",), ("--cache", "latents"), (said["store"],)), start=1):
        here("train", *form, *budget)
        assert (tmp_path / "runs" / str(run) / "adapter_model.safetensors").is_file()
    assert "temporal" in here("evaluate")
    [evaluation] = json.loads(here("evaluate", "runs/1", "--steps", "0", "--json"))
    assert (evaluation["steps"], evaluation["by_type"]["temporal"]["total"]) == (0, 4)

    image = sorted((tmp_path / "latents" / "scenes" / "images").glob("test-*.png"))[0]
    question = ("where will the ball land?", "--choices", "left,middle,right")
    answer = theworld("ask", "runs/1", str(image), *question, "--json", "--preview", "rollout.png")
    assert json.loads(answer)["answer"] in {"left", "middle", "right"}
    assert (tmp_path / "rollout.png").stat().st_size > 1000

    # what `ask` rolls out is what the store holds, rounded
    store = open_store(tmp_path / "latents")
    live = LiveWorld.for_recipe(store.recipe, device="cpu").roll_out(image)
    key = store.sources()[image.name][0]
    np.testing.assert_allclose(store.read([key]), live.numpy(), atol=2e-3, rtol=1e-3)

    for wrong, words, code in (
        (("train", "--steps", "9"), ("9", "8"), 2),
        (("train", "--questions", "none.jsonl"), ("none.jsonl",), 2),
        (("ask", "runs/1", "absent.png", "why?"), ("absent.png",), 2),
        (("train", "nowhere", "--questions", "q.jsonl"), ("nowhere", "theworld precompute"), 10),  # not a store
    ):
        error = CliRunner().invoke(app, wrong).exception
        assert isinstance(error, TheWorldError), error
        assert error.exit_code == code
        assert all(word in str(error) for word in words), error
    assert len(list((tmp_path / "runs").iterdir())) == 3


@pytest.mark.slow
def test_photographs_of_mixed_sizes_and_formats_become_latents_that_plain_zarr_reads(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in Path(skimage.data.__file__).parent.iterdir():
        if path.suffix in SUFFIXES:
            (photos / path.name).write_bytes(path.read_bytes())
    report = run_precompute(
        PrecomputeConfig(
            images=photos, cache=tmp_path / "c", steps=4, size="224x224", denoise_steps=2, in_process=True, device="cpu"
        )
    )
    assert report.written >= 25
    assert {failure.source for failure in report.failures} == {
        "multipage.tif",
        "multipage_rgb.tif",
        "no_time_for_that_tiny.gif",
    }
    latents = zarr.open(report.store, mode="r")["latents"]
    assert latents.shape == (report.written, 16, 5, 28, 28)
    assert torch.from_numpy(latents[:]).isfinite().all()

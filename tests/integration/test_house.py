"""One image through the whole house, as a user types it: the embedded world, its scenes, its reader, an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import zarr

from theworld.pipeline.image_files import SUFFIXES
from theworld.pipeline.store import open_store
from theworld.precompute.config import PrecomputeConfig
from theworld.precompute.job import run_precompute
from theworld.precompute.live import LiveWorld


def theworld(*args: str, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "theworld.pipeline.cli", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_image_goes_through_the_whole_house(tmp_path: Path) -> None:
    said = json.loads(theworld("precompute", "--steps", "8", "--scenes", "12", "--in-process", "--json", cwd=tmp_path))
    assert (said["written"], said["failed"]) == (12, 0)
    budget = ("--train-steps", "2", "--batch-size", "4")
    for run, form in enumerate((("--cache",), ("--cache", "latents"), (said["store"],)), start=1):
        theworld("train", *form, *budget, cwd=tmp_path)
        assert (tmp_path / "runs" / str(run) / "adapter_model.safetensors").is_file()
    assert "temporal" in theworld("evaluate", cwd=tmp_path)
    [evaluation] = json.loads(theworld("evaluate", "runs/1", "--steps", "0", "--json", cwd=tmp_path))
    assert (evaluation["steps"], evaluation["by_type"]["temporal"]["total"]) == (0, 4)

    image = sorted((tmp_path / "latents" / "scenes" / "images").glob("test-*.png"))[0]
    question = ("where will the ball land?", "--choices", "left,middle,right")
    answer = theworld("ask", "runs/1", str(image), *question, "--json", "--preview", "rollout.png", cwd=tmp_path)
    assert json.loads(answer)["answer"] in {"left", "middle", "right"}
    assert (tmp_path / "rollout.png").stat().st_size > 1000

    # what `ask` rolls out is what the store holds, rounded
    store = open_store(tmp_path / "latents")
    live = LiveWorld.for_recipe(store.recipe, device="cpu").roll_out(image)
    key = store.sources()[image.name][0]
    np.testing.assert_allclose(store.read([key]), live.numpy(), atol=2e-3, rtol=1e-3)

    for wrong, words in (
        (("train", "--steps", "9"), ("9", "8")),
        (("train", "--questions", "none.jsonl"), ("none.jsonl",)),
        (("ask", "runs/1", "absent.png", "why?"), ("absent.png",)),
        (("train", "nowhere", "--questions", "q.jsonl"), ("nowhere", "theworld precompute")),
    ):
        command = [sys.executable, "-m", "theworld.pipeline.cli", *wrong]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == (10 if "nowhere" in wrong else 2)  # not a store; wrong use
        assert all(word in done.stderr for word in words), done.stderr
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

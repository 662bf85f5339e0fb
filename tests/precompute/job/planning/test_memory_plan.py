"""A job is planned by the memory of its device, at the size of the real models, of which no weight is there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from typer.testing import CliRunner

from tests.miniatures.image_store import make_images
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.progress import Progress
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.prepare import Prepared, prepare
from theworld.precompute.job.report import Report
from theworld.precompute.job.scheduler import Work
from theworld.precompute.worlds.network.offloading import bytes_of, bytes_on_gpu
from theworld.precompute.worlds.public_sizes import PUBLIC_CONFIGS

CLASSES = {"vae": "AutoencoderKLWan", "transformer": "CosmosTransformer3DModel"}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}


def lay_out_configs(folder: Path, name: str) -> Path:
    """A folder of a public Cosmos model without its weights."""
    for part, config in {**PUBLIC_CONFIGS[name], "scheduler": SCHEDULER}.items():
        (folder / part).mkdir(parents=True)
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / file).write_text(json.dumps({"_class_name": CLASSES.get(part), **config}))
    return folder


def plan(tmp_path: Path, name: str, size: str, **settings: Any) -> Prepared:
    world = lay_out_configs(tmp_path / "world", name)
    config = PrecomputeConfig(
        images=make_images(tmp_path / "in", 20), cache=tmp_path / "cache", world=str(world), size=size, dry_run=True,
        **settings,
    )  # fmt: skip
    return prepare(config, Progress.silent())


@pytest.mark.parametrize(
    ("name", "size", "settings", "batch"),
    [
        ("cosmos-predict2-2b", "224x224", {"device": "RTX 4090"}, 16),
        ("cosmos-predict2-2b", "224x224", {"memory": 8.0, "device": "H100"}, 8),  # what is given counts
        ("cosmos-predict2-2b", "432x768", {"device": "L4 24GB"}, 2),
        ("cosmos-predict2-14b", "432x768", {"device": "A40"}, 2),
        ("cosmos-predict2-14b", "224x224", {"memory": 32.0, "device": "H100"}, 4),
    ],
)
def test_a_batch_chosen_by_tokens_also_fits_the_memory(
    tmp_path: Path, name: str, size: str, settings: dict[str, Any], batch: int
) -> None:
    memory = plan(tmp_path, name, size, **settings).memory
    assert memory.batch == batch
    assert memory.need is not None
    assert memory.room is not None
    assert memory.need.total <= memory.room.usable
    lines = memory.lines()
    assert f" a worker, for batches of {batch}, of the " in lines[0]
    assert (len(lines) == 2) == (memory.batch < memory.wanted)


def test_a_batch_that_is_asked_for_stays_and_a_person_is_warned(tmp_path: Path) -> None:
    memory = plan(tmp_path, "cosmos-predict2-2b", "432x768", device="L4 24GB", batch_size=40).memory
    assert memory.batch == 40
    warning = memory.warning()
    assert warning is not None
    assert "batches of 40 need about" in warning
    assert "Leave --batch-size out" in warning


def test_a_card_too_small_for_one_image_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(tmp_path, "cosmos-predict2-14b", "704x1280", device="RTX 4090", steps=23)
    message = str(refused.value)
    assert message.startswith("an RTX 4090 24GB is too small for world: one image of 704x1280 and 23 steps needs about")
    assert "weights, " in message
    assert "--world cosmos-predict2-2b: " in message


def test_settings_that_would_fit_are_named_with_what_they_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan(tmp_path, "cosmos-predict2-2b", "704x1280", memory=8, device="L4", steps=23, compute_dtype="float32")
    first, *lines = str(refused.value).splitlines()
    assert first.endswith("These would fit:")
    assert "  --compute-dtype bfloat16 --size 528x960: 6.4 GiB" in lines


def test_a_card_too_small_for_the_weights_is_planned_with_them_in_main_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"These would fit:\n  --offload pinned: 2\.\d GiB"):
        plan(tmp_path / "without", "cosmos-predict2-14b", "224x224", memory=24, batch_size=1)
    memory = plan(tmp_path / "with", "cosmos-predict2-14b", "224x224", memory=24, batch_size=1, offload="pinned").memory
    assert memory.need is not None
    configs = PUBLIC_CONFIGS["cosmos-predict2-14b"]
    with torch.device("meta"):
        network = CosmosTransformer3DModel(**configs["transformer"]).to(torch.bfloat16)
        vae = AutoencoderKLWan(**configs["vae"])
    weights = bytes_on_gpu(network) + bytes_of(vae)
    assert memory.need.weights == pytest.approx(weights, rel=0.01)
    assert memory.need.total == pytest.approx(weights + memory.need.computed, rel=0.15)
    assert memory.copied == pytest.approx(bytes_of(network), rel=0.1)
    assert memory.lines()[0].endswith(" of a GPU of 24 GiB, the other weights in main memory")


def test_the_dry_run_of_a_card_too_small_ends_with_the_code_of_wrong_settings(tmp_path: Path) -> None:
    world = lay_out_configs(tmp_path / "world", "cosmos-predict2-14b")
    words = ["precompute", str(make_images(tmp_path / "in", 2)), "--world", str(world), "--dry-run", "--device", "cpu"]
    words += ["--cache", str(tmp_path / "cache"), "--memory", "24"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2
    assert "a GPU of 24 GiB is too small for world" in str(done.exception)


def test_an_estimate_that_was_wrong_is_said_with_both_numbers(tmp_path: Path) -> None:
    memory = plan(tmp_path, "cosmos-predict2-2b", "224x224", device="RTX 4090").memory
    assert memory.need is not None
    expected = memory.need.total
    assert memory.wrong(None) is None
    assert memory.wrong(int(1.1 * expected)) is None
    note = memory.wrong(2 * expected)
    assert note is not None
    assert "the estimate of memory was wrong: 7.0 GiB were expected, 14.0 GiB were taken" in note


@pytest.mark.parametrize(("batch", "is_said"), [(16, True), (8, False)])
def test_the_summary_says_it_only_of_batches_as_large_as_planned(tmp_path: Path, batch: int, is_said: bool) -> None:
    """Halved ones take less, and the try that ran out of memory took what there was."""
    prepared = plan(tmp_path, "cosmos-predict2-2b", "224x224", device="RTX 4090")
    assert prepared.memory.batch == 16
    assert prepared.memory.need is not None
    work = Work(written=20, batch_size=batch, peak_bytes=2 * prepared.memory.need.total)
    report = Report(
        store=tmp_path, recipe=prepared.recipe, plan=prepared.plan, memory=prepared.memory, work=work, stored=20
    )
    assert ("the estimate of memory was wrong" in report.summary()) is is_said


def test_a_gpu_smaller_than_what_cuda_takes_has_nothing_and_one_without_end_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a GPU of 0.3 GiB is too small .* 0 bytes of 0 bytes can be used"):
        plan(tmp_path, "cosmos-predict2-2b", "224x224", device="cpu", memory=0.3)
    for endless in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="memory"):
            PrecomputeConfig(memory=endless)


def test_on_a_cpu_there_is_no_limit_and_the_estimate_is_said(tmp_path: Path) -> None:
    memory = plan(tmp_path, "cosmos-predict2-2b", "224x224", device="cpu").memory
    assert memory.room is None
    assert memory.lines()[0].endswith(" a worker, for batches of 8")

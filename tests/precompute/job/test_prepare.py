"""A plan of a job: for as many workers as asked for, here, in a cluster, or on a device that is only named."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.miniatures.image_store import make_images
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.progress import Progress
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.prepare import announce, prepare
from theworld.precompute.job.watching.events import Events
from theworld.precompute.worldlet.scenes.files import write_scenes


@pytest.mark.parametrize(("setting", "workers"), [({"workers": 3}, 3), ({"in_process": True}, 1)])
def test_the_workers_are_those_asked_for(tmp_path: Path, setting: dict[str, Any], workers: int) -> None:
    world = save_mini_world(tmp_path / "world")
    config = PrecomputeConfig(
        images=make_images(tmp_path / "in", 2), cache=tmp_path / "cache", world=str(world), steps=1, size="32x32",
        device="cpu", **setting,
    )  # fmt: skip
    prepared = prepare(config, Progress.silent())
    assert (prepared.workers, prepared.device, len(prepared.plan.todo)) == (workers, "cpu", 2)
    assert prepared.store is None
    assert not config.cache.exists()


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def _print(self, line: str) -> None:
        self.lines.append(line)


def planned(tmp_path: Path, **settings: Any) -> list[str]:
    """The lines of a plan."""
    world = save_mini_world(tmp_path / "world")
    config = PrecomputeConfig(
        images=make_images(tmp_path / "in", 40), cache=tmp_path / "cache", world=str(world), steps=1, size="32x32",
        compute_dtype="bfloat16", dry_run=True, **settings,
    )  # fmt: skip
    told = Told()
    announce(prepare(config, told), config, told, Events(None))
    assert not config.cache.exists()
    return told.lines


@pytest.mark.parametrize("where", [{}, {"address": "10.0.0.1:6379"}])
def test_a_device_that_is_named_is_planned_without_being_here_and_no_cluster_is_joined(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    lines = planned(tmp_path, device="NVIDIA H100 80GB HBM3", workers=4, gpu_hour_price="2.50 EUR", **where)
    assert any("40 % of the 989 TFLOP/s of an H100 80GB" in line for line in lines)
    assert lines[-1] == (
        "total   about 1 s on 4 workers, less than 0.01 GPU-hours, less than 0.01 EUR at 2.50 EUR each; "
        "with 8 copies that fill batches; loading comes on top"
    )
    [todo] = [line for line in lines if line.startswith("to do")]
    assert "40 rollouts, 40.0 KiB in about 6 files; 0 done" in todo  # 3 shards of a batch of 16, and their records


def test_of_a_family_that_says_nothing_of_memory_the_weights_are_compared_with_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("theworld.precompute.worlds.builtin._Cosmos.memory_of_batch")
    monkeypatch.setattr("theworld.precompute.worlds.source.WorldSource.weight_bytes", lambda _: 28 * 2**30)
    lines = planned(tmp_path, device="4090")
    assert any(line.startswith("memory  not known") for line in lines)
    [warning] = [line for line in lines if "28.0 GiB" in line]
    assert "the weights alone take 28.0 GiB, more than the 24 GB of an RTX 4090 24GB" in warning
    assert "--offload pinned" in warning


def test_a_plan_with_weights_in_main_memory_says_what_is_copied_in_place_of_that_they_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theworld.precompute.worlds.source.WorldSource.weight_bytes", lambda _: 28 * 2**30)
    [line] = [line for line in planned(tmp_path, device="4090", offload="pinned") if "28.0 GiB" in line]
    assert line.startswith("offload weights stay in main memory: each forward pass copies up to 28.0 GiB")
    assert "1.2 s at the 25 GB/s of PCIe 4.0 x16 (computed)" in line


def test_weights_that_stay_in_main_memory_anyway_are_no_cost_and_it_is_said(tmp_path: Path) -> None:
    [line] = [line for line in planned(tmp_path, device="cpu", offload="mapped") if "offload" in line]
    assert line == "note: --offload changes nothing on a CPU, whose memory holds the weights already"


def test_a_cluster_without_a_device_says_how_to_plan_it(tmp_path: Path) -> None:
    lines = planned(tmp_path, address="10.0.0.1:6379", gpu_hour_price="2.50")
    assert any('--device "H100 80GB" --workers 64' in line for line in lines)
    assert lines[-1] == "total   no time is known, so no price either"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "H100 80GB"}, "device must be auto, cpu or cuda, got 'H100 80GB'. With dry_run it may also"),
        ({"device": "H101", "dry_run": True}, "no device is known by the name 'H101'. Known, for a plan, are: H100"),
        ({"offload": "mapped", "kind": "views"}, "offload is of the network that predicts"),
        ({"offload": "mapped", "compile": True}, "leave one of them out"),
        ({"gpu_hour_price": "cheap"}, "gpu_hour_price must be a number, with or without a currency"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.split(", got")[0].replace("(", r"\(")) as refused:
        PrecomputeConfig(**settings)
    assert words in str(refused.value)


def test_a_price_in_a_file_may_be_a_number() -> None:
    assert PrecomputeConfig(gpu_hour_price=2.5).gpu_hour_price == "2.5"  # type: ignore[arg-type]


def told_of(tmp_path: Path, images: Path, **settings: Any) -> list[str]:
    """The warnings of a plan by the worldlet."""
    config = PrecomputeConfig(images=images, cache=tmp_path / "cache", device="cpu", dry_run=True, **settings)
    told = Told()
    announce(prepare(config, told), config, told, Events(None))
    return [line for line in told.lines if line.startswith("warning:")]


def test_a_plan_says_that_the_worldlet_knows_no_photographs_and_is_silent_about_its_own_scenes(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", 3)
    [warning] = told_of(tmp_path, photos)
    assert "the worldlet knows its own scenes alone" in warning
    assert "these images are none of them: the predicted futures mean nothing" in warning
    assert "--world cosmos-predict2-2b" in warning
    write_scenes(tmp_path / "scenes", splits={"train": 4})
    assert told_of(tmp_path, tmp_path / "scenes" / "images") == []
    (photos / "one.png").write_bytes(next((tmp_path / "scenes" / "images").iterdir()).read_bytes())
    [warning] = told_of(tmp_path, photos)
    assert "3 of 4 images that were looked at are none of them" in warning
    assert told_of(tmp_path, photos, kind="views") == [], "nothing is predicted there"

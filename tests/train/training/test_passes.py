"""A pass that does not fit in memory gets smaller, and the update stays the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from theworld.pipeline.device_memory import fits
from theworld.pipeline.errors import ConfigError, Interrupted
from theworld.pipeline.progress import Progress
from theworld.train.reader.model import TheWorld
from theworld.train.runs.partial import resumed_config
from theworld.train.training.train import plan, train

from ...miniatures.training import StopAt, lay_out, learned, settings


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("house"), validation=2)


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Makes a forward pass of more rows end as on a GPU whose memory is used up; returns the rows of the others."""

    def limit(most: int) -> list[int]:
        forward, passed = TheWorld.forward, list[int]()

        def limited(self: TheWorld, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if len(input_ids) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            passed.append(len(input_ids))
            return forward(self, input_ids, *args, **kwargs)

        monkeypatch.setattr(TheWorld, "forward", limited)
        return passed

    return limit


def test_passes_are_halved_until_they_fit_and_learn_what_small_ones_learn(
    house: Path, tmp_path: Path, room_for: Callable[[int], list[int]]
) -> None:
    same = {"train_steps": 3, "validate_every": 3}
    train(settings(house, out=tmp_path / "asked", micro_batch=2, **same))
    warnings: list[str] = []
    passed = room_for(2)
    train(settings(house, out=tmp_path / "found", **same), progress=Progress.keeping(warnings))
    asked, found = learned(tmp_path / "asked"), learned(tmp_path / "found")
    assert all(torch.equal(asked[name], found[name]) for name in asked)
    assert max(passed) == 2
    assert [line for line in warnings if "memory" in line] == [
        "out of memory: passes of 5 images do not fit; now of 3",
        "out of memory: passes of 3 images do not fit; now of 2",
    ]
    asked_facts, found_facts = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("asked", "found")
    )
    assert found_facts["memory"]["rows"] == 2
    assert (found_facts["tokens"], found_facts["supervised_tokens"]) == (
        asked_facts["tokens"], asked_facts["supervised_tokens"],
    )  # fmt: skip


def test_a_resumed_training_begins_with_what_fitted(
    house: Path, tmp_path: Path, room_for: Callable[[int], list[int]]
) -> None:
    room_for(3)
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped after update 2"):
        train(settings(house, out=out, train_steps=4), stop=StopAt(2))
    warnings: list[str] = []
    path = tmp_path / "run.partial"
    train(resumed_config(path, {}), resume=path, progress=Progress.keeping(warnings))
    assert not [line for line in warnings if "memory" in line]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 on transformers 5.23
def test_one_image_that_does_not_fit_is_tried_with_checkpointing_and_then_named(
    house: Path, tmp_path: Path, room_for: Callable[[int], list[int]]
) -> None:
    room_for(0)
    warnings: list[str] = []
    with pytest.raises(
        ConfigError, match=r"out of memory on this CPU at update 1.* 1 images and gradient checkpointing"
    ):
        train(settings(house, out=tmp_path / "run", batch_size=1), progress=Progress.keeping(warnings))
    assert "out of memory: one image does not fit; now with gradient checkpointing" in warnings


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        fits(broken)


def test_a_gpu_of_a_size_gets_passes_that_fit_it_or_is_refused_before_weights_load(house: Path) -> None:
    whole = plan(settings(house))
    assert (whole.rows, whole.checkpointed, whole.limit) == (5, False, None)
    gib, context = 2.0**30, 0.6
    part = plan(settings(house, memory=context + 0.75 * whole.estimate.total / 0.9 / gib, dtype="float32"))
    assert 1 <= part.rows < 5
    assert part.estimate.total < 0.75 * whole.estimate.total
    assert "passes of 5 images would not fit" in part.lines()[1]
    with pytest.raises(
        ConfigError, match=r"a GPU of 0\.60\d* GiB is too small to train .*(would fit|choose a smaller)"
    ):
        plan(settings(house, memory=context + 300_000 / gib))

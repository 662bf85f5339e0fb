"""A training of a second: a miniature language model, a store of blobs, and settings for them; and ways to end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from theworld.train.config import TrainConfig
from theworld.train.training.signals import Stop

from .lm import SMALL_TRAINING, save_mini_lm, save_mini_store


def lay_out(folder: Path, *, images: int = 18, validation: int = 0) -> Path:
    """A language model, a store and questions; the first `validation` training images go to the split of that name."""
    save_mini_lm(folder / "lm")
    save_mini_store(folder / "cache", images=images)
    file = folder / "cache" / "questions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[: 2 * validation]:
        line["split"] = "validation"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def settings(folder: Path, **changes: Any) -> TrainConfig:
    """Of what `lay_out` laid out in `folder`; dropout is on, so that random numbers matter."""
    said = {
        "store": folder / "cache",
        "questions": folder / "cache" / "questions.jsonl",
        "lm": str(folder / "lm"),
        "out": folder / "run",
        **SMALL_TRAINING,
        "train_steps": 8,
        "batch_size": 5,
        "lora_dropout": 0.1,
        **changes,
    }
    return TrainConfig.model_validate(said)


class StopAt(Stop):
    """A signal that comes during the n-th update of a process."""

    def __init__(self, update: int) -> None:
        self._left = update

    @property
    def signal_name(self) -> str:  # type: ignore[override]
        self._left -= 1
        return "SIGTERM" if self._left <= 0 else ""


def learned(run: Path) -> dict[str, torch.Tensor]:
    """All that was trained."""
    return {**load_file(run / "adapter_model.safetensors"), **load_file(run / "world_reader.safetensors")}


def same(one: Path, other: Path) -> bool:
    """Whether two runs are equal bit by bit: the weights' files, the loss curve, and what was counted on the way."""
    files = ("adapter_model.safetensors", "world_reader.safetensors")
    curves = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for curve in curves:
        for name in ("seconds", "waited_seconds", "checkpoints", "resumed"):
            del curve[name]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in files) and curves[0] == curves[1]

"""A miniature world with four pictures, questions about them, and runs of two updates: for what is rolled out live."""

from __future__ import annotations

import json
from pathlib import Path

from theworld.pipeline.store.folder import LatentStore
from theworld.train.config import TrainConfig
from theworld.train.training.train import train

from .image_store import make_images, make_store
from .lm import PLACES, save_mini_lm
from .world_model import save_mini_world


def ask_about(images: Path, *, train: int, test: int) -> Path:
    """A file of questions beside images, one about each; the first are for training."""
    lines = [
        {"id": f"{n}", "image": f"{n:03d}.png", "question": "where will the ball land?", "answer": PLACES[n % 2],
         "choices": PLACES[:2], "type": "temporal", "split": "train" if n < train else "test"}
        for n in range(train + test)
    ]  # fmt: skip
    (images / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return images / "questions.jsonl"


class LiveHouse:
    """The world, its pictures, and two draws of each picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.images = save_mini_world(folder / "world"), make_images(folder / "in", 4)
        self.samples = make_store(self.images, folder / "samples", self.world, kind="samples", draws=2)
        save_mini_lm(folder / "lm")
        ask_about(self.images, train=2, test=2)

    def train(self, store: LatentStore, **settings: object) -> Path:
        """A run of two updates."""
        sizes = {"train_steps": 2, "batch_size": 4, "lora_rank": 2, "patch": 2, "max_world_steps": 4, "device": "cpu"}
        questions, out = self.images / "questions.jsonl", self.folder / "run"
        where = {"store": store.path, "questions": questions, "lm": str(self.folder / "lm"), "out": out}
        train(TrainConfig.model_validate({**sizes, **where, **settings}))
        return out

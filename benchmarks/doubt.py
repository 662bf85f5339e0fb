"""Trial: a reader that learns when to doubt a rollout, beside one that is shown a rollout, and the frozen frame.

    theworld scenes d --train 400 --test 240 --families buckets
    theworld precompute d/images --steps 8 --denoise-steps 4 --cache d/rollout
    theworld precompute d/images --steps 8 --denoise-steps 4 --kind samples --draws 4 --cache d/draws
    python -m benchmarks.doubt d --updates 300

frozen    frame 0 in place of every future frame
rollout   the first draw; also: the same reader's answers averaged over all draws
doubt     in training, of each image: one of its draws; in a tenth the future of another scene, in a tenth frame 0 alone
          (shares that grow over the first third of the updates). At answering time, the first draw. Always behind it
          one more frame: how far the draws lie apart, cell by cell.

All have the same questions, order, updates and seed; doubt has one more frame of world tokens, and costs all draws.
Temporal questions are split by whether the first draw, decoded and read by the scenes' parser, ends as the scene does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from theworld.pipeline import LatentStore, open_store
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.progress import Progress
from theworld.precompute.worldlet.rollout_check import rollout_outcomes
from theworld.train import Question, TrainConfig, read_questions, resolve_keys, train
from theworld.train.data.arms import parse_arm, substitute_scenes
from theworld.train.data.live import LiveLatents
from theworld.train.evaluation.session import AnswerSession
from theworld.train.questions.record import select_split

ARMS = ("frozen", "rollout", "doubt")
_WRONG, _ALONE, _GROWS = 0.1, 0.1, 1 / 3
_SPREAD = 2.0  # times the standard deviation over draws, whose mean is then about that of latents


class Futures:
    """Shows the latents of a store of kind samples as an arm has them; a `RollOut`, so that `train` takes it."""

    def __init__(self, arm: str, store: LatentStore, *, others: dict[str, str], images: int, seed: int) -> None:
        """
        Args:
            others: key of an image -> key of another scene's.
            images: that a training reads in all.
        """
        self.arm, self.store, self.images = arm, store, images
        self.draws = store.recipe.draws
        self.steps = store.recipe.rollout_steps // self.draws
        self.draw: int | None = None
        """Which draw is shown; None is training."""
        self._others, self._seen, self._rng = others, 0, np.random.default_rng(seed)

    def check(self, keys: Sequence[str]) -> None:
        """All are in the store."""
        self.store.rows_of(tuple(keys))

    def __call__(self, keys: Sequence[str], rollout_steps: int) -> Tensor:
        """(B, C, 1 + rollout_steps, H, W) float32."""
        latents = as_tensor(self.store.read(tuple(keys))).float()
        first = latents[:, :, :1]
        futures = latents[:, :, 1:].unflatten(2, (self.draws, self.steps))
        if self.arm == "frozen":
            return first.expand(-1, -1, 1 + rollout_steps, -1, -1)
        if self.arm == "rollout" or self.draw is not None:
            shown = futures[:, :, self.draw or 0]
        else:
            shown = torch.stack([self._mixed(*each) for each in zip(keys, first, futures, strict=True)])
        if self.arm == "rollout":
            return torch.cat([first, shown], dim=2)
        spread = _SPREAD * futures.std(2)[:, :, self.steps // 2 :].mean(2, keepdim=True)
        return torch.cat([first, shown, spread], dim=2)

    def _mixed(self, key: str, first: Tensor, futures: Tensor) -> Tensor:
        """One future in training, (C, K, H, W)."""
        grown = min(1.0, self._seen / (self.images * _GROWS))
        self._seen += 1
        chosen, chance = int(self._rng.integers(self.draws)), self._rng.random() / grown if grown else 1.0
        if chance < _WRONG:
            return as_tensor(self.store.read([self._others[key]])).float()[0, :, 1 : 1 + self.steps]
        if chance < _WRONG + _ALONE:
            return first.expand(-1, self.steps, -1, -1)
        return futures[:, chosen]


def answers_of(arm: str, config: TrainConfig, futures: Futures, questions: Sequence[Question]) -> list[list[str]]:
    """Train, and answer: one list of answers for each draw shown, and one of the mean over them."""
    steps = futures.steps + (arm == "doubt")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(config.model_copy(update={"steps": steps, "out": run}), progress=Progress.silent(), live=futures)
        session = AnswerSession.open(run, device="cpu", progress=Progress.silent())
        opened = session.open_arm(parse_arm("rollout"), questions, steps=steps)
        assert opened.images is not None
        shown = LiveLatents(futures.store, futures, keys=opened.images.keys, rollout_steps=steps)
        texts: list[list[str]] = []
        chances: list[list[Sequence[float]]] = []
        for draw in range(1 if arm == "frozen" else futures.draws):
            futures.draw = draw
            responses = session.answer(dataclasses.replace(opened, images=shown), batch_size=64)
            texts.append([response.text for response in responses])
            chances.append([response.probabilities for response in responses])
    means = [np.mean(of_draws, 0) for of_draws in zip(*chances, strict=True)]
    mean = [(question.choices or ())[int(each.argmax())] for question, each in zip(questions, means, strict=True)]
    return [texts[0], mean]


def table_row(name: str, texts: Sequence[str], questions: Sequence[Question], ends_right: dict[str, bool]) -> str:
    """Accuracy of temporal questions, all and by outcome, and of static ones."""
    cells = [name.ljust(24)]
    for kind, outcome in (("temporal", None), ("temporal", True), ("temporal", False), ("static", None)):
        right = [
            text == question.answer
            for text, question in zip(texts, questions, strict=True)
            if question.type == kind and outcome in (None, ends_right.get(question.scene_id))
        ]
        cells.append(f"{np.mean(right):.3f} of {len(right)}" if right else "-")
    return "  ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt")
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default=",".join(ARMS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    store, file = open_store(chosen.scenes / "draws"), chosen.scenes / "questions.jsonl"
    outcomes = chosen.scenes / "outcomes.json"
    if not outcomes.exists():
        outcomes.write_text(json.dumps(rollout_outcomes(open_store(chosen.scenes / "rollout"), chosen.scenes)))
    ends_right = json.loads(outcomes.read_text())
    everything = read_questions(file)
    pool, questions = (select_split(everything, split, file) for split in ("train", "test"))
    key_by_question = resolve_keys(pool, file, store).keys
    key_by_scene = {question.scene_id: key_by_question[question.id] for question in pool}
    others = {key_by_scene[scene]: key_by_scene[other] for scene, other in substitute_scenes(pool).items()}
    config = TrainConfig(
        store=chosen.scenes / "draws", questions=file, train_steps=chosen.updates, seed=chosen.seed, device="cpu"
    )
    print(" " * 24, "temporal", "rollout ends right", "rollout ends wrong", "static", sep="  ")
    for arm in chosen.arms.split(","):
        read = config.train_steps * config.batch_size
        futures = Futures(arm, store, others=others, images=read, seed=chosen.seed)
        one, mean = answers_of(arm, config, futures, questions)
        print(table_row(arm, one, questions, ends_right), flush=True)
        if arm != "frozen":
            print(table_row(f"{arm}, mean of draws", mean, questions, ends_right), flush=True)


if __name__ == "__main__":
    main()

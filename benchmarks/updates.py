"""Updates of the training loop itself (train/training/loop.py), way by way.

    python -m benchmarks.train --only packing    # what packing and logits at labels alone gain, what the world costs
    python -m benchmarks.train --only loading    # the store against everything in RAM, and how long the loop waits

packing   The same questions in every way: `plain` is what transformers' own loss does, a row a question and logits at
          every position; `labels` has logits at labels alone; `packed` has the questions of an image behind one world
          besides. `LM alone` is `packed` with ordinary tokens in the place of the world's, so as many tokens and
          labels, and no reader. Peak memory is of a process that does nothing else, above what it held before its
          first update; Linux only.
loading   `packed` updates, each of other images: from tensors in RAM; from a store just opened, so each sample's
          checksums are checked; the same with the files evicted from the page cache first. Waiting is the loop's own
          count (`waited_seconds` in metrics.json), the first batch of the turn included, which nothing can read ahead.

Ways take turns. A turn is a training of a few updates, its first left out of the times; a time is the median over all
turns' updates, its range that of the turns' medians, a ratio the median over rounds of turns side by side.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from theworld.pipeline import LatentSpec, LatentStore, Recipe, create_store, open_store
from theworld.pipeline.progress import Bar, Progress
from theworld.train import LatentDataset, TheWorld, TrainConfig
from theworld.train.data.batches import Example, pack
from theworld.train.data.loader import Indices
from theworld.train.language.lm import LanguageModel
from theworld.train.reader.model import IGNORED, WorldOutput
from theworld.train.runs.partial import PartialRun, TrainingFacts
from theworld.train.training.inputs import TrainData, Training
from theworld.train.training.loop import fit

from .subjects import SETTINGS, STEPS, Setting, examples, key_of, rollouts, world_model

PACKING = ("plain", "labels", "packed", "LM alone")
LOADING = ("RAM", "store", "store, evicted")
_LOSSES_AGREE = 1e-3


class PlainWorld(TheWorld):
    """The same model with transformers' own loss: logits at every position."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **more: Any
    ) -> WorldOutput:
        logits = super().forward(input_ids, attention_mask, **more).logits
        world = logits.shape[1] - labels.shape[1]
        wanted = nn.functional.pad(labels, (world, 0), value=IGNORED)[:, 1:].flatten()
        return WorldOutput(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted), logits)


class InMemory(LatentDataset):
    """Latents in RAM behind the interface of those in a store."""

    read_ahead = False

    def __init__(self, latents: Tensor) -> None:
        self.latents, self.rollout_steps = latents, STEPS
        self.keys = tuple(key_of(image) for image in range(len(latents)))

    def read(self, indices: Indices, buffer: Any = None) -> Tensor:  # noqa: ARG002
        return self.latents[torch.as_tensor(indices)]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one short training took."""

    seconds: list[float]
    """By update, but the first."""
    waited: float
    """Share of its time in which the loop had no batch."""
    tokens: float
    """Of an update, the world's included."""
    loss: float
    """Of its first update."""

    @property
    def middle(self) -> float:
        """Seconds of an update."""
        return statistics.median(self.seconds)


class _Clock(Progress):
    """Notes when updates end."""

    def __init__(self) -> None:
        super().__init__(None)
        self.ended: list[float] = []

    @contextmanager
    def bar(self, title: str, *, total: int, unit: str) -> Iterator[Bar]:  # type: ignore[override]  # noqa: ARG002
        yield self

    def advance(self, count: int, *, failed: int = 0, note: str = "") -> None:  # noqa: ARG002
        self.ended.append(time.perf_counter())


def take_turn(
    lm: LanguageModel, model: TheWorld, material: TrainData, batch: int, updates: int, **settings: Any
) -> Turn:
    """Train so many updates of `batch` rows with a learning rate that changes nothing one could measure.

    Args:
        settings: others of `TrainConfig`.
    """
    config = TrainConfig(
        store=Path(), questions=Path(), train_steps=updates, batch_size=batch, learning_rate=1e-9, device="cpu",
        checkpoint_minutes=None, **settings,
    )  # fmt: skip
    facts = TrainingFacts(
        config={}, numbered=True, recipe_id="", images_sha256="", questions_sha256="", lm="", versions={}, started=""
    )
    clock = _Clock()
    with TemporaryDirectory() as scratch:
        training = Training(config, material, PartialRun(Path(scratch), facts), lm.pad_id, progress=clock)
        metrics = fit(model, training).metrics
    assert not metrics["refused_updates"], "updates were refused: these times are not those of a training"
    seconds = [end - start for start, end in zip(clock.ended, clock.ended[1:], strict=False)]
    middle = statistics.median(seconds or [metrics["seconds"]])
    return Turn(
        seconds=seconds,
        waited=metrics["waited_seconds"] / (updates * middle),
        tokens=metrics["tokens"] / updates,
        loss=metrics["loss"][0]["loss"],
    )


def in_turns(ways: dict[str, Callable[[], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Each way once a round, from another one on in each."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            turns[name].append(ways[name]())
    return turns


def ratio(turns: list[Turn], over: list[Turn]) -> tuple[float, float, float]:
    """How many times as long `turns` took as those beside them: median, least, most."""
    each = [one.middle / other.middle for one, other in zip(turns, over, strict=True)]
    return statistics.median(each), min(each), max(each)


# packing


def measure_packing(
    name: str, *, questions: int, images: int | None = None, rounds: int | None = None, updates: int | None = None
) -> None:
    """Print time, tokens and peak memory of an update, each way."""
    setting = SETTINGS[name]
    images, rounds, updates = images or setting.images, rounds or setting.rounds, updates or setting.updates
    lm, model = world_model(setting)
    ways = {way: _packing(way, lm, model, setting, images, questions) for way in PACKING}
    turns = in_turns({way: lambda take=take: take(updates) for way, take in ways.items()}, rounds)
    losses = [turns[way][0].loss for way in PACKING[:3]]
    assert max(losses) - min(losses) < _LOSSES_AGREE, f"the ways compute different losses: {losses}"
    _head(name, setting, f"{images} images x {questions} questions an update", rounds)
    print("| way | ms an update | questions/s | x plain | tokens/s | peak MiB |\n|---|---|---|---|---|---|")
    for way, taken in turns.items():
        times, (middle, least, most) = _times(taken), ratio(turns["plain"], taken)
        seconds = statistics.median(second for turn in taken for second in turn.seconds)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(_peak, (way, name, images, questions))
        print(
            f"| {way} | {times} | {images * questions / seconds:.2f} | {middle:.2f} ({least:.2f} to {most:.2f}) "
            f"| {taken[0].tokens / seconds:,.0f} | {memory:,.0f} |",
            flush=True,
        )
    middle, least, most = ratio(turns["LM alone"], turns["packed"])
    print(f"\ntokens/s, packed / LM alone: {middle:.3f} ({least:.3f} to {most:.3f})", flush=True)


def _packing(
    way: str, lm: LanguageModel, model: TheWorld, setting: Setting, images: int, questions: int
) -> Callable[[int], Turn]:
    """Trains so many updates this way, each of the same questions."""
    asked = examples(images, questions)
    if way == "LM alone":
        asked = [_without_world(example, setting.world_tokens) for example in asked]
    rows = pack(asked, questions if way in ("packed", "LM alone") else 1)
    latents = None if way == "LM alone" else InMemory(rollouts(setting, images))
    if way == "plain":
        model = PlainWorld(model.lm, model.reader, num_world_steps=STEPS)
    return lambda updates: take_turn(lm, model, TrainData(rows, latents), len(rows), updates)


def _without_world(example: Example, tokens: int) -> Example:
    """Any tokens where the world's would stand, shared by the image's questions as they are."""
    bos, *rest = example.prompt
    there = (3 + number % 297 for number in range(tokens))
    return Example(example.key, (bos, *there, *rest), example.answer, shared=1 + tokens)


def _peak(way: str, name: str, images: int, questions: int) -> float:
    """MiB that one update adds to what this process held before it."""
    torch.set_num_threads(1)
    lm, model = world_model(SETTINGS[name])
    train = _packing(way, lm, model, SETTINGS[name], images, questions)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building the model left
    before = _resident("VmRSS")
    train(1)
    return max(0, _resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# loading


def measure_loading(
    name: str, *, questions: int, images: int | None = None, rounds: int | None = None, updates: int | None = None
) -> None:
    """Print an update from the store, from RAM, and how long the loop waited."""
    setting = SETTINGS[name]
    images, rounds, updates = images or setting.images, rounds or setting.rounds, updates or 2 * setting.updates
    lm, model = world_model(setting)
    count = images * updates
    latents, rows = rollouts(setting, count), pack(examples(count, questions), questions)
    with TemporaryDirectory() as folder:
        path = _write(Path(folder), setting, latents).path

        def train(way: str) -> Turn:
            if way == "store, evicted":
                _evict(path)
            dataset = InMemory(latents) if way == "RAM" else LatentDataset(open_store(path))
            return take_turn(lm, model, TrainData(rows, dataset), images, updates)

        turns = in_turns({way: lambda way=way: train(way) for way in LOADING}, rounds)
    losses = [turns[way][0].loss for way in LOADING]
    assert max(losses) - min(losses) < _LOSSES_AGREE, f"the ways read different latents: {losses}"
    _head(name, setting, f"{images} images x {questions} questions an update, {count} images", rounds)
    print("| latents from | ms an update | x RAM | loop waits, % of its time |\n|---|---|---|---|")
    for way, taken in turns.items():
        middle, least, most = ratio(taken, turns["RAM"])
        waited = sorted(100 * turn.waited for turn in taken)
        print(
            f"| {way} | {_times(taken)} | {middle:.3f} ({least:.3f} to {most:.3f}) "
            f"| {statistics.median(waited):.3f} ({waited[0]:.3f} to {waited[-1]:.3f}) |",
            flush=True,
        )


def _write(folder: Path, setting: Setting, latents: Tensor) -> LatentStore:
    spec = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
    side = 8 * setting.side
    recipe = Recipe(world="sha256:" + "0" * 64, height=side, width=side, rollout_steps=STEPS)
    store = create_store(folder, recipe, spec, label="benchmark", shard_size=len(latents))
    with store.new_shard() as shard:
        for number, latent in enumerate(latents.numpy()):
            shard.add(key_of(number), latent)
        shard.commit({})
    store.publish()
    return store


def _evict(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


# telling


def _head(name: str, setting: Setting, batch: str, rounds: int) -> None:
    machine = f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"
    print(f"\n{name}: {setting.told()}; {batch}; {rounds} rounds, {machine}\n")


def _times(turns: list[Turn]) -> str:
    """Milliseconds of an update: the median, and the range of the turns' medians."""
    middles = [1000 * turn.middle for turn in turns]
    every = statistics.median(1000 * second for turn in turns for second in turn.seconds)
    return f"{every:.1f} ({min(middles):.1f} to {max(middles):.1f})"

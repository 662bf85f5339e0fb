"""Answer from several draws of the rollout: probabilities averaged over draws, and their agreement as confidence.

A world model draws noise, so an image has several possible futures. The same reader answers once for each of them. The
answer is the choice of the highest averaged probability; in own words, the one most draws give, the first of equals.
The *agreement* is the share of draws whose own answer is that one. N draws cost N rollouts and N answers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ...pipeline.errors import ConfigError, StoreMismatchError
from ...pipeline.latents.recipe import Recipe, difference
from ...pipeline.latents.tensors import as_stored
from ...pipeline.messages import command
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.reading.buffer import BatchBuffer
from ..config import AnswerConfig
from ..data.arms import Arm, arm_of_run
from ..data.loader import Indices, LatentDataset
from ..questions.record import Question
from ..runs.folder import LoadedRun
from ..runs.meta import RunMeta
from .answer import Answer, Ranked, ask, read_asked, require_steps
from .answering.many import Response
from .own_words import normalised

_AT_ONCE = 64  # images that are rolled out between two steps of the bar


class RollOutDraws(Protocol):
    """What rolls the inputs of a store forward again, one draw at a time."""

    def check(self, keys: Sequence[str]) -> None:
        """Refuse, with what to do, keys whose inputs cannot be found."""
        ...

    def __call__(self, keys: Sequence[str], rollout_steps: int, *, draw: int) -> Tensor:
        """(B, C, 1 + rollout_steps, H, W), float32: the first frames of the `draw`-th future after the recipe's."""
        ...


class DrawLatents(LatentDataset):
    """Samples of a store of kind `samples` that show one of their draws, as a rollout of that draw would be.

    Args:
        draw: which of the draws, from 0.
        keys, rollout_steps: as of `LatentDataset`, of one draw.
    """

    def __init__(self, store: LatentStore, *, draw: int, keys: Sequence[str], rollout_steps: int) -> None:
        self._draw, self._first = draw, 1 + draw * store.recipe.steps_of_a_draw
        self._steps = rollout_steps
        super().__init__(store, keys=keys, rollout_steps=self._first - 1 + rollout_steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), draw=self._draw, keys=self.keys, rollout_steps=self._steps), (self.store,)

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        """(B, C, 1 + K, H, W): frame 0, and K frames of the draw. The frames are moved in the memory that was read."""
        latents = super().read(indices, buffer)
        if self._first > 1:
            latents[:, :, 1 : 1 + self._steps] = latents[:, :, self._first : self._first + self._steps].clone()
        return latents[:, :, : 1 + self._steps]


class _KeptLatents(LatentDataset):
    """Samples of a store's recipe that were rolled out and are held in memory."""

    read_ahead = False

    def __init__(self, store: LatentStore, *, latents: Tensor, keys: Sequence[str], rollout_steps: int) -> None:
        super().__init__(store, keys=keys, rollout_steps=rollout_steps)
        self._latents = latents

    def __reduce__(self) -> tuple[Any, ...]:
        steps = self._latents.shape[2] - 1
        return partial(type(self), latents=self._latents, keys=self.keys, rollout_steps=steps), (self.store,)

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        del buffer  # nothing is read
        return self._latents[torch.as_tensor(list(indices))]


def require_draws(meta: RunMeta, run: Path, store: LatentStore, draws: int) -> None:
    """Refuse a store that does not hold enough draws of the rollouts that a run was trained on; raises as
    `require_draws_of`."""
    require_draws_of(meta.recipe, f"{run}", store, draws, steps=meta.reader.num_world_steps)


def require_draws_of(trained: Recipe, run: str, store: LatentStore, draws: int, *, steps: int) -> None:
    """Refuse a store that does not hold enough draws of the rollouts of a recipe.

    Args:
        run: what reads it, for messages.
        steps: that are read of each draw.
    Raises:
        ConfigError: it holds one future of each image, or fewer draws.
        StoreMismatchError: its draws are of other rollouts, or the run reads all draws at once.
    """
    recipe = store.recipe
    if not trained.traits.predicts or trained.traits.is_hidden or trained.traits.takes == "video":
        raise ConfigError(
            f"{run} reads latents of kind {trained.kind}, and a store of kind samples holds draws of the rollout of an "
            "image. "
            + ("Roll its draws out on the spot: --live" if trained.traits.is_one_diffusion else "Leave out --draws")
        )
    more = command("precompute", "IMAGES", "--kind", "samples", "--draws", str(draws))
    if not recipe.traits.has_draws:
        raise ConfigError(
            f"{store.place} holds {recipe.kind}, one future of each image, and --draws {draws} needs {draws} of them. "
            f"Make them with the settings of that store: {more}; and name the store that "
            "this makes with --store. Or roll them out on the spot: --live"
        )
    if recipe.draws < draws:
        raise ConfigError(
            f"{store.place} holds {recipe.draws} draws of each image, and {draws} are asked for. Pass --draws "
            f"{recipe.draws}, or make more: {more}"
        )
    if steps > recipe.steps_of_a_draw:
        raise StoreMismatchError(
            f"{run} reads {steps} rollout steps, and a draw in {store.place} has {recipe.steps_of_a_draw}. Name a "
            f"store whose draws have as many: {more} --steps {steps}"
        )
    if trained.kind == recipe.kind:
        same = trained.model_copy(update={"draws": recipe.draws, "rollout_steps": recipe.rollout_steps})
        steps_differ = trained.steps_of_a_draw != recipe.steps_of_a_draw
    else:
        single = {"kind": trained.kind, "draws": 1, "rollout_steps": recipe.steps_of_a_draw}
        same, recipe = trained, recipe.model_copy(update=single)
        steps_differ = False
    fields = difference(same, recipe)
    fields.pop("draw", None)  # which of the futures comes first; they are alike
    if steps_differ or fields:
        differ = ", ".join(f"{name} {ours!r} there, {theirs!r} here" for name, (ours, theirs) in fields.items())
        raise StoreMismatchError(
            f"{run} was trained on latents of another recipe than the draws in {store.place}: "
            f"{differ or 'steps of a draw'}. Make draws with the settings of its own store: {more}"
        )


def require_drawn_arm(arm: Arm, steps: int, draws: int) -> None:
    """Refuse to average over draws where an arm shows no rollout.

    Raises:
        ConfigError: the arm shows something else, or no steps are read.
    """
    if arm.kind == "doubt":
        raise ConfigError(
            f"a run of the arm doubt reads the spread of all draws with every answer, so --draws {draws} has nothing "
            "to average over. Leave it out"
        )
    if arm.kind not in ("rollout", "last") or not steps or draws < 1:
        input_text = f"{steps} steps of the arm {arm.name}"
        raise ConfigError(
            f"--draws {draws} averages over futures of the rollout, and {input_text} show none. Leave out --draws, or "
            "ask a run that was trained on rollouts or true futures, of 1 step or more"
        )


def arm_of_answers(trained: Arm) -> Arm:
    """What draws show to a run: rollouts, also to one that was trained on true futures."""
    return Arm("rollout", "rollout") if trained.kind == "true" else trained


Answering = Callable[[LatentDataset], list[Response]]
"""Answers all questions from the latents of their images."""


@dataclass(frozen=True, slots=True)
class DrawnResponses:
    """The answers of a run to many questions from several draws."""

    averaged: list[Response]
    """In the order of the questions; each says how many of the draws agree."""
    by_draw: list[list[Response]]
    rollout_seconds: float | None
    """Of an image, all draws together; None where they were read from a store."""
    total_seconds: float
    """That all rollouts took."""


def answer_draws(
    answer: Answering,
    questions: Sequence[Question],
    store: LatentStore,
    keys: Sequence[str],
    *,
    steps: int,
    draws: int,
    live: RollOutDraws | None = None,
    progress: Progress,
) -> DrawnResponses:
    """Answer all questions once for each of several futures, and average.

    Args:
        keys: of the images asked about.
        steps: K, rollout steps that are read of each future.
        live: rolls the futures out; they are held in memory, a draw at a time. None reads them from the store, of kind
            `samples`.
    """
    if live is not None:
        live.check(keys)
    by_draw: list[list[Response]] = []
    seconds = 0.0
    for draw in range(draws):
        images: LatentDataset
        if live is None:
            images = DrawLatents(store, draw=draw, keys=keys, rollout_steps=steps)
        else:
            started = time.perf_counter()
            latents = _roll_out(live, store, keys, steps, draw, f"draw {draw + 1} of {draws}", progress)
            seconds += time.perf_counter() - started
            images = _KeptLatents(store, latents=latents, keys=keys, rollout_steps=steps)
        by_draw.append(answer(images))
    price = None if live is None else float(f"{seconds / len(keys):.4g}")
    averaged = [average(responses, question.choices) for question, *responses in zip(questions, *by_draw, strict=True)]
    return DrawnResponses(averaged, by_draw, price, seconds)


def _roll_out(
    live: RollOutDraws,
    store: LatentStore,
    keys: Sequence[str],
    steps: int,
    draw: int,
    title: str,
    progress: Progress,
) -> Tensor:
    """(N, C, 1 + K, H, W) of all keys, in the store's dtype."""
    parts: list[Tensor] = []
    with progress.bar(title, total=len(keys), unit="images") as bar, torch.no_grad():
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            parts.append(as_stored(live(part, steps, draw=draw), store.recipe.dtype, part))
            bar.advance(len(part))
    return torch.cat(parts)


def average(responses: Sequence[Response], choices: Sequence[str] | None) -> Response:
    """One response of those of several draws to a question, with their agreement.

    Args:
        choices: of the question, in the order of the probabilities; None has answers in own words alone.

    Probabilities are averaged, and the choice of the highest average is the answer. Texts in own words are compared
    after `normalised`; the one that most draws give is the answer, the first of equals.
    """
    generated = [response.generated for response in responses if response.generated is not None]
    written = _most_frequent(generated)[0] if generated else None
    if not choices:
        text, agreement = _most_frequent([response.text for response in responses])
        return Response(text, (), written, agreement)
    mean = torch.tensor([response.probabilities for response in responses], dtype=torch.float64).mean(0)
    text = choices[int(mean.argmax())]
    agreement = sum(response.text == text for response in responses) / len(responses)
    return Response(text, tuple(mean.tolist()), written, agreement)


def _most_frequent(texts: Sequence[str]) -> tuple[str, float]:
    """The text that is the same most often by `normalised`, the first of equals, and its share."""
    counts = Counter(map(normalised, texts))
    best = max(counts.values())
    return next(text for text in texts if counts[normalised(text)] == best), best / len(texts)


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """The averaged answer to one question about one image."""

    answer: Answer
    """Probabilities averaged over draws; the log-likelihood is that of the averaged likelihood."""
    agreement: float
    """The share of draws whose own answer is this one."""
    own_answers: tuple[str, ...]
    """Of each draw."""
    steps: int
    latents: Tensor
    """(1, C, 1 + steps, H, W) of the first draw."""


def ask_draws(
    loaded: LoadedRun,
    see: Callable[[int, int], Float[Tensor, "1 C T H W"]],
    question: str,
    choices: Sequence[str] | None = None,
    *,
    draws: int,
    steps: int | None = None,
    image: Path | None = None,
    writing: AnswerConfig | None = None,
    progress: Progress | None = None,
) -> DrawnAnswer:
    """Answer one question about one input from several draws of its rollout.

    Args:
        see: makes the latents of a number of rollout steps and a draw.
        choices, image, writing: as of `ask`.
        steps: K, rollout steps to read; by default those it was trained with.
    Raises:
        ConfigError: no steps, or a run that reads no rollout; and as `ask`.
    """
    progress = progress or Progress.to_logger()
    steps = loaded.meta.reader.num_world_steps if steps is None else steps
    arm = arm_of_answers(arm_of_run(loaded.meta.config))
    require_drawn_arm(arm, steps, draws)
    require_steps(loaded, arm.stored_steps(loaded.meta.recipe), steps)
    read_asked(loaded, question, choices, writing).require_room(loaded, steps)
    latents = [see(steps, draw) for draw in range(draws)]
    answers = [
        ask(loaded, frames, question, choices, steps=steps, image=image, writing=writing, progress=progress)
        for frames in latents
    ]
    texts = tuple(answer.text for answer in answers)
    if not answers[0].ranked:
        text, agreement = _most_frequent(texts)
        return DrawnAnswer(Answer(text, ()), agreement, texts, steps, latents[0])
    by_choice: dict[str, list[Ranked]] = {}
    for answer in answers:
        for ranked in answer.ranked:
            by_choice.setdefault(ranked.choice, []).append(ranked)
    averaged = [
        Ranked(
            choice,
            math.fsum(answer_of_draw.probability for answer_of_draw in of_draws) / draws,
            float(torch.tensor([answer_of_draw.log_likelihood for answer_of_draw in of_draws]).logsumexp(0))
            - math.log(draws),
        )
        for choice, of_draws in by_choice.items()
    ]
    averaged.sort(key=lambda ranked: -ranked.probability)
    text = averaged[0].choice
    return DrawnAnswer(Answer(text, tuple(averaged)), texts.count(text) / draws, texts, steps, latents[0])

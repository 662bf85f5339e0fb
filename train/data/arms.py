"""The arms of a controlled comparison: what a reader sees in place of a rollout.

    text        no world at all, the question alone
    steps0      the observed frame alone
    frozen      the observed frame, repeated
    shuffled    the rollout of another scene of the same family and split
    noise       Gaussian noise with the mean and spread of each channel of the store's futures
    rollout     the rollout as stored
    reversed    the rollout's future frames, last one first
    last        the observed frame and the rollout's last, at their own times
    true        the true future, encoded, from a store of futures
    true@0.2    the same, but a fifth of the scenes see another scene's true future
    doubt       one of several draws of the rollout, and how far the draws lie apart (doubt.py)

Frame 0 is the image's own in every arm, bit by bit; all but `text`, `steps0` and `last` have as many world tokens as
`rollout`. What a scene sees is a function of its key and of the questions file: not of the run, its seed or its batch.

Axes:  B sample   C channel   T latent frame   K rollout steps   H, W latent row, column
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import ConfigError, QuestionError, StoreMismatchError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.store.folder import LatentStore, open_store
from ...pipeline.store.keys.packed_keys import AnyKeys
from ...pipeline.store.reading.buffer import BatchBuffer
from ..questions.record import Question, resolve_keys
from .doubt import DoubtLatents, Doubts
from .loader import Indices, LatentDataset

NAMES = ("text", "steps0", "frozen", "shuffled", "noise", "rollout", "reversed", "last", "true", "doubt")
_WRONG = re.compile(r"true@(0?\.[0-9]{1,4}|0|1|1\.0)")
_MEASURED = 256  # samples whose futures give the noise its mean and spread

Future = Callable[[Sequence[str], Tensor], Tensor]
"""Keys of images and their own latents (B, C, 1 + K, H, W) to what stands behind frame 0: (B, C, K, H, W)."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a comparison, parsed from its name."""

    name: str
    kind: str
    """Its name without the share behind `@`."""
    wrong: float = 0.0
    """Share of the scenes that see another scene's true future."""

    def steps(self, steps: int) -> int:
        """Rollout steps it reads where a rollout has so many."""
        return 0 if self.kind in ("text", "steps0") else steps

    def stored_steps(self, recipe: Recipe) -> int:
        """The most rollout steps that it shows of a recipe: of kind samples all draws, one after the other, or one."""
        return recipe.steps_of_a_draw if self.kind == "doubt" else recipe.rollout_steps

    def needed_steps(self, steps: int, recipe: Recipe) -> int:
        """Rollout steps that have to be made of a recipe so that it shows so many."""
        return recipe.rollout_steps if steps and self.kind == "doubt" else steps

    def frames(self, steps: int) -> tuple[int, ...] | None:
        """Latent frames that become tokens; None is all of them."""
        return {"text": (), "last": tuple(sorted({0, steps}))}.get(self.kind)


def parse_arm(name: str) -> Arm:
    """An arm from its name.

    Raises:
        ConfigError: there is no such arm; lists those there are.
    """
    if name in NAMES:
        return Arm(name, name)
    if match := _WRONG.fullmatch(name):
        return Arm(name, "true", float(match[1]))
    raise ConfigError(f"there is no arm {name!r}; the arms are {', '.join(NAMES)}, and true@P with P from 0 to 1")


def arm_of_run(settings: Mapping[str, Any]) -> Arm:
    """The arm that a run was trained on, from its settings."""
    return parse_arm(settings.get("arm", "rollout"))


def open_arm(
    arm: Arm,
    store: LatentStore,
    questions: Sequence[Question],
    pool: Sequence[Question],
    questions_file: Path,
    *,
    rollout_steps: int,
    futures: Path | str | None = None,
    images: Path | None = None,
    doubts: tuple[float, float, int] | None = None,
) -> tuple[dict[str, str], LatentDataset | None]:
    """Question id -> key of its image, and the latents of these keys as the arm shows them; None for `text`.

    Args:
        questions: those whose latents are read.
        pool: questions of all scenes that may stand in for one of these: their whole split.
        rollout_steps: K, what the arm's `steps` says.
        futures: a store of encoded true futures.
        images: as of `resolve_keys`.
        doubts: for the training of `doubt`: shares of wrong and of frozen futures, and the seed of their choice.
    Raises:
        QuestionError: a question without latents, or too few scenes to exchange futures between.
        ConfigError: `true` without a store of futures.
        StoreMismatchError: the futures are of another latent space, size or frame rate.
    """
    coverage = resolve_keys(questions, questions_file, store, images=images)
    coverage.require_complete()
    if arm.kind == "text":
        return coverage.keys, None
    if store.recipe.traits.is_distribution and arm.kind not in ("rollout", "steps0"):
        raise ConfigError(f"{store.place} holds posteriors and no futures, so there is nothing to show as {arm.name}")
    keys = tuple(dict.fromkeys(coverage.keys[question.id] for question in questions))
    if arm.kind == "doubt":
        varied: Doubts | None = None
        if doubts is not None:
            wrong, frozen, seed = doubts
            others = _others(store, pool, questions_file, images) if wrong else {}
            varied = Doubts(others, wrong, frozen, seed)
        return coverage.keys, DoubtLatents(store, keys=keys, rollout_steps=rollout_steps, doubts=varied)
    future: Future | None = None
    if arm.kind == "frozen":
        future = _frozen
    elif arm.kind == "reversed":
        future = _reversed
    elif arm.kind == "noise":
        future = _noise_like(store, rollout_steps)
    elif arm.kind == "shuffled":
        future = partial(_futures_of_others, store, _others(store, pool, questions_file, images))
    elif arm.kind == "true":
        if futures is None:
            raise ConfigError(
                f"the arm {arm.name} reads true futures: name their store with --futures. "
                "`theworld precompute FUTURES --kind frames` encodes videos"
            )
        if store.recipe.traits.is_hidden:
            raise ConfigError(
                f"{store.place} holds hidden states, and encoded videos are of another space: nothing can be shown "
                f"as {arm.name}. Use a store of kind rollout for this arm"
            )
        pool = pool if arm.wrong else questions
        true_store = open_store(futures, check_sizes=True)
        _require_same_space(store, true_store, rollout_steps)
        videos = resolve_keys(pool, questions_file, true_store, field="future")
        videos.require_complete()
        pooled = resolve_keys(pool, questions_file, store, images=images)
        pooled.require_complete()
        future = partial(_futures_of_others, true_store, _by_key(pool, pooled.keys, videos.keys, wrong=arm.wrong))
    return coverage.keys, ArmLatents(store, future=future, keys=keys, rollout_steps=rollout_steps)


class ArmLatents(LatentDataset):
    """Samples of a store with other futures behind their own frame 0. Changed batch by batch, where they are read.

    Args:
        future: what stands behind frame 0; None leaves the rollout.
        keys, rollout_steps: as of `LatentDataset`.
    """

    def __init__(
        self,
        store: LatentStore,
        *,
        future: Future | None,
        keys: AnyKeys | None = None,
        rollout_steps: int | None = None,
    ) -> None:
        super().__init__(store, keys=keys, rollout_steps=rollout_steps)
        self._future = future

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {"future": self._future, "keys": self.keys, "rollout_steps": self.rollout_steps}
        return partial(type(self), **arguments), (self.store,)

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        """As `LatentDataset.read`; the futures are changed in the memory that was read into."""
        latents = super().read(indices, buffer)
        if self._future is not None and latents.shape[2] > 1:
            latents[:, :, 1:] = self._future([self.keys[index] for index in indices], latents)
        return latents


def substitute_scenes(questions: Iterable[Question]) -> dict[str, str]:
    """Scene -> another scene of the same family and split, each used once, never of the same minimal pair.

    Which of a pair's halves stands in for which of another's is drawn by chance, so that a stand-in's future says
    nothing about the scene's own. The same questions give the same stand-ins.

    Raises:
        QuestionError: a family has too few scenes in a split.
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for question in questions:
        scene = question.scene_id
        pairs = groups.setdefault((question.split or "", question.family or ""), {})
        halves = pairs.setdefault(question.cluster, [])
        if scene not in halves:
            halves.append(scene)
    substitutes: dict[str, str] = {}
    for (split, family), pairs in sorted(groups.items()):
        rng = np.random.default_rng([*f"{split} {family}".encode()])
        blocks = [[halves[i] for i in rng.permutation(len(halves))] for _, halves in sorted(pairs.items())]
        row = [scene for number in rng.permutation(len(blocks)) for scene in blocks[number]]
        # A turn by the longest block's length leads out of every block, once round there is room for it.
        turn = max(map(len, blocks))
        if len(row) < 2 * turn:
            raise QuestionError(
                f"futures cannot be exchanged between the {len(row)} scenes of family {family!r} in split {split!r}: "
                f"at least {2 * turn} are needed. Make more scenes, or leave out the arms that exchange them"
            )
        substitutes |= zip(row, [*row[turn:], *row[:turn]], strict=True)
    return substitutes


def sees_substitute(key: str, wrong: float) -> bool:
    """Whether a scene is among the share that sees another's future; a scene once among them stays, as it grows."""
    return int(key[:12], 16) < wrong * 16**12


def future_is_right(arm: Arm, pool: Sequence[Question], images: dict[str, str]) -> dict[str, bool]:
    """Question id -> whether the future shown of a scene answers it rightly, for arms made of true futures.

    Args:
        pool: the questions of a whole split.
        images: question id -> key of its image.
    """
    substitutes = substitute_scenes(pool) if arm.wrong else {}
    answers = {(question.scene_id, question.asks): question.answer for question in pool}
    correctness: dict[str, bool] = {}
    for question in pool:
        scene = question.scene_id
        shown_scene = substitutes[scene] if sees_substitute(images[question.id], arm.wrong) else scene
        correctness[question.id] = answers.get((shown_scene, question.asks)) == question.answer
    return correctness


def _others(store: LatentStore, pool: Sequence[Question], questions_file: Path, images: Path | None) -> dict[str, str]:
    """Key of an image -> key of the image of another scene of its family."""
    pooled = resolve_keys(pool, questions_file, store, images=images)
    pooled.require_complete()
    return _by_key(pool, pooled.keys, pooled.keys, wrong=1.0)


def _by_key(
    pool: Sequence[Question], images: dict[str, str], future_keys: dict[str, str], *, wrong: float
) -> dict[str, str]:
    """Key of an image -> key of the latents whose future it sees."""
    substitutes = substitute_scenes(pool) if wrong else {}
    future_key_by_scene = {question.scene_id: future_keys[question.id] for question in pool}
    future_key_by_image: dict[str, str] = {}
    for question in pool:
        key, scene = images[question.id], question.scene_id
        future_key_by_image[key] = future_key_by_scene[substitutes[scene] if sees_substitute(key, wrong) else scene]
    return future_key_by_image


def _frozen(_: Sequence[str], latents: Tensor) -> Tensor:
    return latents[:, :, :1].expand_as(latents[:, :, 1:])


def _reversed(_: Sequence[str], latents: Tensor) -> Tensor:
    return latents[:, :, 1:].flip(2)


def _futures_of_others(
    store: LatentStore, future_key_by_image: dict[str, str], keys: Sequence[str], latents: Tensor
) -> Tensor:
    return as_tensor(store.read([future_key_by_image[key] for key in keys], rollout_steps=latents.shape[2] - 1))[
        :, :, 1:
    ]


def _noise_like(store: LatentStore, rollout_steps: int) -> Future:
    keys = np.sort(store.packed_keys)
    sampled_keys = keys[:: -(-len(keys) // _MEASURED)]
    sampled_futures = as_tensor(store.read(sampled_keys, rollout_steps=rollout_steps))[:, :, 1:].float()
    return partial(_noise, sampled_futures.mean((0, 2, 3, 4)), sampled_futures.std((0, 2, 3, 4)))


def _noise(mean: Tensor, std: Tensor, keys: Sequence[str], latents: Tensor) -> Tensor:
    shape = (latents.shape[1], latents.shape[2] - 1, *latents.shape[3:])
    draws = [np.random.default_rng(int(key, 16)).standard_normal(shape, np.float32) for key in keys]
    return torch.from_numpy(np.stack(draws)) * std[:, None, None, None] + mean[:, None, None, None]


def _require_same_space(store: LatentStore, futures: LatentStore, steps: int) -> None:
    """The true futures must be what the world model was to predict: same VAE, picture, and time between frames."""
    for name in ("world", "height", "width", "fit", "stride"):
        recipe_value, futures_value = getattr(store.recipe, name), getattr(futures.recipe, name)
        if recipe_value != futures_value:
            raise StoreMismatchError(
                f"the futures in {futures.place} do not belong to the rollouts in {store.place}: {name} is "
                f"{futures_value!r} there, {recipe_value!r} here. Encode the videos with the rollouts' settings"
            )
    if futures.recipe.rollout_steps < steps:
        raise StoreMismatchError(
            f"the futures in {futures.place} have {futures.recipe.rollout_steps} steps, {steps} are read. Encode the "
            f"videos with --steps {steps}, or pass fewer --steps"
        )

"""The arm `doubt`: a draw of the rollout, and how far the draws of an image lie apart.

    frame 0 | spread | frames 2 … K of one draw

The spread stands where the draw's first frame would, so that the arm has as many world tokens as `rollout`. In training
an image is shown with another of its draws each time, sometimes with the future of another scene, and sometimes with
frame 0 alone, repeated; the spread is always that of its own draws. A reader so learns when to trust a rollout.

Axes:  B sample   D draw   C channel   T latent frame   S steps of a draw   K steps read   H, W latent row, column
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.errors import ConfigError, LatentShapeError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.messages import command
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.keys.packed_keys import AnyKeys
from ...pipeline.store.reading.buffer import BatchBuffer
from .loader import Indices, LatentDataset

_SPREAD = 2.0  # times the standard deviation, which is then about as large as latents are
_GROWS = 1 / 3  # of a training: until then, the share of wrong futures grows


@dataclass(frozen=True, slots=True)
class Doubts:
    """What a training shows in place of a draw, and how often."""

    others: Mapping[str, str]
    """Key of an image -> key of the image of another scene, whose future is a wrong one."""
    wrong: float
    """Share of the images shown with a wrong future, once it has grown to that."""
    frozen: float
    """Share shown with frame 0 alone, likewise."""
    seed: int


class DoubtLatents(LatentDataset):
    """Samples of a store of kind `samples` as the arm shows them: by default the first draw, and the spread of all.

    With `doubts` there are more samples than keys: of each image one for every draw, one for every draw of another
    scene, and one of frame 0 alone, in this order. `index_in_update` chooses among them.

    Args:
        keys, rollout_steps: as of `LatentDataset`; K counts the steps of one draw.
        doubts: what a training varies; None shows each image in one way.
    Raises:
        ConfigError: the store holds one future of each image, or rollouts of one step.
    """

    def __init__(self, store: LatentStore, *, keys: AnyKeys, rollout_steps: int, doubts: Doubts | None = None) -> None:
        recipe = store.recipe
        require_spread(recipe, str(store.place))
        if rollout_steps > recipe.steps_of_a_draw:
            raise ConfigError(
                f"{rollout_steps} rollout steps are asked for, and a draw in {store.place} has "
                f"{recipe.steps_of_a_draw}. Pass --steps {recipe.steps_of_a_draw} or fewer"
            )
        self._steps, self._doubts = rollout_steps, doubts
        super().__init__(store, keys=keys, rollout_steps=recipe.rollout_steps if rollout_steps else 0)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {"keys": self.keys, "rollout_steps": self._steps, "doubts": self._doubts}
        return partial(type(self), **arguments), (self.store,)

    def index_in_update(self, index: int, update: int, updates: int) -> int:
        """Which sample is shown of an image in an update: a function of seed, update and key."""
        doubts, draws = self._doubts, self.store.recipe.draws
        if doubts is None or not self._steps:
            return index
        rng = np.random.default_rng([doubts.seed, update, int(self.keys[index][:16], 16)])
        draw, chance = int(rng.integers(draws)), float(rng.random())
        grown = min(1.0, (update + 1) / (updates * _GROWS))
        if chance < doubts.wrong * grown:
            variant = draws + draw
        elif chance < (doubts.wrong + doubts.frozen) * grown:
            variant = 2 * draws
        else:
            variant = draw
        return variant * len(self) + index

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        """(B, C, 1 + K, H, W), a view of the memory that was read into; else as `LatentDataset.read`."""
        variants, images = np.divmod(np.asarray(indices, np.int64), len(self))
        latents = super().read(images, buffer)
        if not self._steps:
            return latents
        draws = self.store.recipe.draws
        shown = shown_futures(latents, draws, self._steps, np.where(variants < draws, variants, 0))
        for row in np.flatnonzero(variants >= draws):
            if variants[row] == 2 * draws:
                shown[row, :, 1:] = latents[row, :, :1]
            else:
                other = self._other(int(images[row]))
                shown[row, :, 1:] = shown_futures(other, draws, self._steps, variants[row : row + 1] - draws)[0, :, 1:]
        latents[:, :, 1 : 1 + self._steps] = shown
        return latents[:, :, : 1 + self._steps]

    def _other(self, index: int) -> Tensor:
        """All draws of the scene whose future is a wrong one for an image."""
        assert self._doubts is not None, "there are no wrong futures to show"
        return as_tensor(self.store.read([self._doubts.others[self.keys[index]]]))


def shown_futures(
    latents: Float[Tensor, "B C T H W"], draws: int, steps: int, chosen: Sequence[int] | np.ndarray
) -> Tensor:
    """The spread of all draws, and the further frames of a chosen one: (B, C, K, H, W).

    Args:
        latents: frame 0 and the futures of all draws, one after the other: T = 1 + D S.
        steps: K, at most S.
        chosen: which draw, by sample.
    """
    futures = latents[:, :, 1:].unflatten(2, (draws, -1))  # (B, C, D, S, H, W)
    late = futures[:, :, :, futures.shape[3] // 2 :].float()  # draws part in time
    spread = (_SPREAD * late.std(2)).mean(2, keepdim=True).to(latents.dtype)
    rows = torch.arange(len(latents), device=latents.device)
    of_draw = futures.transpose(1, 2)[rows, torch.as_tensor(chosen, device=latents.device)]
    return torch.cat([spread, of_draw[:, :, 1:steps]], dim=2)


def as_doubted(latents: Tensor | NDArray[Any], recipe: Recipe, steps: int) -> Float[Tensor, "B C T2 H W"]:
    """Latents of a recipe of kind `samples` as a reader of the arm sees them: T2 = 1 + K.

    Args:
        latents: (B, C, T, H, W) of all draws of the recipe; or frame 0 alone.
        steps: K; 0 leaves frame 0 alone.
    Raises:
        LatentShapeError: some draws are missing.
    """
    latents = as_tensor(latents) if isinstance(latents, np.ndarray) else latents
    if not steps:
        return latents[:, :, :1]
    if latents.shape[2] != 1 + recipe.rollout_steps:
        raise LatentShapeError(
            f"a run of the arm doubt reads all {recipe.draws} draws of an image, {1 + recipe.rollout_steps} latent "
            f"frames, got {latents.shape[2]}"
        )
    return torch.cat([latents[:, :, :1], shown_futures(latents, recipe.draws, steps, [0] * len(latents))], dim=2)


def require_spread(recipe: Recipe, place: str) -> None:
    """Refuse latents whose futures have no spread, or leave no room for it.

    Raises:
        ConfigError: one future of each image, or futures of one step.
    """
    if not recipe.traits.has_draws or recipe.draws < 2:
        more = command("precompute", "IMAGES", "--kind", "samples", "--draws", "4")
        raise ConfigError(
            f"the arm doubt reads how far several futures of an image lie apart, and {place} holds one of each "
            f"(kind {recipe.kind}). Make them: {more}"
        )
    if recipe.steps_of_a_draw < 2:
        raise ConfigError(
            f"the arm doubt shows the spread in place of the first future frame, and a draw in {place} has no other. "
            "Precompute draws of 2 steps or more"
        )

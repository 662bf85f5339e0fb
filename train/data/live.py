"""Latents rolled out in the training loop instead of read from a store, for comparison.

Questions, order, frames and dtype are the same, so the loss equals that from the store within the tolerance that
docs/store.md states. Nothing is kept: each epoch rolls out again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.latents.tensors import as_stored, as_tensor
from ...pipeline.store.folder import LatentStore
from ...pipeline.store.reading.buffer import BatchBuffer
from .arms import Arm
from .loader import Indices, LatentDataset


class RollOut(Protocol):
    """What rolls the inputs of a store forward again."""

    def check(self, keys: Sequence[str]) -> None:
        """Refuse, with what to do, keys whose inputs cannot be found."""
        ...

    def __call__(self, keys: Sequence[str], rollout_steps: int) -> Tensor:
        """(B, C, 1 + rollout_steps, H, W), float32: the first frames of the recipe's rollouts of these inputs."""
        ...


class LiveLatents(LatentDataset):
    """Samples of a store's recipe, rolled out and not read.

    Args:
        store: states recipe, shapes and dtype; no latent of it is read.
        roll_out: makes latents.
        keys, rollout_steps: as of `LatentDataset`.
    Attributes:
        images, seconds: rolled out so far, and in what time.
    """

    read_ahead = False  # in the loop, where it would stand without a store; a thread beside it would share its cores

    def __init__(
        self, store: LatentStore, roll_out: RollOut, *, keys: Sequence[str], rollout_steps: int | None = None
    ) -> None:
        super().__init__(store, keys=keys, rollout_steps=rollout_steps)
        self._roll_out = roll_out
        self.images, self.seconds = 0, 0.0

    def read(self, indices: Indices, buffer: BatchBuffer | None = None) -> Tensor:
        """As `LatentDataset.read`, rounded to the store's dtype.

        Raises:
            RunError: the world model made values that a store would have refused.
        """
        keys = [self.keys[index] for index in indices]
        latents = as_tensor((self.buffer(len(keys)) if buffer is None else buffer).latents[: len(keys)])
        started = time.perf_counter()
        with torch.no_grad():
            latents.copy_(as_stored(self._roll_out(keys, self.rollout_steps), self.store.recipe.dtype, keys))
        self.seconds += time.perf_counter() - started
        self.images += len(keys)
        return latents

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {"images": self.images, "seconds": round(self.seconds, 3)}


def roll_out_live(images: LatentDataset | None, roll_out: RollOut, arm: Arm) -> LiveLatents:
    """The same samples as a dataset that reads them, rolled out instead.

    Raises:
        ConfigError: the arm shows something other than rollouts, or nothing; or inputs are not to be found.
    """
    if images is None or arm.kind not in ("rollout", "steps0", "last"):
        raise ConfigError(f"--no-cache rolls images forward; the arm {arm.name} shows something else. Train it --cache")
    roll_out.check(images.keys)
    return LiveLatents(images.store, roll_out, keys=images.keys, rollout_steps=images.rollout_steps)

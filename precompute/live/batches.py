"""Make a store's latents again from their inputs, batch by batch, to train without reading the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.machine import DeviceName
from ...pipeline.store.folder import LatentStore
from ..inputs.lookup import InputLookup
from .world import LiveWorld


class LiveBatches:
    """Call it with keys and a number of steps to have their latents; nothing is kept between two calls."""

    def __init__(
        self,
        store: LatentStore,
        images: Path | None,
        *,
        size: int,
        fallback: Path | None = None,
        world: str | None = None,
        device: DeviceName = "auto",
    ) -> None:
        """
        Args:
            images: what the store was made from; None is the embedded scenes beside the store.
            size: of a batch of the world model. With the size of the worker that made the store, on such a machine,
                the bits are the store's too.
            fallback: where to look if `images` is None and there are no such scenes.
            world: where the world model's weights are; by default where the recipe says.
        Raises:
            ConfigError: no place to look for inputs, or other weights than the store's.
        """
        self._recipe, self._size = store.recipe, size
        self._inputs = InputLookup(store, images)
        if self._inputs.place is None and fallback is not None:
            self._inputs = InputLookup(store, fallback, named_by_user=False)
        if self._inputs.place is None:
            raise ConfigError(f"which inputs was {store.place} made from? Name their folder: --images FOLDER")
        self._live = LiveWorld.for_store(store, world=world, device=device)

    def check(self, keys: Sequence[str]) -> None:
        """Refuse to start what would stop for want of an input.

        Raises:
            ConfigError: inputs are not where they should be; counts them and names some.
            ImageError: the first one is another by now, or cannot be decoded.
        """
        if missing_keys := [key for key in keys if not self._inputs.has(key)]:
            names = ", ".join(next(iter(self._inputs.names(key)), key) for key in missing_keys[:3])
            raise ConfigError(
                f"{len(missing_keys)} of {len(keys)} inputs are not in {self._inputs.place}: {names}, … To roll them "
                "out again, name what the store was made from: --images FOLDER"
            )
        self._inputs.load(keys[0])

    def __call__(self, keys: Sequence[str], rollout_steps: int, *, draw: int | None = None) -> Tensor:
        """(B, C, 1 + rollout_steps, H, W), float32 on the CPU: the first frames of what the recipe makes of these.

        Args:
            draw: which other future, from 0, which is the recipe's own; None is what the recipe says.
        Raises:
            ImageError: an input is not there any more, is another by now, or cannot be decoded.
        """
        parts: list[Tensor] = []
        for start in range(0, len(keys), self._size):
            part = keys[start : start + self._size]
            pixels = [self._inputs.load(key).pixels for key in part]
            if rollout_steps == 0 and self._recipe.traits.begins_with_encoding:  # frame 0 needs no rollout
                padding = self._size - len(pixels)
                batch = torch.stack([*pixels, *[pixels[-1]] * padding])
                parts.append(self._live.world.encode(batch)[: len(part)].float().cpu())
            else:
                latents = self._live.roll_out_batch(pixels, part, size=self._size, draw=draw)
                parts.append(latents[:, :, : 1 + rollout_steps])
        return torch.cat(parts)

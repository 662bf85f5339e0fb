"""The sizes of a V-JEPA 2 and the latent space they make, read from its config. Loads no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....pipeline.errors import WorldModelError
from ....pipeline.latents.spec import LatentSpec

_MOST, _LARGEST = 4096, 4096
"""Of a number in its config, of which the largest we know is 1,408, the width of the giant one; and of a side, as
recipes have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes of a `VJEPA2Model`, with the defaults of `VJEPA2Config`: a config may leave them out."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    patch_size: int = 16
    crop_size: int = 256
    tubelet_size: int = 2
    frames_per_clip: int = 64
    in_chans: int = 3
    pred_hidden_size: int = 384
    pred_num_hidden_layers: int = 12

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """Raises WorldModelError where they are no sizes of such a model."""
        sizes = cls(**{name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None})
        for name in cls.__dataclass_fields__:
            value = getattr(sizes, name)
            if type(value) is not int or not 1 <= value <= _MOST:
                raise WorldModelError(f"its {name} is {str(value)[:80]}, and no whole number of up to {_MOST:,}")
        if sizes.crop_size % sizes.patch_size or sizes.crop_size % 16 or sizes.crop_size > _LARGEST:
            raise WorldModelError(
                f"its crop_size {sizes.crop_size} is no multiple of 16 and of {sizes.patch_size} up to {_LARGEST:,}"
            )
        if sizes.frames_per_clip < 2 * sizes.tubelet_size:
            raise WorldModelError(f"its clips of {sizes.frames_per_clip} frames hold no later tubelet")
        return sizes

    @property
    def grid(self) -> int:
        """Rows, and columns, of tokens."""
        return self.crop_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Of one tubelet."""
        return self.grid**2

    @property
    def spec(self) -> LatentSpec:
        """Its features, which a layer norm standardises: no statistics of a data set are needed."""
        return LatentSpec(
            channels=self.hidden_size,
            spatial_stride=self.patch_size,
            temporal_stride=self.tubelet_size,
            mean=(0.0,) * self.hidden_size,
            std=(1.0,) * self.hidden_size,
        )

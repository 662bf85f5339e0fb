"""The V-JEPA 2 engine: its encoder looks at an image, its predictor says what the encoder would give later.

An image is repeated to a tubelet, the frames that one token covers, and encoded alone, as V-JEPA 2-AC was trained. The
predictor gets these tokens and mask tokens at the places of all later tubelets, and fills them in one forward. It does
not roll on from its own predictions: they are in another space than its input (below). There is no noise: the future of
an image is one.

Latents are the encoder's tokens after a layer norm without weights: that is what the predictor was trained to give, so
all frames of a rollout are in one space. It has mean 0 and deviation 1 over the channels of each cell.

Axes:  B sample   C channel   T latent frame, one tubelet   H, W latent row, column   F video frame   N token (T H W)

Source: facebookresearch/vjepa2, `forward_target` in app/vjepa/train.py and app/vjepa_droid/train.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import VJEPA2Model

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.latents.hidden import hidden_latents
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import LatentSpec
from ..blocks import tokens_behind
from ..family import read_config
from ..network.encode_slices import encode_slices
from ..network.precision import full_float32
from .space import Sizes

Numbers = tuple[float, ...]
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for pixels in [0, 1]: what `VJEPA2VideoProcessor` takes where its config names none."""
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


class VJepa2World:
    """A `WorldModel` over a `VJEPA2Model`. It decodes nothing, and has no posterior."""

    def __init__(
        self,
        model: VJEPA2Model,
        *,
        pixel_mean: Numbers = PIXEL_MEAN,
        pixel_std: Numbers = PIXEL_STD,
        compute_dtype: str = "float32",
    ) -> None:
        """
        Args:
            model: float32. pixel_mean, pixel_std: per colour, for pixels in [0, 1].
            compute_dtype: of the predictor; the encoder stays in float32.
        """
        self.sizes = Sizes.of(model.config.to_dict())
        self._parts: Any = model.eval().requires_grad_(False)
        self._dtype: torch.dtype = getattr(torch, compute_dtype)
        self._parts.predictor.to(self._dtype)
        self.device = torch.device(model.device)
        self._pixel_mean, self._pixel_std = (
            torch.tensor(numbers, device=self.device).view(1, 3, 1, 1, 1) for numbers in (pixel_mean, pixel_std)
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", compute_dtype: str = "float32") -> VJepa2World:
        """Load a folder of transformers.

        Raises:
            WorldModelError: a file is missing, or is not of this model.
        """
        mean, std = _pixel_statistics(folder)
        model = load_pretrained(
            VJEPA2Model, folder, error=WorldModelError, what="world model", dtype=torch.float32, use_safetensors=True
        )
        torch.nn.Module.to(model, torch.device(device))
        return cls(model, pixel_mean=mean, pixel_std=std, compute_dtype=compute_dtype)

    @property
    def spec(self) -> LatentSpec:
        """The space of its latents."""
        return self.sizes.spec

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C 1 H W"]:
        """Latents of single images, each repeated to a tubelet."""
        return self._latents(self._normed(self._tokens(self._still(images))))

    @torch.inference_mode()
    def encode_video(self, videos: Float[Tensor, "B 3 F height width"]) -> Float[Tensor, "B C T H W"]:
        """Latents of real frames: the first as an image, then tubelet by tubelet, each encoded alone.

        The encoder would let every tubelet see all others, later ones too. Alone, none knows its future and frame 0
        equals `encode`; no token then holds a motion of more than one tubelet. Positions are relative within
        attention, so it does not matter where in its clip a tubelet stands.
        """
        later = videos[:, :, 1:].unflatten(2, (-1, self.sizes.tubelet_size)).unbind(2) if videos.shape[2] > 1 else ()
        clips = [self._still(videos[:, :, 0]), *later]
        tubelets = torch.stack(clips, dim=1)  # (B, T, 3, frames, height, width)
        tokens = self._normed(self._tokens(tubelets.flatten(0, 1)))
        return self._latents(tokens.unflatten(0, (len(videos), -1)).flatten(1, 2))

    @torch.inference_mode()
    def rollout(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B C T H W"]:
        """Latents of each image and of what the predictor expects after it; frame 0 equals `encode`.

        Args:
            seen: images, or videos of one frame, of the size that the model was trained on.
            keys: unused, since nothing is drawn.
        Raises:
            ConfigError: more than one frame is shown, or the pictures are of another size.
        """
        del keys
        if seen.ndim == 5 and seen.shape[2] != 1:
            raise ConfigError(f"V-JEPA 2 is shown one frame, not {seen.shape[2]}")
        observed = self._tokens(self._still(seen[:, :, 0] if seen.ndim == 5 else seen))
        tokens = self._normed(observed)
        if recipe.rollout_steps:
            expected = self.predict(observed, recipe.rollout_steps * recipe.stride)
            tokens = torch.cat([tokens, expected], dim=1)
        return self._latents(tokens)[:, :, :: recipe.stride].contiguous()

    @torch.inference_mode()
    def hidden(
        self, seen: Float[Tensor, "B 3 *frames height width"], keys: Sequence[str], recipe: Recipe
    ) -> Float[Tensor, "B D T rows columns"]:
        """As `HasHiddenStates` has it, of the predictor's blocks; raises as `rollout`."""
        del keys
        images = seen[:, :, 0] if seen.ndim == 5 else seen
        observed = self._tokens(self._still(images))
        layer = self._parts.predictor.layer[recipe.hidden_block - 1]
        tokens = tokens_behind([layer], lambda: self.predict(observed, recipe.rollout_steps * recipe.stride))
        return hidden_latents(self._latents(self._normed(observed)), tokens, recipe)

    @full_float32()
    def predict(self, observed: Float[Tensor, "B first C"], later_tubelets: int) -> Float[Tensor, "B later C"]:
        """What the predictor gives for the tubelets after the first, float32.

        Args:
            observed: the encoder's tokens of the first tubelet, before the layer norm without weights.
        """
        batch, count, _ = observed.shape
        places = torch.arange(count * (1 + later_tubelets), device=self.device).expand(batch, -1)
        predicted = self._parts.predictor(
            encoder_hidden_states=observed.to(self._dtype),
            context_mask=[places[:, :count]],
            target_mask=[places[:, count:]],
        )
        return predicted.last_hidden_state.float()

    @full_float32()
    def _tokens(self, tubelets: Tensor) -> Tensor:
        """The encoder's tokens of tubelets (B, 3, frames, height, width), each alone: (B, N, C)."""
        side = self.sizes.crop_size
        if (size := tuple(tubelets.shape[-2:])) != (side, side):
            raise ConfigError(f"this V-JEPA 2 takes pictures of {side}x{side} pixels, not of {size[0]}x{size[1]}")
        tokens: list[Tensor] = []
        for start, end in encode_slices(len(tubelets), self.sizes.tubelet_size, side, side):
            pixels = tubelets[start:end].to(self.device)
            normalised = ((pixels + 1) / 2 - self._pixel_mean) / self._pixel_std
            encoded = self._parts.encoder(normalised.transpose(1, 2)).last_hidden_state
            tokens.append(encoded[sum(map(len, tokens)) - start :])
        return torch.cat(tokens)

    def _still(self, images: Tensor) -> Tensor:
        return images.unsqueeze(2).expand(-1, -1, self.sizes.tubelet_size, -1, -1)

    def _normed(self, tokens: Tensor) -> Tensor:
        return layer_norm(tokens, tokens.shape[-1:])

    def _latents(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, C, T, H, W)."""
        return tokens.unflatten(1, (-1, self.sizes.grid, self.sizes.grid)).permute(0, 4, 1, 2, 3).contiguous()


def _pixel_statistics(folder: Path) -> tuple[Numbers, Numbers]:
    """Mean and deviation of pixels in [0, 1], of the folder's processor where it has one.

    Raises:
        WorldModelError: its config holds something else.
    """
    config: dict[str, Any] = {}
    for name in _PROCESSORS:
        if (folder / name).is_file():
            config = read_config(folder / name)
            break
    statistics: list[Numbers] = []
    for name, usual in (("image_mean", PIXEL_MEAN), ("image_std", PIXEL_STD)):
        value = config.get(name, usual)
        numbers = tuple(value) if isinstance(value, list | tuple) else ()
        if len(numbers) != 3 or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise WorldModelError(
                f"the processor of the world model in {folder} has {name} {str(value)[:80]}: no three numbers"
            )
        statistics.append(tuple(map(float, numbers)))
    if min(statistics[1]) <= 0:
        raise WorldModelError(
            f"the processor of the world model in {folder} divides by {min(statistics[1]):g} (image_std)"
        )
    return statistics[0], statistics[1]

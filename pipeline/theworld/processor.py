"""Texts and pictures to what a model's `forward` and `generate` take."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.images import decode_image, read_input_file
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.precompute.inputs.sandbox import shared_decoder
from theworld.precompute.rollout.kinds import KINDS
from theworld.train.data.batches import Example, pad_rows
from theworld.train.data.vision import VisionInputs
from theworld.train.language.lm import LanguageModel

Picture = Image.Image | str | os.PathLike[str] | bytes | NDArray[Any]
"""A picture of Pillow, a file, the bytes of a file, or uint8 pixels (H, W, 3) or (H, W)."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


class Processor:
    """The prompt format of a language model and the image rules of a recipe."""

    def __init__(self, lm: LanguageModel, recipe: Recipe, spec: Callable[[], LatentSpec], device: torch.device) -> None:
        """
        Args:
            spec: the latent space of the world model; asked for with the first picture.
            device: where the tensors go.
        """
        self._lm, self._recipe, self._spec, self._device = lm, recipe, spec, device

    def __call__(self, text: str | Sequence[str], images: Picture | Sequence[Picture] | None = None) -> BatchFeature:
        """One batch: `model(**processor("where will it land?", "a.png"))`.

        Args:
            text: one question or several.
            images: one picture for all of them, or one for each. A file of an image has the key that a store has for
                it; a picture that is no file has a key of its pixels.
        Returns:
            input_ids and attention_mask, int64 (B, L), padded on the right; with images also images, float32
            (B, 3, height, width) in [-1, 1], fitted to the recipe's size, and keys, one a row; with a language model
            that sees images itself also pixel_values.
        Raises:
            ConfigError: no text, another number of images, or what is no picture.
            ImageError: a picture cannot be used.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
            raise ConfigError(f"text is one question or several, got {text!r}")
        rows = pad_rows([(Example("", tuple(self._lm.prompt_ids(each)), ()),) for each in texts], self._lm.pad_id)
        batch: dict[str, Any] = {name: rows[name].to(self._device) for name in ("input_ids", "attention_mask")}
        if images is not None:
            batch |= self._pictures(images, len(texts))
        return BatchFeature(batch)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of one answer that `generate` returned."""
        return self._lm.decode(ids.tolist() if isinstance(ids, Tensor) else list(ids))

    def batch_decode(self, ids: Sequence[Sequence[int]] | Tensor) -> list[str]:
        """The texts of a batch that `generate` returned."""
        return [self.decode(row) for row in ids]

    @cached_property
    def _latent_spec(self) -> LatentSpec:
        return self._spec()

    @cached_property
    def _vision(self) -> VisionInputs:
        return VisionInputs(self._lm, {})

    def _pictures(self, images: Picture | Sequence[Picture], count: int) -> dict[str, Any]:
        given = list(cast(Sequence[Picture], images)) if isinstance(images, list | tuple) else [cast(Picture, images)]
        if len(given) not in (1, count):
            raise ConfigError(f"{count} texts take one image for all or {count} images, got {len(given)}")
        contents = [_content_of(picture) for picture in given]
        kind = KINDS[self._recipe.kind]
        if kind.takes != "image":
            raise ConfigError(
                f"this model reads latents of kind {self._recipe.kind}, which are made of {kind.takes}s: precompute "
                "them, and pass latents=store.read(keys)"
            )
        spec, decoder = self._latent_spec, shared_decoder()
        loaded = [decoder.load(content, self._recipe, spec, source).first for content, _, source in contents]
        repeat = count // len(given)
        batch: dict[str, Any] = {
            "images": torch.stack(loaded * repeat).to(self._device),
            "keys": [key for _, key, _ in contents] * repeat,
        }
        if self._lm.image_tokens:
            pixels = [
                self._vision.prepare_image(decode_image(content, source=source)) for content, _, source in contents
            ]
            batch["pixel_values"] = torch.cat(pixels * repeat).to(self._device)
        return batch


def _content_of(picture: Picture) -> tuple[bytes, str, str]:
    """The bytes of an image file, the key, and the name in messages."""
    if isinstance(picture, bytes):
        return picture, key_of_bytes(picture), "the image"
    if isinstance(picture, str | os.PathLike):
        content = read_input_file(Path(picture))
        return content, key_of_bytes(content), str(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
            raise ConfigError(
                f"pixels are uint8 of shape (H, W, 3), (H, W, 4) or (H, W), got {picture.dtype} {picture.shape}"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise ConfigError(
            "an image is a path, the bytes of a file, a picture of Pillow or uint8 pixels, got "
            f"{type(picture).__name__}"
        )
    # as a file it goes the way of all files: its profile and orientation are applied
    file = io.BytesIO()
    extra = {name: picture.info[name] for name in ("icc_profile", "exif") if picture.info.get(name)}
    if picture.mode in _PNG_MODES:
        picture.save(file, "PNG", compress_level=1, **extra)
    else:
        picture.save(file, "TIFF", **extra)
    shown = decode_image(file.getvalue(), source="the image")
    size = f"{shown.width}x{shown.height}"
    return file.getvalue(), key_of_bytes(f"theworld pixels 1 {size}\n".encode() + shown.tobytes()), "the image"

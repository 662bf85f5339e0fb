"""Turn texts and pictures into the inputs of a model's `forward` and `generate`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.images.decode import decode_image, read_input_file
from theworld.pipeline.files.places.local import require_local
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.precompute.inputs.sandbox import shared_decoder
from theworld.precompute.preview.latent_decoder import place_of
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.source import find_autoencoder
from theworld.train.data.batches import Example, pad_rows
from theworld.train.data.vision import VisionInputs
from theworld.train.language.prompt_format import PromptFormat
from theworld.train.questions.conversations import Conversation, read_conversation
from theworld.train.questions.markers import Markers
from theworld.train.questions.values.text import WrongValue

Picture = Image.Image | str | os.PathLike[str] | bytes | NDArray[Any] | Tensor | Mapping[str, Any] | io.IOBase
"""A picture of Pillow; a file, its name or its bytes; uint8 pixels (H, W, 3), (H, W) or, of a tensor, (3, H, W); or
what `datasets` gives for an image that it does not decode: `bytes` and `path`."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_TIFF_MODES = frozenset({"CMYK", "LAB", "F"})
_CHANNELS = (1, 3, 4)


class Processor:
    """The prompt format of a language model and the image rules of a recipe.

    It holds no weights, so a worker of a DataLoader may have one: it is pickled in milliseconds.
    """

    def __init__(self, prompts: PromptFormat, recipe: Recipe, spec: Callable[[], LatentSpec]) -> None:
        """
        Args:
            spec: the latent space of the world model; asked for with the first picture.
        """
        self._prompts, self._recipe, self._spec = prompts, recipe, spec

    @property
    def tokenizer(self) -> Any:
        """The language model's tokenizer, of transformers."""
        return self._prompts.tokenizer

    def __call__(
        self,
        text: str | Sequence[str],
        images: Picture | Sequence[Any] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
    ) -> BatchFeature:
        """One batch: `model(**processor("where will it land?", "a.png"))`.

        Args:
            text: one question or several; markers such as <image> are taken out, for world tokens always come first.
            images: one picture for all of them, or one for each. A file of an image has the key that a store has for
                it; a picture that is no file has a key of its pixels.
            return_tensors, padding: as of transformers' processors; there are tensors alone, and rows of one length.
        Returns:
            On the CPU; the model moves them to where it is. input_ids and attention_mask, int64 (B, L), padded on the
            right; with images also images, float32 (B, 3, height, width) in [-1, 1], fitted to the recipe's size, and
            keys, one a row; with a language model that sees images itself also pixel_values.
        Raises:
            ConfigError: no text, another number of images, what is no picture, or another form of the result.
            ImageError: a picture cannot be used.
        """
        _check_form(return_tensors, padding)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(each, str) for each in texts):
            raise ConfigError(f"text is one question or several, got {text!r}")
        markers = [Markers() for _ in texts]
        texts = [marker.take(each) for marker, each in zip(markers, texts, strict=True)]
        if not all(texts) or any(marker.images > 1 for marker in markers):
            raise ConfigError(f"text is one question or several, each about one image, got {text!r}")
        return self._batch([self._prompts.prompt_ids(each) for each in texts], images)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
    ) -> BatchFeature:
        """One batch of messages, as transformers' processors take them, ready for `model.generate(**inputs)`.

        Args:
            conversation: messages such as {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type":
                "text", "text": "where will it land?"}]}, of which the last asks; or a list of such conversations. Each
                is about one image at most, which is named in any of its messages: all conversations name one, or none.
            add_generation_prompt, tokenize, return_dict: True alone. There is no prompt as text, for world tokens are
                vectors.
            return_tensors, padding: as of a call.
        Returns:
            As a call; with `images` and `keys` where the messages name images.
        Raises:
            ConfigError: no such messages, several images in one conversation, or another form of the result.
            ImageError: a picture cannot be used.
            QuestionError: a text contains a control token.
        """
        _check_form(return_tensors, padding)
        if not (add_generation_prompt and tokenize and return_dict):
            raise ConfigError(
                "add_generation_prompt, tokenize and return_dict are True here: world tokens are vectors, so there is "
                "no text of a prompt"
            )
        first = conversation[0] if isinstance(conversation, list | tuple) and conversation else None
        talks = [
            _open_conversation(each) for each in (conversation if isinstance(first, list | tuple) else [conversation])
        ]
        images = [talk.images[0] for talk in talks if talk.images]
        if images and len(images) != len(talks):
            raise ConfigError(f"{len(images)} of {len(talks)} conversations name an image; in a batch all do, or none")
        return self._batch([self._prompts.prompt_ids(talk.asked, talk.turns) for talk in talks], images or None)

    def decode(self, ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = True) -> str:
        """The text of one answer that `generate` returned, up to the token that ends it.

        Args:
            skip_special_tokens: without, all of the ids as the tokenizer writes them.
        """
        numbers = [int(id_) for id_ in ids]
        return self._prompts.decode(numbers) if skip_special_tokens else str(self.tokenizer.decode(numbers))

    def batch_decode(self, ids: Sequence[Sequence[int]] | Tensor, *, skip_special_tokens: bool = True) -> list[str]:
        """The texts of a batch that `generate` returned, as of `decode`."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]

    @cached_property
    def _latent_spec(self) -> LatentSpec:
        return self._spec()

    @cached_property
    def _vision(self) -> VisionInputs:
        return VisionInputs(self._prompts, {})

    def _batch(self, prompts: Sequence[Sequence[int]], images: Any) -> BatchFeature:
        rows = pad_rows([(Example("", tuple(ids), ()),) for ids in prompts], self._prompts.pad_id)
        batch: dict[str, Any] = {name: rows[name] for name in ("input_ids", "attention_mask")}
        if images is not None:
            batch |= self._pictures(images, len(prompts))
        return BatchFeature(batch)

    def _pictures(self, images: Any, count: int) -> dict[str, Any]:
        given = _listed(images)
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
            "images": torch.stack(loaded * repeat),
            "keys": [key for _, key, _ in contents] * repeat,
        }
        if self._prompts.image_tokens:
            pixels = [
                self._vision.prepare_image(decode_image(content, source=source)) for content, _, source in contents
            ]
            batch["pixel_values"] = torch.cat(pixels * repeat)
        return batch


def _check_form(return_tensors: str | None, padding: bool | str) -> None:
    if return_tensors not in ("pt", None) or padding not in (True, "longest"):
        raise ConfigError(
            f"return_tensors={return_tensors!r}, padding={padding!r}: a batch has tensors of torch ('pt'), and its "
            "rows are padded to the longest (True)"
        )


def _open_conversation(messages: Any) -> Conversation:
    """Messages of which the last asks about one image at most."""
    markers = Markers()
    try:
        talk = read_conversation(messages, None, markers, is_open=True)
    except WrongValue as error:
        raise ConfigError(f"the messages of a conversation cannot be read: {error}") from error
    if max(markers.images, len(talk.images)) > 1:
        raise ConfigError("a conversation has several images; world tokens are made of one image each")
    return talk


def _listed(images: Any) -> list[Any]:
    """The pictures, one a row: an array or tensor of four axes is a batch; of a list for each text, its one picture."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    if not isinstance(images, list | tuple):
        return [images]
    given = list(cast(Sequence[Any], images))
    for place, each in enumerate(given):
        if isinstance(each, list | tuple):  # as transformers' processors take them
            inner = cast(Sequence[Any], each)
            if len(inner) != 1:
                raise ConfigError(f"text {place} has {len(inner)} images; world tokens are made of one image each")
            given[place] = inner[0]
    return given


def _content_of(picture: Any) -> tuple[bytes, str, str]:
    """The bytes of an image file, the key, and the name in messages."""
    if isinstance(picture, Mapping) and {"bytes", "path"} & picture.keys():
        fields = cast(Mapping[str, Any], picture)
        picture = fields.get("bytes") or fields.get("path")
    if isinstance(picture, io.IOBase):
        picture = picture.read()
    if isinstance(picture, bytes | bytearray):
        return bytes(picture), key_of_bytes(bytes(picture)), "the image"
    if isinstance(picture, str | os.PathLike):
        content = read_input_file(require_local(os.fspath(picture)))
        return content, key_of_bytes(content), str(picture)
    if isinstance(picture, Tensor):
        picture = _channels_last(picture.detach().cpu().numpy())
    if isinstance(picture, np.ndarray):
        picture = _picture_of(picture)
    if not isinstance(picture, Image.Image):
        raise ConfigError(
            "an image is a path, the bytes of a file, a picture of Pillow or uint8 pixels, got "
            f"{type(picture).__name__}"
        )
    if picture.mode in ("I", "I;16B"):
        raise ConfigError(
            f"a picture of mode {picture.mode} does not say which value is white: scale it, and convert it to L"
        )
    if picture.mode == "La":
        picture = picture.convert("LA")
    # as a file it goes the way of all files: its profile and orientation are applied
    file = io.BytesIO()
    extra = {name: picture.info[name] for name in ("icc_profile", "exif") if picture.info.get(name)}
    if picture.mode in _PNG_MODES:
        picture.save(file, "PNG", compress_level=1, **extra)
    elif picture.mode in _TIFF_MODES:
        picture.save(file, "TIFF", **extra)
    else:  # modes that no file has, such as HSV
        picture.convert("RGBA" if picture.mode in ("PA", "RGBa") else "RGB").save(file, "PNG", compress_level=1)
    decoded = decode_image(file.getvalue(), source="the image")
    size = f"{decoded.width}x{decoded.height}"
    return file.getvalue(), key_of_bytes(f"theworld pixels 1 {size}\n".encode() + decoded.tobytes()), "the image"


def _channels_last(pixels: NDArray[Any]) -> NDArray[Any]:
    """A tensor's axes are (C, H, W), as of torchvision; (H, W, C) is understood where it cannot be both."""
    is_channels_first = pixels.ndim == 3 and pixels.shape[0] in _CHANNELS
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)) if is_channels_first else pixels


def _picture_of(pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    is_shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)
    if pixels.dtype != np.uint8 or not is_shaped or not pixels.size:
        advice = ""
        if pixels.dtype.kind == "f":
            advice = ". Of pixels in [0, 1]: (255 * pixels).round().astype('uint8'); what is in [-1, 1] and of the "
            advice += "recipe's size goes to the model itself, as images="
        elif pixels.ndim == 3 and pixels.shape[0] in _CHANNELS:
            advice = ". An array has its channels last: pixels.transpose(1, 2, 0)"
        raise ConfigError(
            f"pixels are uint8 of shape (H, W, 3), (H, W, 4) or (H, W), got {pixels.dtype} {pixels.shape}{advice}"
        )
    return Image.fromarray(pixels)


def latent_spec_of(recipe: Recipe, world: str | None) -> LatentSpec:
    """By the configs of the world model: to resolve a folder is to hash all its weights."""
    return find_autoencoder(place_of(recipe, world)).latent_spec()


def keys_of_pixels(images: Tensor) -> list[str]:
    """A key of each image's pixels, for images of no file."""
    head = f"theworld tensor 1 {tuple(images.shape[1:])}\n".encode()
    return [key_of_bytes(head + image.detach().float().cpu().numpy().tobytes()) for image in images]

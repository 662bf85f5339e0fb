"""Pictures of answers: the input, the future that was read, the question and the answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ...pipeline.errors import ConfigError, ImageError, TheWorldError
from ...pipeline.files.atomic import make_folders
from ...pipeline.files.images.decode import read_input_file
from ...pipeline.latents.keys import key_of_sample
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.latents.time_axis import label_frames
from ...pipeline.machine import DeviceName
from ...pipeline.store.folder import LatentStore
from ..inputs.lookup import InputLookup
from ..inputs.sandbox import shared_decoder
from ..media.images import to_image
from ..media.video_times import Window
from ..rollout.kinds import KINDS
from .drawing import ACCENT, INK, PALE, SOFT, draw_arrow, drawable, font, font_for, to_frames
from .latent_decoder import LatentDecoder
from .store_preview import GUARDRAIL_NOTE, PICTURES_PER_S, decode_frames

_TILE, _MARGIN, _BAR = 128, 16, 260


class AnswerPictures:
    """Decodes what a reader saw. Where world model or inputs are not at hand, says so in `notes` and does without."""

    def __init__(self, store: LatentStore, images: Path, *, world: str | None = None, device: DeviceName) -> None:
        """
        Args:
            images: folder that the questions' images are relative to, or one the store was made from.
            world: where the world model's weights are; by default where the recipe says.
        """
        self._store, self._images = store, images
        self._kind = KINDS[store.recipe.kind]
        self._originals: InputLookup | None = None
        self._viewer: LatentDecoder | None = None
        self._without: set[str] = set()
        self.notes: list[str] = []
        """What a person should know of the pictures."""
        try:
            self._viewer = LatentDecoder.for_store(store, world=world, device=device)
            self._originals = InputLookup(store, images if images.is_dir() else None)
            if self._viewer.asks_guardrail:
                self.notes.append(GUARDRAIL_NOTE)
        except TheWorldError as error:
            self.notes.append(f"note: examples have no pictures: {error}")

    @property
    def rate(self) -> float:
        """Frames a second of what `frames` gives, in real time where they follow one another."""
        recipe, viewer = self._store.recipe, self._viewer
        is_clip = viewer is not None and recipe.traits.is_clip
        return (recipe.clip_fps or viewer.fps) / recipe.stride if viewer is not None and is_clip else PICTURES_PER_S

    def frames(self, key: str, image: str, *, steps: int) -> NDArray[np.uint8] | None:
        """(F, height, width, 3) of what was read, decoded; None where the world model is not at hand.

        Args:
            key: of the image's latents. image: its file, as the question names it.
            steps: K, the rollout steps that were read.
        """
        if self._viewer is None or not self._viewer.has_pictures or key not in self._store:
            return None
        steps = 0 if self._store.recipe.traits.is_distribution else steps
        latents = as_tensor(self._store.read([key], rollout_steps=steps)).float()
        first = self._input(key, image)
        try:
            if first is not None:
                self._viewer.require_same(first, latents)
        except ConfigError as error:
            self._viewer = None
            self.notes.append(f"note: examples have no pictures: {error}")
            return None
        if first is None:
            self.notes += [note for note in self._viewer.notes if note not in self.notes]
        frames = decode_frames(self._viewer, self._store, key, steps)
        if first is not None:
            frames[0] = np.asarray(to_image(first))
        return frames

    def _input(self, key: str, image: str) -> Tensor | None:
        """The input's first picture; None where it is not there any more, so that the decoded one stands in."""
        assert self._viewer is not None
        assert self._originals is not None
        try:
            file = self._images / image
            if file.is_file():
                content = read_input_file(file, max_bytes=self._kind.max_bytes)
                start_s = self._store.starts().get(key)
                if key_of_sample(content, self._store.prompts().get(key), start_s) == key:
                    window = None if start_s is None else Window(start_s)
                    return shared_decoder().load(content, self._store.recipe, self._viewer.spec, image, window).first
            return self._originals.load(key).first
        except (ImageError, OSError, ValueError) as error:
            if not self._without:
                self.notes.append(f"note: some examples begin with the decoded first frame: {error}")
            self._without.add(key)
            return None


def save_answer(
    decoder: LatentDecoder,
    file: Path,
    latents: Float[Tensor, "1 C T H W"],
    question: str,
    answers: Sequence[tuple[str, float | None]],
    path: Path,
) -> None:
    """Write the answer card of an image or video file as a PNG; its folder is made.

    Args:
        file, latents: the input, and what was read of it.
        answers: the likeliest first, with their probabilities where choices were ranked.
    Raises:
        ImageError: the input cannot be used.
    """
    _, loaded = decoder.load(file)
    picture = draw_answer(decoder, loaded.first, latents, question, answers)
    make_folders(path.absolute().parent)
    picture.save(path, format="PNG")


def draw_answer(
    decoder: LatentDecoder,
    first: Tensor | None,
    latents: Float[Tensor, "1 C T H W"],
    question: str,
    answers: Sequence[tuple[str, float | None]],
) -> Image.Image:
    """The answer card of an input: its first picture, its decoded latents, the question and the answers.

    Args:
        first: the input's first picture, (3, height, width) in [-1, 1]; None takes the decoded one.
        answers: the likeliest first, with their probabilities where choices were ranked.
    """
    video = decoder.decode(latents)
    return answer_picture(
        to_image(video[:, 0].clamp(-1, 1) if first is None else first),
        video,
        question,
        answers,
        labels=label_frames(decoder.recipe, decoder.spec, decoder.fps, latents.shape[2]),
        temporal_stride=decoder.spec.temporal_stride,
    )


def answer_picture(
    source: Image.Image,
    video: Float[Tensor, "3 F height width"],
    question: str,
    answers: Sequence[tuple[str, float | None]],
    *,
    labels: Sequence[str],
    temporal_stride: int,
) -> Image.Image:
    """What `ask` did, to be looked at: the image, the future that was read, the question and the answers.

    Args:
        video: the decoded rollout, in [-1, 1].
        answers: the likeliest first, with their probabilities, where choices were ranked.
        labels: of the latent frames, in order.
        temporal_stride: video frames per latent frame after the first.
    """
    tiles = [source.convert("RGB"), *map(Image.fromarray, _last_of_each(video[None], temporal_stride)[0][1:])]
    side = (round(_TILE * source.width / source.height), _TILE)
    sample = Image.Resampling.NEAREST if source.height < _TILE else Image.Resampling.LANCZOS
    small = font(13)
    step, first_gap = side[0] + 4, 34
    width = 2 * _MARGIN + len(tiles) * step - 4 + first_gap
    top, text_top = 38, 38 + _TILE + 18
    picture = Image.new("RGB", (max(width, 640), text_top + 34 + 28 * len(answers) + _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for number, tile in enumerate(tiles):
        left = _MARGIN + number * step + (first_gap if number else 0)
        draw.text((left + side[0] / 2, top - 6), labels[number], fill=SOFT, font=small, anchor="ms")
        picture.paste(tile.resize(side, sample), (left, top))
        draw.rectangle((left, top, left + side[0] - 1, top + _TILE - 1), outline=ACCENT if number else INK)
    if len(tiles) > 1:
        draw_arrow(draw, _MARGIN + side[0] + 8, top + _TILE // 2)
        left = _MARGIN + step + first_gap
        draw.text((left, _MARGIN - 2), "predicted future", fill=ACCENT, font=small, anchor="ls")
    _write(draw, (_MARGIN, text_top), question, INK)
    for number, (answer, probability) in enumerate(answers):
        y = text_top + 34 + 28 * number
        ink = INK if number == 0 else SOFT
        if probability is None:
            _write(draw, (_MARGIN, y), answer, ink)
            continue
        draw.rectangle((_MARGIN, y + 2, _MARGIN + _BAR, y + 20), fill=PALE)
        bar = (_MARGIN, y + 2, _MARGIN + round(_BAR * probability), y + 20)
        draw.rectangle(bar, fill=ACCENT if number == 0 else SOFT)
        _write(draw, (_MARGIN + _BAR + 12, y + 11), f"{answer}   {probability:.0%}", ink, anchor="lm")
    return picture


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, ink: tuple[int, int, int], anchor: str = "la"
) -> None:
    """One large line; beyond ASCII, in the letters that DejaVu has."""
    line = drawable(text.replace("\n", " "))
    draw.text(at, line, fill=ink, font=font_for(line, 20), anchor=anchor)


def _last_of_each(videos: Float[Tensor, "B 3 F height width"], temporal_stride: int) -> NDArray[np.uint8]:
    """(B, T, height, width, 3): the video frame that ends each latent frame."""
    return to_frames(videos[:, :, ::temporal_stride])

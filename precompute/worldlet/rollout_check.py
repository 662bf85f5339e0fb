"""Check whether each rollout in a store ends as its true scene does, and draw both as strips of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...pipeline.errors import ConfigError
from ...pipeline.latents.keys import key_of_file
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..preview.drawing import font
from ..preview.latent_decoder import LatentDecoder
from .scenes.files import read_truth
from .scenes.outcomes import Video, read_outcome
from .scenes.physics import VIDEO_FRAMES, paint
from .training.clips import layout_of

CHECKED = 100
"""Scenes that a page checks: enough to find wrong rollouts to show, in half a minute."""
_BATCH = 16
_ZOOM, _GAP, _LINE, _FONT = 2, 2, 20, 15


def rollout_outcomes(
    store: LatentStore,
    folder: Path,
    *,
    splits: Sequence[str] = ("test", "ood"),
    most: int | None = None,
    progress: Progress | None = None,
) -> dict[str, bool]:
    """Scene -> whether its rollout, decoded and read by the fixed parser, ends as the true scene does.

    Args:
        store: rollouts of the worldlet over the scenes' whole length.
        folder: of scenes, with its `scenes.jsonl`.
        most: only the first so many scenes; one takes about 0.35 CPU seconds.
    Raises:
        ConfigError: another world's rollouts, or shorter ones than the scenes.
        StoreError: a scene of these splits has no latent.
    """
    viewer = _viewer_of(store)
    truths = [truth for truth in read_truth(folder) if truth["split"] in splits][:most]
    agreement: dict[str, bool] = {}
    with (progress or Progress.silent()).bar("rollouts read", total=len(truths), unit="scenes") as bar:
        for start in range(0, len(truths), _BATCH):
            part = truths[start : start + _BATCH]
            for truth, video in zip(part, _decoded(viewer, store, folder, part), strict=True):
                outcome = read_outcome(truth["family"], video, layout_of(truth["layout"]))
                agreement[truth["id"]] = outcome == truth["answer"]
            bar.advance(len(part))
    return agreement


def true_futures(folder: Path) -> dict[str, TrueFuture]:
    """Scene -> its true future, painted when it is asked for."""
    return {truth["id"]: TrueFuture(truth) for truth in read_truth(folder)}


@dataclass(frozen=True, slots=True)
class TrueFuture:
    """What truly happens in a scene."""

    truth: dict[str, Any]

    def frames(self) -> NDArray[np.uint8]:
        """(F, height, width, 3), the observed frame first."""
        return paint(layout_of(self.truth["layout"]), np.asarray(self.truth["states"]))


def draw_strips(store: LatentStore, folder: Path, captions: Sequence[tuple[str, Sequence[str]]]) -> list[Image.Image]:
    """One picture per scene: its true future, every fourth frame, above the rollout, and lines of text below.

    Args:
        captions: scenes by their ids, each with the lines to write.
    """
    viewer = _viewer_of(store)
    truths = {truth["id"]: truth for truth in read_truth(folder)}
    pictures = []
    for name, lines in captions:
        truth = truths[name]
        true = TrueFuture(truth).frames()
        [video] = _decoded(viewer, store, folder, [truth])
        rolled = np.rint(np.clip(video, 0, 1) * 255).astype(np.uint8)
        pictures.append(_strip(true, rolled, lines))
    return pictures


def _strip(true: NDArray[np.uint8], rolled: NDArray[np.uint8], lines: Sequence[str]) -> Image.Image:
    side = true.shape[1] * _ZOOM
    columns = range(0, len(true), 4)
    label, letters = 56, font(_FONT)
    width = label + len(columns) * (side + _GAP)
    picture = Image.new("RGB", (width, 2 * (side + _GAP) + _LINE * len(lines) + 6), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for row, (name, clip) in enumerate((("true", true), ("rollout", rolled))):
        top = row * (side + _GAP)
        draw.text((2, top + side // 2 - 8), name, fill=(40, 40, 40), font=letters)
        for column, frame in enumerate(columns):
            tile = Image.fromarray(clip[frame]).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (label + column * (side + _GAP), top))
    for number, line in enumerate(lines):
        draw.text((label, 2 * (side + _GAP) + 2 + number * _LINE), line, fill=(20, 20, 20), font=letters)
    return picture


def _viewer_of(store: LatentStore) -> LatentDecoder:
    recipe = store.recipe
    if not recipe.traits.begins_with_encoding or recipe.stride != 1 or 1 + 4 * recipe.rollout_steps != VIDEO_FRAMES:
        raise ConfigError(
            f"{store.place} does not hold rollouts over the {VIDEO_FRAMES} frames of a scene: "
            f"precompute with --steps {(VIDEO_FRAMES - 1) // 4}"
        )
    return LatentDecoder.for_store(store, device="cpu")


@torch.no_grad()
def _decoded(viewer: LatentDecoder, store: LatentStore, folder: Path, truths: Sequence[dict[str, Any]]) -> Video:
    keys = [key_of_file(folder / "images" / f"{truth['id']}.png") for truth in truths]
    latents = as_tensor(store.read(keys)).float()
    return (viewer.decode_clips(latents).permute(0, 2, 3, 4, 1).numpy() + 1) / 2

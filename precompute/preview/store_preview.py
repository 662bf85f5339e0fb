"""Decode samples of a store, and draw them as a contact sheet, an animation and, on request, a video.

Axes:  T latent frame   F video frame
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.files.atomic import make_folders, replace
from ...pipeline.latents.kinds import seconds_ahead
from ...pipeline.latents.spec import latent_frames
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.latents.time_axis import horizon_s, label_frames
from ...pipeline.machine import DeviceName
from ...pipeline.messages import command
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..inputs.lookup import InputLookup, key_named
from ..media.images import to_image
from ..worlds.scene_look import MEANS_NOTHING
from .contact_sheet import Row, Words, draw_animation, draw_sheet, gif, hold_ends
from .drawing import to_frames
from .latent_decoder import LatentDecoder

MAX_COLUMNS = 13
"""Of a sheet; of longer rollouts so many frames are shown, evenly spread."""
PICTURES_PER_S = 1.5
"""In an animation of frames that do not follow one another."""

GUARDRAIL_NOTE = (
    "note: decoded without NVIDIA's frame guardrail (cosmos_guardrail blurs faces), which its licence asks for where "
    "decoded frames are used: look at your store with these, and run the guardrail over what you publish"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """The files of a preview."""

    files: tuple[Path, ...]
    samples: tuple[tuple[str, str], ...]
    """Key and name of each, in order."""
    without_source: dict[str, int]
    """Why an input could not be shown -> how many."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "files": [str(file) for file in self.files],
            "samples": [{"key": key, "name": name} for key, name in self.samples],
            "without_source": self.without_source,
        }


def preview(
    store: LatentStore,
    out: Path,
    *,
    wanted: Sequence[str] = (),
    samples: int = 8,
    seed: int = 0,
    steps: int | None = None,
    images: Path | None = None,
    world: str | None = None,
    true: LatentStore | None = None,
    video: bool = False,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> Preview:
    """Draw samples of a store into `out`, as `<store>.png`, `<store>.gif` and, with `video`, `<store>.mp4`.

    Args:
        wanted: keys, names or files of inputs; none draws `samples` of them by `seed`, the same for the same keys.
        steps: only the observed frame and the first so many.
        images: where the inputs are, for the first picture of each row; see `InputLookup`.
        world: where the world model's weights are; by default where the recipe says.
        true: a store of kind frames with the true futures, found by the names of their inputs.
    Raises:
        ConfigError: nothing to draw, other weights than the store's, or futures that do not fit.
        StoreError: a latent cannot be read.
    """
    progress = progress or Progress.silent()
    if not len(store):
        raise ConfigError(f"{store.place} is empty: there is nothing to look at yet")
    keys = [key_named(store, name) for name in wanted] if wanted else _sample_keys(store, samples, seed)
    if store.recipe.traits.is_distribution:
        steps = 0  # a log-variance is no picture
    inputs = InputLookup(store, images)
    futures = _Futures(true, store) if true is not None else None
    decoder = LatentDecoder.for_store(store, world=world, device=device, steps=steps, progress=progress)
    rows: list[Row] = []
    missing_reasons: Counter[str] = Counter()
    with progress.bar("decoding", total=len(keys), unit="samples") as bar:
        for key in keys:
            names = inputs.names(key)
            source: NDArray[np.uint8] | None = None
            try:
                first = inputs.load(key).first
                decoder.require_same(first, as_tensor(store.read([key], rollout_steps=0)))
                source = np.asarray(to_image(first))
            except ImageError as error:
                missing_reasons[error.reason] += 1
            future = futures.key_of(names) if futures is not None else None
            rows.append(
                Row(
                    name=names[0] if names else key,
                    key=key,
                    frames=decode_frames(decoder, store, key, steps),
                    source=source,
                    true=None
                    if futures is None or future is None
                    else decode_frames(decoder, futures.store, future, steps),
                )
            )
            bar.advance(1)

    frames = latent_frames(store.recipe.rollout_steps if steps is None else steps)
    labels = label_frames(decoder.recipe, decoder.spec, decoder.fps, frames)
    selection = f"{len(rows)} of {len(store)} samples" + ("" if wanted else f", drawn by seed {seed}")
    strangers = _strangers(rows, decoder)
    files = _write(
        rows, _words(store, decoder, labels, selection, strangers), labels, decoder, out / store.place.name, video
    )
    memory = [note] if (note := decoder.memory_note()) else []
    return Preview(
        files=files,
        samples=tuple((row.key, row.name) for row in rows),
        without_source=dict(missing_reasons),
        notes=(
            *((f"warning: {MEANS_NOTHING.format(these=f'{strangers}are none of them')}",) if strangers else ()),
            *_notes(inputs, rows, missing_reasons, decoder, with_true=true is not None),
            *memory,
        ),
    )


def _strangers(rows: Sequence[Row], decoder: LatentDecoder) -> str:
    """How many rows begin with what the world model cannot know, in words; empty where none does."""
    pictures = [row.frames[0] if row.source is None else row.source for row in rows]
    count = sum(not decoder.is_known(picture) for picture in pictures)
    return f"{count} of {len(rows)} pictures " if count else ""


def _words(store: LatentStore, decoder: LatentDecoder, labels: Sequence[str], selection: str, strangers: str) -> Words:
    recipe = store.recipe
    frames_per_latent = decoder.spec.temporal_stride if recipe.traits.is_clip else 1
    count = min(MAX_COLUMNS, len(labels))
    columns = [number * (len(labels) - 1) // max(1, count - 1) for number in range(count)]
    horizon = horizon_s(recipe, store.spec, decoder.fps)
    steps = f"{recipe.rollout_steps} steps" + ("" if horizon is None else f" = {horizon:.1f} s ahead")
    return Words(
        title=store.place.name,
        about=(f"{strangers}are no scenes of the worldlet: those futures mean nothing. " if strangers else "")
        + f"{recipe.kind} by {decoder.name}, {recipe.height}x{recipe.width}, {steps}; {selection}",
        columns=[(frames_per_latent * t, labels[t]) for t in columns],
        predicted_from=recipe.traits.first_predicted_frame(recipe),
    )


def _write(
    rows: Sequence[Row], words: Words, labels: Sequence[str], decoder: LatentDecoder, stem: Path, video: bool
) -> tuple[Path, ...]:
    """The files `stem` + .png, .gif and perhaps .mp4."""
    recipe = decoder.recipe
    rate = (recipe.clip_fps or decoder.fps) / recipe.stride if recipe.traits.is_clip else PICTURES_PER_S
    pictures = draw_animation(rows, words, _labels_between(labels, decoder, len(rows[0].frames)))
    sheet = io.BytesIO()
    draw_sheet(rows, words).save(sheet, "PNG", optimize=True)
    make_folders(stem.parent)
    files = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".gif", ".mp4")]  # a label may hold dots
    replace(stem.parent, files[0], sheet.getbuffer())
    replace(stem.parent, files[1], gif(pictures, rate))
    if not video:
        return tuple(files[:2])
    from ..media.video_writing import write_video

    write_video(files[2], hold_ends(pictures, rate), rate, lossless=False)
    return tuple(files)


def _notes(
    inputs: InputLookup, rows: Sequence[Row], missing_reasons: Counter[str], decoder: LatentDecoder, *, with_true: bool
) -> Iterator[str]:
    if missing_reasons:
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing_reasons.items())
        where = f"in {inputs.place}" if inputs.place else "as no --images FOLDER was named"
        count = missing_reasons.total()
        yield f"note: {count} of {len(rows)} rows begin with the decoded first frame, {where}: {reasons}"
    if with_true and (without_future := sum(row.true is None for row in rows)):
        yield f"note: {without_future} of {len(rows)} samples have no true future of the same name"
    if decoder.asks_guardrail:
        yield GUARDRAIL_NOTE
    yield from decoder.notes


class _Futures:
    """The store of the true futures, and which of them belongs to an input: the one of the same name."""

    def __init__(self, true: LatentStore, store: LatentStore) -> None:
        ours, theirs = store.recipe, true.recipe
        shared_fields = ("world", "height", "width", "stride")
        fitting = ours.traits.is_image_rollout and theirs.traits.is_real_video
        if not fitting or theirs.rollout_steps < ours.rollout_steps:
            raise ConfigError(
                f"--true {true.place} holds {theirs.kind} of {theirs.rollout_steps} steps; beside {ours.kind} of "
                f"{ours.rollout_steps} steps it takes rollouts and real frames of at least as many: "
                + command("precompute", "VIDEOS", "--kind", "frames", "--steps", f"{ours.rollout_steps}")
            )
        if differing := [name for name in shared_fields if getattr(ours, name) != getattr(theirs, name)]:
            raise ConfigError(f"--true {true.place} differs from {store.place} in {', '.join(differing)}")
        self.store = true
        self._keys: dict[str, str] = {}
        for source, keys in true.sources().items():
            stored_keys = [key for key in keys if key in true]
            if len(stored_keys) == 1:
                self._keys[_stem(source)] = stored_keys[0]

    def key_of(self, names: Sequence[str]) -> str | None:
        return next((self._keys[_stem(name)] for name in names if _stem(name) in self._keys), None)


def _stem(source: str) -> str:
    return str(PurePosixPath(source).with_suffix("")) if PurePosixPath(source).name else source


def _sample_keys(store: LatentStore, samples: int, seed: int) -> list[str]:
    keys = sorted(store.keys)  # the order of shards says nothing
    return random.Random(seed).sample(keys, min(samples, len(keys)))


@torch.inference_mode()
def decode_frames(decoder: LatentDecoder, store: LatentStore, key: str, steps: int | None) -> NDArray[np.uint8]:
    """(F, height, width, 3): what belongs together in time decoded as one clip, all else frame by frame."""
    steps = decoder.recipe.rollout_steps if steps is None else steps
    latents = as_tensor(store.read([key], rollout_steps=steps)).float()
    parts: list[NDArray[np.uint8]] = []
    for clip in store.recipe.traits.frames_decoded_together(store.recipe):
        if indices := [t for t in clip if t <= steps and (t or not parts)]:
            first = clip[:1] if indices[0] != clip[0] else []  # a draw begins with the frame that all have
            video = to_frames(decoder.decode_clips(latents[:, :, first + indices]))[0]
            parts.append(video[1:] if first else video)
    return np.concatenate(parts)


def _labels_between(labels: Sequence[str], decoder: LatentDecoder, frames: int) -> list[str]:
    """Of every decoded frame: of a rollout its own time, else that of the latent frame it belongs to."""
    if decoder.recipe.traits.is_image_rollout:
        return ["now", *(seconds_ahead(number * decoder.recipe.stride, decoder.fps) for number in range(1, frames))]
    frames_per_label = max(1, (frames - 1) // max(1, len(labels) - 1))
    return [labels[-(-number // frames_per_label)] for number in range(frames)]

"""The kinds of recipe: which inputs each takes, and how a world model makes its latents."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.images import decode as image_files
from ...pipeline.files.images.formats import name_format
from ...pipeline.latents.kinds import KINDS as TRAITS
from ...pipeline.latents.kinds import KindName
from ...pipeline.latents.recipe import IMAGE_RULES, VIDEO_RULES, VIEW_RULES, Recipe, recipe_of_draw
from ...pipeline.latents.spec import LatentSpec, latent_frames, video_frames
from ...pipeline.latents.world_model import Autoencoder, HasHiddenStates, WorldModel
from ..media import images, video, video_files
from ..media.video_times import WHOLE, Window
from ..media.views import load_views
from ..worlds.family import most_frames, read_configs, settings_of
from ..worlds.source import WorldSource
from .chunks import roll_out_in_chunks
from .clip_limits import check_clip, check_window
from .kind import Kind, Loaded


class _Rollout(Kind):
    """An image and its predicted future. T: the image's encoding, then C future latent frames, `stride` apart."""

    takes, makes, doing, phase = TRAITS["rollout"].takes, "rollouts", "rolling out", "rollout"
    suffixes, max_bytes, rules = image_files.SUFFIXES, image_files.MAX_BYTES, IMAGE_RULES
    batch = (8, 16)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        check_window(recipe, world, steps=recipe.rollout_steps)

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        return f"{recipe.rollout_steps} steps = {_future(recipe, world, recipe.rollout_steps)}"

    def load(
        self, content: bytes, recipe: Recipe, spec: LatentSpec, source: str, window: Window | None = None
    ) -> Loaded:
        del spec  # one image, whatever the world model
        picture, notes, rate = _picture(content, source, window)
        return Loaded(images.to_tensor(images.fit_image(picture, *_size(recipe), recipe.fit)), notes, rate)

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        return _roll_out(world, batch, keys, recipe)


class _Samples(_Rollout):
    """An image and several futures. T: the image's encoding, then the future frames of each draw in turn."""

    makes = "sets of rollouts"

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        check_window(recipe, world, steps=recipe.steps_of_a_draw)

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        steps = recipe.steps_of_a_draw
        return f"{recipe.draws} futures of {steps} steps = {_future(recipe, world, steps)}"

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        rollouts = [_roll_out(world, batch, keys, recipe_of_draw(recipe, number)) for number in range(recipe.draws)]
        return torch.cat([rollouts[0][:, :, :1], *(future[:, :, 1:] for future in rollouts)], dim=2)


class _Hidden(_Rollout):
    """An image and what the network holds of its future. T: the image's encoding, then the tokens of each future frame
    behind one block, in the first forward of a rollout."""

    makes, doing = "hidden states", "looking ahead"

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        blocks, steps = world.blocks(), recipe.rollout_steps * recipe.stride
        if recipe.hidden_block > blocks.count:
            raise ConfigError(
                f"--hidden-block {recipe.hidden_block}: the network of {world.name} has {blocks.count} blocks. Choose "
                f"1 to {blocks.count}"
            )
        if recipe.hidden_width > blocks.width:
            raise ConfigError(
                f"--hidden-width {recipe.hidden_width}: tokens of {world.name} have {blocks.width} numbers. Choose "
                "fewer, or 0 for all"
            )
        if recipe.hidden_sigma is not None and recipe.hidden_sigma > (blocks.most_sigma or 0):
            has = "no noise" if blocks.most_sigma is None else f"noise levels of up to {blocks.most_sigma:g}"
            raise ConfigError(
                f"--hidden-sigma {recipe.hidden_sigma:g}: {world.name} has {has}. Choose less, or leave it out"
            )
        if blocks.most_steps is not None and steps > blocks.most_steps:
            raise ConfigError(
                f"--steps {recipe.rollout_steps} with --stride {recipe.stride}: the first forward of {world.name} "
                f"covers {blocks.most_steps} latent frames, and hidden states are those of the first. Choose fewer"
            )
        cell = world.latent_spec().spatial_stride * blocks.patch
        if recipe.height % cell or recipe.width % cell:
            near = "x".join(str(max(1, round(side / cell)) * cell) for side in (recipe.height, recipe.width))
            raise ConfigError(
                f"--size {recipe.height}x{recipe.width}: a token of {world.name} covers {cell}x{cell} pixels, and "
                f"hidden states are whole tokens. Choose --size {near}"
            )
        super().check(recipe, world)

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        blocks, spec = world.blocks(), world.spec_of(recipe)
        horizon_s = spec.temporal_stride * recipe.rollout_steps * recipe.stride / (recipe.fps or world.card.fps)
        noise = "the first level of its schedule" if recipe.hidden_sigma is None else f"sigma {recipe.hidden_sigma:g}"
        text = "no text" if recipe.prompt is None else f"prompt {recipe.prompt!r}"
        width = f", projected from {blocks.width} to {spec.channels} channels" if recipe.hidden_width else ""
        return (
            f"{recipe.rollout_steps} steps = {horizon_s:.1f} s ahead: hidden states behind block "
            f"{recipe.hidden_block} of {blocks.count}{width}; one forward, "
            f"{'without noise' if blocks.most_sigma is None else f'noise at {noise}'}, {text}; no pictures"
        )

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        if not isinstance(world, HasHiddenStates):
            raise ConfigError(
                f"--kind hidden: the family of this world model says which blocks it has, and its engine "
                f"{type(world).__name__} has no hidden(seen, keys, recipe). Choose --kind rollout, or add it to the "
                "engine (docs/worlds.md#plugins)"
            )
        return world.hidden(batch, keys, recipe)


class _Posterior(_Rollout):
    """The VAE's posterior of an image. T: mean, log-variance; training draws from them (`draw_posterior`)."""

    makes, doing, phase = "posteriors", "encoding", "encode"
    batch = (8, 32)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        world.require("posterior", f"--kind {recipe.kind}")

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        del recipe, world
        return "mean and log-variance of each image's encoding"

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        del keys, recipe
        return cast(Autoencoder, world).posterior(batch)


class _Views(_Posterior):
    """An image at several crops and scales. T: the whole image, then each crop, each encoded alone."""

    makes = "sets of views"
    rules = VIEW_RULES
    batch = (2, 8)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        del recipe, world  # single images, which each world model encodes

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        del world
        return f"{latent_frames(recipe.rollout_steps)} views of each image ({recipe.views}), each encoded alone"

    def load(
        self, content: bytes, recipe: Recipe, spec: LatentSpec, source: str, window: Window | None = None
    ) -> Loaded:
        del spec
        views = latent_frames(recipe.rollout_steps)
        picture, notes, rate = _picture(content, source, window)
        return Loaded(load_views(picture, recipe.views, views, *_size(recipe), recipe.fit), notes, rate)

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        del keys, recipe
        return torch.cat([world.encode(view) for view in batch.unbind(2)], dim=2)


class _Frames(Kind):
    """The first frames of a video. T: their latent frames, `stride` apart."""

    takes, makes, doing, phase = TRAITS["frames"].takes, "encodings", "encoding", "encode"
    suffixes, max_bytes, rules = video_files.SUFFIXES, video_files.MAX_BYTES, VIDEO_RULES
    batch = (4, 4)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        world.require("encode_video", f"--kind {recipe.kind}")
        # no window to check: the VAE is causal and nothing is predicted
        check_clip(recipe, self.frames(recipe, world.latent_spec()))

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        stride_note = f", every {recipe.stride}. of the encoding" if recipe.stride > 1 else ""
        frames = self.frames(recipe, world.latent_spec())
        latent_count = latent_frames(recipe.rollout_steps)
        return f"the first {frames} frames of each video{_rate(recipe)} = {latent_count} latent frames{stride_note}"

    def frames(self, recipe: Recipe, spec: LatentSpec) -> int:
        """Video frames that are read of each input."""
        return _clip_frames(recipe, spec)

    def load(
        self, content: bytes, recipe: Recipe, spec: LatentSpec, source: str, window: Window | None = None
    ) -> Loaded:
        clip = video.load_video(
            content,
            self.frames(recipe, spec),
            *_size(recipe),
            recipe.fit,
            source=source,
            clip_fps=recipe.clip_fps,
            window=window or WHOLE,
        )
        return Loaded(clip.pixels, clip.notes, clip.rate)

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        del keys  # nothing is drawn
        return cast(Autoencoder, world).encode_video(batch)[:, :, :: recipe.stride].contiguous()


class _Continuation(_Frames):
    """The first frames of a video and its predicted future. T: the observed latent frames, then the predicted ones.

    `rollout_steps` counts all latent frames but the first; five observed video frames leave one prediction fewer.
    """

    makes, doing, phase = "rollouts", "rolling out", "rollout"

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        stride, observed = world.latent_spec().temporal_stride, recipe.observed_frames
        if observed > 1:
            world.require("encode_video", f"--observed-frames {observed}")
        if (observed - 1) % stride:
            raise ConfigError(
                f"--observed-frames {observed}: every latent frame but the first packs {stride} video frames, so "
                f"choose 1 + a multiple of {stride}, such as {1 + stride}"
            )
        if observed >= (clip_frames := _clip_frames(recipe, world.latent_spec())):
            raise ConfigError(
                f"--observed-frames {observed} are all of the clip that --steps {recipe.rollout_steps} makes "
                f"({clip_frames} video frames), so nothing is left to predict. Choose more --steps"
            )
        largest = video_frames(recipe.chunk_frames - 1, temporal_stride=stride)
        if recipe.chunk_frames and observed > largest:
            raise ConfigError(
                f"--observed-frames {observed} are more than the first chunk holds, {recipe.chunk_frames} latent "
                f"frames of {world.name}. Choose at most {largest}"
            )
        check_clip(recipe, observed)
        check_window(recipe, world, steps=recipe.rollout_steps)

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        return (
            f"the first {recipe.observed_frames} frames of each video{_rate(recipe)} are seen, "
            f"{recipe.rollout_steps} steps = {_future(recipe, world, recipe.rollout_steps)}"
        )

    def frames(self, recipe: Recipe, spec: LatentSpec) -> int:
        del spec
        return recipe.observed_frames

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        return _roll_out(world, batch, keys, recipe)


def _roll_out(world: WorldModel, observed: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
    if recipe.chunk_frames:
        return roll_out_in_chunks(world, observed, keys, recipe)
    return world.rollout(observed, keys, recipe)


def _future(recipe: Recipe, world: WorldSource, steps: int) -> str:
    horizon_s = world.latent_spec().temporal_stride * steps * recipe.stride / (recipe.fps or world.card.fps)
    text = "no text" if recipe.prompt is None else f"prompt {recipe.prompt!r}, guidance {recipe.guidance:g}"
    solver = "" if recipe.solver == "euler" else f" ({recipe.solver})"
    chunks = ""
    if recipe.chunk_frames:
        chunks = f", chunks of {recipe.chunk_frames} latent frames, each from the last {recipe.chunk_context} decoded"
    frames, window = 1 + steps * recipe.stride, world.card.window
    if frames > window and most_frames(world.family, read_configs(world.folder)) is not None:
        chunks = f", {frames} latent frames from a kept state (it was trained on {window}: beyond, it may drift)"
    if (settings := settings_of(world.family)) is not None and not settings.noise:
        return f"{horizon_s:.1f} s ahead, in one forward, without noise"
    return f"{horizon_s:.1f} s ahead, {recipe.denoise_steps} denoise steps{solver}, {text}{chunks}"


def _rate(recipe: Recipe) -> str:
    return " as stored" if recipe.clip_fps is None else f" at {recipe.clip_fps:g} frames/s"


def _picture(content: bytes, source: str, window: Window | None) -> tuple[Image.Image, tuple[str, ...], float | None]:
    """The picture in an image file, or the frame of a video at the window's start; notes, and the video's rate."""
    # HEIC, camera raw and others use the container of MP4; read_image calls them by their names
    is_video = name_format(content) is None and video_files.container_of(content) is not None
    if is_video and window is not None:
        return video.load_moment(content, window.start_s, source=source)
    if is_video:
        raise ImageError(
            FailureReason.FORMAT,
            f"{source} is a video, and images are wanted; --kind frames takes videos, and --anchor SECONDS the picture "
            "at a moment of them",
        )
    if window is not None:
        raise ImageError(FailureReason.FORMAT, f"{source} is no video: it has no picture at {window.start_s:g} s")
    decoded = image_files.read_image(content, source=source)
    return decoded.image, decoded.notes, None


def _size(recipe: Recipe) -> tuple[int, int]:
    return recipe.height, recipe.width


def _clip_frames(recipe: Recipe, spec: LatentSpec) -> int:
    return video_frames(recipe.rollout_steps, stride=recipe.stride, temporal_stride=spec.temporal_stride)


def at_moments(kind: Kind) -> Kind:
    """The kind where its inputs are moments of videos: one that takes images then takes video files."""
    if kind.takes == "video":
        return kind
    kind = copy(kind)
    kind.takes, kind.suffixes, kind.max_bytes = "video", video_files.SUFFIXES, video_files.MAX_BYTES
    return kind


KINDS: dict[KindName, Kind] = {
    "rollout": _Rollout(),
    "samples": _Samples(),
    "frames": _Frames(),
    "continuation": _Continuation(),
    "views": _Views(),
    "posterior": _Posterior(),
    "hidden": _Hidden(),
}

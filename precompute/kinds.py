"""The kinds of recipe: what each takes in, and what the world model makes of it. The one place that tells them apart.

Elsewhere: the fields of a recipe that each kind has (pipeline/recipe.py), pixels (images.py, video.py), the engine
(cosmos.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..pipeline.errors import ConfigError, ImageError
from ..pipeline.latent_spec import latent_frames, video_frames
from ..pipeline.recipe import IMAGE_RULES, VIDEO_RULES, Recipe
from ..pipeline.recipe import Kind as KindName
from ..pipeline.world import WorldModel
from . import images, video
from .world import WorldSource


@dataclass(frozen=True, slots=True)
class Loaded:
    """One input, ready for the world model."""

    pixels: Tensor
    """Float32 in [-1, 1]: (3, height, width) of an image, (3, F, height, width) of a video."""
    note: str = ""
    """What a person should know of it, though it is used; reads on from the number of such inputs."""

    @property
    def first(self) -> Tensor:
        """The picture it begins with, (3, height, width)."""
        return self.pixels if self.pixels.ndim == 3 else self.pixels[:, 0]


class Kind(Protocol):
    """One kind of recipe: its words, its input files, its work."""

    takes: str
    """What one input is."""
    makes: str
    """What comes of several inputs."""
    doing: str
    next_command: str
    """What to type with a finished store, {store} or its folder, {cache}."""
    phase: str
    """The work's name in records and in the ledger."""
    suffixes: frozenset[str]
    max_bytes: int
    """Of an input file."""
    rules: int
    """Version of what makes pixels of a file."""
    batch: tuple[int, int]
    """Inputs made together by default, on a CPU and on a GPU."""

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        """Raise ConfigError where this world model cannot make the recipe's latents."""
        ...

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        """What becomes of one input, for the plan."""
        ...

    def load(self, content: bytes, recipe: Recipe, source: str) -> Loaded:
        """Pixels from the bytes of a file.

        Args:
            source: what to call the file in an error.
        Raises:
            ImageError: it cannot be used.
        """
        ...

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        """Standardised float32 latents (B, C, T, H, W) of the pixels of several inputs and their keys."""
        ...


class _Rollout(Kind):
    takes, makes, doing, phase = "image", "rollouts", "rolling out", "rollout"
    next_command = "theworld train --cache {cache}"
    suffixes, max_bytes, rules = images.SUFFIXES, images.MAX_BYTES, IMAGE_RULES
    batch = (8, 16)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        steps, stride, window = recipe.rollout_steps, recipe.stride, world.card.window
        frames = 1 + steps * stride
        if frames > window:
            raise ConfigError(
                f"--steps {steps} with --stride {stride} is a clip of {frames} latent frames; {world.name} "
                f"was trained on {window}, and beyond that its predictions mean nothing. "
                f"Choose --steps of at most {(window - 1) // stride}"
            )

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        horizon_s = (_clip_frames(recipe) - 1) / world.card.fps
        text = "no text" if recipe.prompt is None else f"prompt {recipe.prompt!r}, guidance {recipe.guidance:g}"
        return f"{recipe.rollout_steps} steps = {horizon_s:.1f} s ahead, {recipe.denoise_steps} denoise steps, {text}"

    def load(self, content: bytes, recipe: Recipe, source: str) -> Loaded:
        if video.container_of(content) is not None:
            raise ImageError("format", f"{source} is a video; images are rolled out, and --kind frames takes videos")
        return Loaded(images.load_image(content, recipe.height, recipe.width, recipe.fit, source=source))

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        return world.rollout(batch, keys, recipe)


class _Frames(Kind):
    takes, makes, doing, phase = "video", "encodings", "encoding", "encode"
    next_command = "theworld train {store} --questions QUESTIONS.jsonl"
    suffixes, max_bytes, rules = video.SUFFIXES, video.MAX_BYTES, VIDEO_RULES
    batch = (4, 4)

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        del world  # any length will do: its VAE is causal, and nothing is predicted
        frames = _clip_frames(recipe)
        if frames * recipe.height * recipe.width > video.MAX_CLIP_PIXELS:
            raise ConfigError(
                f"{frames} video frames of {recipe.height}x{recipe.width} are more than one clip may hold in memory "
                f"({video.MAX_CLIP_PIXELS:,} pixels). Choose fewer --steps, a smaller --stride or a smaller --size"
            )

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        del world
        kept = f", every {recipe.stride}. of the encoding" if recipe.stride > 1 else ""
        return (
            f"the first {_clip_frames(recipe)} frames of each video = "
            f"{latent_frames(recipe.rollout_steps)} latent frames{kept}"
        )

    def load(self, content: bytes, recipe: Recipe, source: str) -> Loaded:
        size = recipe.height, recipe.width
        clip, turned = video.load_video(content, _clip_frames(recipe), *size, recipe.fit, source=source)
        return Loaded(clip, "to be shown turned: their frames were taken as they are stored" if turned else "")

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        del keys  # nothing is drawn
        return world.encode_video(batch)[:, :, :: recipe.stride].contiguous()


def _clip_frames(recipe: Recipe) -> int:
    return video_frames(recipe.rollout_steps, stride=recipe.stride)


KINDS: dict[KindName, Kind] = {"rollout": _Rollout(), "frames": _Frames()}

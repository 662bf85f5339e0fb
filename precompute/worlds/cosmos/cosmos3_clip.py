"""The facts of a clip that Cosmos 3 takes beside its pixels. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ....pipeline.errors import ConfigError
from ....pipeline.latents.recipe import Recipe
from ....pipeline.latents.spec import video_frames

MAX_PROMPT_TOKENS = 512
"""Of a prompt with all that is written around it. The stock pipeline has no limit; keys and values of so many take
59 MB of Edge, 75 MB of Nano, in bfloat16."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The facts of a clip that the prompt states: its length, rate and size."""

    height: int
    """Pixels."""
    width: int
    frames: int
    """Of video."""
    fps: float

    @classmethod
    def of(cls, recipe: Recipe, *, temporal_stride: int) -> Clip:
        """The clip of one joint diffusion of a recipe: a chunk's, or that of one of its draws."""
        steps = recipe.chunk_frames - 1 if recipe.chunk_frames else recipe.steps_of_a_draw * recipe.stride
        frames = video_frames(steps, temporal_stride=temporal_stride)
        return cls(recipe.height, recipe.width, frames, fps_of(recipe))


def fps_of(recipe: Recipe) -> float:
    """Video frames a second of a recipe's clips.

    Raises:
        ConfigError: it states none, and the positions of all frames depend on it.
    """
    if recipe.fps is None:
        raise ConfigError("a recipe for Cosmos 3 states the frames per second of its clips; `precompute` writes them")
    return recipe.fps

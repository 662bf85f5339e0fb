"""Refuse clips longer than those a world model was trained on, or other than its autoencoder takes."""

from __future__ import annotations

from ...pipeline.errors import ConfigError
from ...pipeline.latents.recipe import Recipe
from ..media import video
from ..worlds.family import most_frames, read_configs, settings_of
from ..worlds.source import WorldSource


def check_window(recipe: Recipe, world: WorldSource, *, steps: int) -> None:
    """Refuse clips longer than those the world model was trained on, unless they are made in chunks."""
    stride, window, context = recipe.stride, world.card.window, recipe.chunk_context
    temporal = world.latent_spec().temporal_stride
    frames = 1 + steps * stride
    if (most := most_frames(world.family, read_configs(world.folder))) is not None:
        _check_kept_state(recipe, world, frames, most)
        return
    if context:
        world.require("decode", f"--chunk-context {context} begins each chunk with decoded frames")
    if context and ((context - 1) % temporal or (context - 1) // temporal + 2 > recipe.chunk_frames):
        raise ConfigError(
            f"--chunk-context {context}: a chunk begins with 1 + a multiple of {temporal} video frames and has "
            f"{recipe.chunk_frames} latent frames in all. Choose 1 or {1 + temporal}"
        )
    if max(frames if not context else 0, recipe.chunk_frames) > window:
        settings = settings_of(world.family)
        last = 1 if settings is not None and settings.most_seen == 1 else 1 + temporal
        chunked = world.can("decode") and "chunk_context" not in recipe.traits.fields_without_meaning
        in_chunks = (
            f", or roll out chunk by chunk: --chunk-context {last} begins each with the last "
            f"{'frame' if last == 1 else f'{last} frames'} of the one before"
        )
        raise ConfigError(
            f"--steps {steps} with --stride {stride} is a clip of {frames} latent frames; {world.name} "
            f"was trained on {window}, and beyond that its predictions mean nothing. "
            f"Choose --steps of at most {(window - 1) // stride}{in_chunks if chunked else ''}"
        )


def _check_kept_state(recipe: Recipe, world: WorldSource, frames: int, most: int) -> None:
    """The same for a world model that keeps a state, so that a clip may be longer than its window."""
    if recipe.chunk_context:
        raise ConfigError(
            f"--chunk-context {recipe.chunk_context}: {world.name} goes on from the state that it keeps, and decodes "
            "nothing on the way. Leave it out"
        )
    if frames > most:
        raise ConfigError(
            f"this clip has {frames} latent frames (--steps, --stride), and {world.name} has positions for {most}. "
            f"Choose --steps of at most {(most - 1) // recipe.stride}"
        )


def check_clip(recipe: Recipe, frames: int) -> None:
    if frames * recipe.height * recipe.width > video.MAX_CLIP_PIXELS:
        raise ConfigError(
            f"{frames} video frames of {recipe.height}x{recipe.width} are more than one clip may hold in memory "
            f"({video.MAX_CLIP_PIXELS:,} pixels). Choose fewer --steps, a smaller --stride or a smaller --size"
        )

"""The recipe that the settings of a job amount to, for a given world model."""

from __future__ import annotations

from ...pipeline.errors import ConfigError
from ...pipeline.latents.kinds import KINDS as TRAITS
from ...pipeline.latents.recipe import Recipe, parse_recipe, parse_size
from ..rollout.kinds import KINDS
from ..worlds.source import WorldSource
from .config import PrecomputeConfig


def make_recipe(config: PrecomputeConfig, world: WorldSource) -> Recipe:
    """The recipe of a job: its settings, the world model's identity, and the card's word where nothing was said.

    Raises:
        RecipeError: a value is out of range or contradicts another.
        ConfigError: the world model cannot make such latents.
    """
    card, kind, traits = world.card, KINDS[config.kind], TRAITS[config.kind]
    draws = (config.draws or 4) if traits.has_draws else 1
    steps = traits.default_steps if config.steps is None else config.steps
    beyond = 1 + steps * config.stride > card.window
    of_some_kinds = {
        "stride": config.stride,
        "solver": config.solver,
        "draws": draws,
        "prompts": "recipe" if config.prompt_field is None else "sample",
        "observed_frames": config.observed_frames,
        "clip_fps": _clip_fps(config, world),
        "views": config.views,
        # within the window nothing is chunked, and equal latents have equal ids
        "chunk_context": config.chunk_context if beyond else 0,
        "chunk_frames": card.window if config.chunk_context and beyond else 0,
        "denoise_steps": card.denoise_steps if config.denoise_steps is None else config.denoise_steps,
        "guidance": config.guidance,
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": config.seed,
        "compute_dtype": config.compute_dtype or card.compute_dtype,
    }
    height, width = parse_size(config.size) if config.size else (card.height, card.width)
    recipe = parse_recipe(
        {
            "kind": config.kind,
            "world": world.identity,
            "height": height,
            "width": width,
            "fit": config.fit,
            "image_rules": kind.rules,
            "rollout_steps": steps * draws,
            "dtype": config.dtype,
            "engine": world.family.engine,
            **{name: value for name, value in of_some_kinds.items() if name not in traits.fields_without_meaning},
        },
        where="these settings are not possible" + (f" (--size {config.size}: height x width)" if config.size else ""),
    )
    kind.check(recipe, world)
    if height % (stride := world.latent_spec().spatial_stride) or width % stride:
        raise ConfigError(
            f"a latent of {world.name} stands for {stride}x{stride} pixels; --size {height}x{width} is no multiple"
        )
    world.family.check(recipe)
    return recipe


def _clip_fps(config: PrecomputeConfig, world: WorldSource) -> float | None:
    """The number itself: two world models of one rate, and one whose card is corrected, then mean what they say."""
    if config.clip_fps in (None, "card"):
        return float(world.card.fps)
    return None if config.clip_fps == "stored" else float(config.clip_fps)

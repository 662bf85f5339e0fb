"""The recipe that the settings of a job amount to, for a given world model."""

from __future__ import annotations

from ....pipeline.errors import ConfigError
from ....pipeline.latents.kinds import KINDS as TRAITS
from ....pipeline.latents.recipe import Recipe, Solver, parse_recipe, parse_size
from ....pipeline.latents.spec import video_frames
from ...rollout.kinds import KINDS
from ...worlds.family import read_configs, settings_of, size_multiple
from ...worlds.source import WorldSource
from ..config import HIDDEN_WIDTH, PrecomputeConfig


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
        "solver": _solver(config, world),
        "fps": _fps(config, world),
        "draws": draws,
        "prompts": "recipe" if config.prompt_field is None else "sample",
        "observed_frames": config.observed_frames,
        "clip_fps": _clip_fps(config, world),
        "views": config.views,
        # within the window nothing is chunked, and equal latents have equal ids
        "chunk_context": config.chunk_context if beyond else 0,
        "chunk_frames": card.window if config.chunk_context and beyond else 0,
        "denoise_steps": _denoise_steps(config, world),
        "guidance": config.guidance,
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": config.seed,
        "compute_dtype": config.compute_dtype or card.compute_dtype,
        "hidden_sigma": config.hidden_sigma,
    }
    if traits.is_hidden:
        of_some_kinds |= _hidden(config, world)
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
    _check_size(recipe, world)
    _check_settings(recipe, world)
    world.family.check(recipe)
    return recipe


def _hidden(config: PrecomputeConfig, world: WorldSource) -> dict[str, int]:
    """Block and width of hidden states: as set, or the world model's defaults."""
    blocks = world.blocks()
    block = blocks.usual if config.hidden_block is None else config.hidden_block
    width = min(HIDDEN_WIDTH, blocks.width) if config.hidden_width is None else config.hidden_width
    return {"hidden_block": block, "hidden_width": width}


def _solver(config: PrecomputeConfig, world: WorldSource) -> Solver:
    settings, default = settings_of(world.family), Recipe.model_fields["solver"].default
    if settings is None:
        return config.solver or default
    if config.solver is not None and config.solver not in settings.solvers:
        has = "the scheduler in its folder decides" if settings.noise else "it denoises nothing"
        has = f"it has {', '.join(settings.solvers)}" if settings.solvers else has
        raise ConfigError(f"--solver {config.solver} means nothing for {world.family.title}: {has}. Leave it out")
    return config.solver or (settings.solvers[0] if settings.solvers else default)


def _fps(config: PrecomputeConfig, world: WorldSource) -> float | None:
    settings = settings_of(world.family)
    if settings is not None and config.fps is not None and settings.fps == "refused":
        raise ConfigError(
            f"--fps {config.fps:g} has no meaning for {world.family.title}, which knows frames and no seconds. "
            "Leave it out (--clip-fps says how often videos are sampled)"
        )
    return float(world.card.fps) if settings is not None and settings.fps == "card" and not config.fps else config.fps


def _denoise_steps(config: PrecomputeConfig, world: WorldSource) -> int:
    settings = settings_of(world.family)
    if settings is not None and not settings.noise:
        if config.denoise_steps is not None:
            raise ConfigError(
                f"--denoise-steps {config.denoise_steps} means nothing for {world.family.title}, which predicts in one "
                "forward and has no noise to take away. Leave it out"
            )
        return Recipe.model_fields["denoise_steps"].default  # says nothing then
    return world.card.denoise_steps if config.denoise_steps is None else config.denoise_steps


def _check_size(recipe: Recipe, world: WorldSource) -> None:
    """Refuse sizes that the world model cannot take, and say the nearest that it can."""
    height, width = recipe.height, recipe.width
    settings, card = settings_of(world.family), (world.card.height, world.card.width)
    if settings is not None and settings.size == "card" and (height, width) != card:
        raise ConfigError(
            f"{world.name} takes pictures of {card[0]}x{card[1]} pixels only, and not of --size {height}x{width}. "
            "Leave --size out: inputs are fitted to it (--fit)"
        )
    multiple = size_multiple(world.family, read_configs(world.folder))
    if height % multiple or width % multiple:
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in (height, width))
        raise ConfigError(
            f"{world.name} takes sizes in steps of {multiple}x{multiple} pixels; --size {height}x{width} is no "
            f"multiple. Choose --size {near}"
        )


def _check_settings(recipe: Recipe, world: WorldSource) -> None:
    """Refuse guidance and draws where there are none, and more observed frames than the world model can be shown."""
    settings = settings_of(world.family)
    if settings is None:
        return
    if settings.guidance is None and recipe.guidance > 1.0:
        raise ConfigError(f"--guidance {recipe.guidance:g}: {world.family.title} has no guidance. Leave it out")
    drawn = "--kind samples" if recipe.traits.has_draws else f"--seed {recipe.seed}" if recipe.seed else None
    if not settings.noise and drawn:
        raise ConfigError(
            f"{drawn}: {world.family.title} draws no noise: an image has one future, whatever the seed. Leave it out"
        )
    if settings.most_seen is None:
        return
    most = video_frames(settings.most_seen - 1, temporal_stride=world.latent_spec().temporal_stride)
    for flag, frames in (
        ("--observed-frames", recipe.traits.first_predicted_frame(recipe) or 1),
        ("--chunk-context", recipe.chunk_context),
    ):
        if frames > most:
            raise ConfigError(
                f"{flag} {frames}: {world.family.title} can be shown {most} frame{'s' * (most > 1)} at the most. "
                f"Choose {flag} {most}"
            )


def _clip_fps(config: PrecomputeConfig, world: WorldSource) -> float | None:
    """The number itself: two world models of one rate, and one whose card is corrected, then mean what they say."""
    if config.clip_fps in (None, "card"):
        return float(world.card.fps)
    return None if config.clip_fps == "stored" else float(config.clip_fps)

"""Warnings where a recipe asks a world model for something far from its training clips."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...pipeline.latents.recipe import Recipe
from .family import HasSpread, HasTraining, KeepsState, Training, settings_of
from .source import WorldSource

FAR = 2.0
"""So many times more or fewer pixels, or so many times fewer frames, are far."""
MOST_SPREAD_LOST = 0.15
"""Of the standard deviation, lost or added by the solver; more is warned of."""
_GOOD = 0.1
"""Of the same, at the settings that a warning names."""


def far_from_training(world: WorldSource, recipe: Recipe) -> list[str]:
    """What of a recipe is far from what its world model was trained on, each with the nearest good setting.

    Of kinds that predict nothing, only the size is looked at.
    """
    distances = [_size(world, recipe)]
    settings = settings_of(world.family)
    if recipe.traits.predicts and recipe.rollout_steps and (settings is None or settings.noise):
        distances.append(_length(world, recipe))
        if not recipe.traits.is_hidden:  # which are not denoised
            distances.append(_denoise_steps(world, recipe))
    return [warning for warning in distances if warning]


def _training(world: WorldSource) -> Training:
    family, card = world.family, world.card
    is_own = (card.height, card.width, card.window) != (family.card.height, family.card.width, family.card.window)
    if isinstance(family, HasTraining) and not is_own:
        return family.training
    return Training(sizes=((card.height, card.width),))


def _size(world: WorldSource, recipe: Recipe) -> str:
    sizes = _training(world).sizes or ((world.card.height, world.card.width),)
    height, width = min(sizes, key=lambda size: _distance(size, (recipe.height, recipe.width)))
    pixels, trained = recipe.height * recipe.width, height * width
    if max(pixels / trained, trained / pixels) <= FAR:
        return ""
    return (
        f"{recipe.height}x{recipe.width} is far from the sizes that {world.name} was trained on, so its predictions "
        f"may be poor. The nearest of them: --size {height}x{width}. Look at some rollouts before you trust them"
    )


def _distance(size: tuple[int, int], other: tuple[int, int]) -> float:
    """Of two sizes: their shapes count twice as much as their pixels."""
    height, width = (math.log(a / b) for a, b in zip(size, other, strict=True))
    return abs(height + width) + 2 * abs(height - width)


def _length(world: WorldSource, recipe: Recipe) -> str:
    if isinstance(world.family, KeepsState) or recipe.chunk_context:
        return ""
    steps = recipe.rollout_steps // (recipe.draws if recipe.traits.has_draws else 1)
    frames = 1 + steps * recipe.stride
    shortest = min(_training(world).shortest or world.card.window, world.card.window)
    if frames * FAR >= shortest:
        return ""
    stride = (shortest - 1) // steps
    sparse = f", or --stride {stride} with these steps" if stride > recipe.stride else ""
    return (
        f"a clip of {frames} latent frames is far shorter than the {shortest} that {world.name} was trained on, so it "
        f"may move too little or too fast. The nearest trained length: --steps {shortest - 1}{sparse}"
    )


def _denoise_steps(world: WorldSource, recipe: Recipe) -> str:
    if recipe.traits.has_draws and recipe.solver == "euler" and recipe.denoise_steps <= 2 and world.knows_scenes_alone:
        return (
            f"{recipe.denoise_steps} denoise steps are one evaluation of the network, which shows the mean of what may "
            "happen, so draws differ little. Choose --denoise-steps 10 for draws"
        )
    if recipe.denoise_steps < world.card.denoise_steps / FAR:
        return (
            f"{recipe.denoise_steps} denoise steps are few for {world.name}, whose own number is "
            f"{world.card.denoise_steps}: rollouts blur or fade. Choose --denoise-steps {world.card.denoise_steps}"
        )
    return "".join(_spread(world, recipe))


def _spread(world: WorldSource, recipe: Recipe) -> Iterator[str]:
    """Of solvers whose loss is known; not of the worldlet, whose outcomes were measured."""
    settings = settings_of(world.family)
    if not isinstance(world.family, HasSpread) or settings is None or world.knows_scenes_alone:
        return
    spread_kept = world.family.spread_kept
    kept = spread_kept(recipe.solver, recipe.denoise_steps)
    if abs(kept - 1) <= MOST_SPREAD_LOST:
        return
    good = {
        solver: next(n for n in range(recipe.denoise_steps, 200) if abs(spread_kept(solver, n) - 1) <= _GOOD)
        for solver in settings.solvers
    }
    choices = " or ".join(f"--solver {solver} --denoise-steps {steps}" for solver, steps in good.items())
    effect = "fade" if kept < 1 else "overshoot"
    yield (
        f"{recipe.denoise_steps} denoise steps of solver {recipe.solver} keep about {kept:.0%} of the latents' spread, "
        f"so rollouts {effect}. Better: {choices}"
    )

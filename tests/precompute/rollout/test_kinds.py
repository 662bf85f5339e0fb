"""What each kind refuses before any work is done."""

from __future__ import annotations

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.source import resolve_world


@pytest.mark.parametrize("kind", ["rollout", "continuation", "samples"])
def test_a_clip_beyond_the_window_is_refused_with_the_most_that_fits(kind: str) -> None:
    world = resolve_world(None)
    window = world.card.window

    def recipe(steps: int) -> Recipe:
        return Recipe(kind=kind, world=world.identity, height=64, width=64, rollout_steps=steps)  # pyright: ignore

    KINDS[kind].check(recipe(window - 1), world)
    with pytest.raises(ConfigError, match=f"trained on {window}.*--steps of at most {window - 1}"):
        KINDS[kind].check(recipe(window), world)

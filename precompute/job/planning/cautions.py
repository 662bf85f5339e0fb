"""Warnings of a plan: rollouts that can be made, but would mean little."""

from __future__ import annotations

from collections.abc import Sequence

from ....pipeline.errors import ImageError
from ....pipeline.latents.recipe import Recipe
from ...inputs.listing.samples import Sample
from ...worlds.scene_look import MEANS_NOTHING, may_be_scene
from ...worlds.source import WorldSource
from ...worlds.training_range import far_from_training

LOOKED_AT = 8
"""Inputs that are looked at to see whether they are scenes."""


def cautions(world: WorldSource, recipe: Recipe, todo: Sequence[Sample]) -> list[str]:
    """Warnings of a plan whose latents would mean little, each with what to do instead."""
    cautions = far_from_training(world, recipe)
    if world.knows_scenes_alone and recipe.traits.predicts and recipe.traits.takes == "image":
        cautions += _photographs(todo)
    return cautions


def _photographs(todo: Sequence[Sample]) -> list[str]:
    heads: list[bytes] = []
    for sample in todo[:: max(1, len(todo) // LOOKED_AT)][:LOOKED_AT]:
        try:
            heads.append(sample.location.read(2**26)[:24])
        except ImageError:  # the run says so
            continue
    others = sum(not may_be_scene(head) for head in heads)
    if not others:
        return []
    some = "these images are" if others == len(heads) else f"{others} of {len(heads)} images that were looked at are"
    return [MEANS_NOTHING.format(these=f"{some} none of them")]

"""Which layout the shards of a store have."""

from ...latents.recipe import Recipe
from ...latents.spec import LatentSpec
from . import StoreFormat, StoreVersion
from .base import ShardLayout
from .webdataset import WebDatasetLayout
from .zarr import ZarrLayout
from .zarr_1 import ZarrFramesLayout


def layout_of(
    recipe: Recipe, spec: LatentSpec, shard_size: int, format: StoreFormat, version: StoreVersion = 2
) -> ShardLayout:
    """How the shards of a recipe's store are laid out."""
    shape = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    if format == "zarr":
        zarr_layout = ZarrLayout if version > 1 else ZarrFramesLayout
        return zarr_layout(sample_shape=shape, dtype=recipe.dtype, shard_size=shard_size, version=version)
    return WebDatasetLayout(
        sample_shape=shape, dtype=recipe.dtype, shard_size=shard_size, version=version, recipe_id=recipe.id
    )

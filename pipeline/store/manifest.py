"""`theworld.json`: what every latent of a store means. Published once; all else of its layout follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..errors import DamagedShardError, LatentShapeError, RecipeError, StoreError, StoreNotFoundError
from ..files.places.place import Place
from ..files.sealed import unseal
from ..latents.recipe import Recipe, parse_recipe
from ..latents.spec import LatentSpec
from ..messages import list_problems
from .find import MANIFEST, MANIFEST_LIMIT_BYTES
from .formats import StoreFormat, StoreVersion
from .records import FORMAT, Sha256, unreadable

MAX_SHARD_SIZE = 65_536
_MAX_SAMPLE_BYTES = 2**32

ShardSize = Annotated[int, Field(ge=1, le=MAX_SHARD_SIZE)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class StatedSpec(BaseModel):
    """The latent space, as `theworld.json` states it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    channels: Annotated[int, Field(ge=1, le=4096)]
    spatial_stride: Annotated[int, Field(ge=1, le=4096)]
    temporal_stride: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[_Finite, ...]
    std: tuple[Annotated[_Finite, Field(gt=0)], ...]


class Manifest(BaseModel):
    """`theworld.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: StoreVersion = FORMAT
    layout: StoreFormat = "zarr"
    recipe_id: Sha256
    recipe: dict[str, JsonValue]
    spec: StatedSpec
    shard_size: ShardSize


def read_manifest(place: Place) -> Manifest:
    """What a store is.

    Raises:
        DamagedShardError: it is not what was written.
        StoreError: it is of a newer format, or cannot be read now.
        StoreNotFoundError: it is a run's.
    """
    file = place.location(MANIFEST)
    try:
        text = unseal(place.read(MANIFEST, MANIFEST_LIMIT_BYTES))
        version: object = cast(dict[str, object], json.loads(text)).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise StoreError(
                f"{place} was written by a newer theworld (format {version}, this one reads {FORMAT}). Upgrade theworld"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise _damaged_manifest(file, list_problems(error)) from error
    except (ValueError, AttributeError, RecursionError) as error:
        if "adapter_config.json" in place.names(""):  # a run's theworld.json says other things
            raise StoreNotFoundError(
                f"{place} is a run that `theworld train` wrote, not a store. `theworld cache list FOLDER` finds stores"
            ) from error
        raise _damaged_manifest(file, str(error)) from error
    except OSError as error:
        store_error = unreadable(file, None, error)
        is_damaged = isinstance(store_error, DamagedShardError)
        raise (_damaged_manifest(file, str(error)) if is_damaged else store_error) from error


def meaning_of(manifest: Manifest, place: Place) -> tuple[Recipe, LatentSpec]:
    """The recipe and the latent space; raises DamagedShardError where they make no sense."""
    file = place.location(MANIFEST)
    try:
        recipe = parse_recipe(manifest.recipe, where=str(file))
    except RecipeError as error:
        raise _damaged_manifest(file, f"{error} (or another version of theworld wrote it)") from error
    if recipe.id != manifest.recipe_id:
        raise _damaged_manifest(file, f"it states recipe {manifest.recipe_id[:12]}, its fields are {recipe.id[:12]}")
    try:
        spec = LatentSpec(**manifest.spec.model_dump())
    except LatentShapeError as error:
        raise _damaged_manifest(file, str(error)) from error
    check_sample_size(recipe, spec, where=str(file))
    return recipe, spec


def _damaged_manifest(file: Path | str, problem: str) -> DamagedShardError:
    return DamagedShardError(
        f"{file}: {problem}. It says what every latent here means, so nothing can be read without it. Restore this one "
        "file from a copy of the store, or move the store away and run `theworld precompute` again"
    )


def check_sample_size(recipe: Recipe, spec: LatentSpec, *, where: str) -> None:
    """Raise StoreError where no latent of that shape can be stored."""
    channels, frames, height, width = spec.sample_shape(recipe.height, recipe.width, recipe.rollout_steps)
    if not 0 < channels * frames * height * width * 4 <= _MAX_SAMPLE_BYTES:
        raise StoreError(f"{where} asks for latents of shape {(channels, frames, height, width)}: none can be stored")

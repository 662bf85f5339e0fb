"""The settings of one precompute job, and the recipe they amount to for a given world model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...pipeline.errors import ConfigError
from ...pipeline.files.local import LocalPath
from ...pipeline.latents.kinds import KINDS as TRAITS
from ...pipeline.latents.kinds import KindName, Views
from ...pipeline.latents.recipe import Fit, Recipe, Solver, StoredDtype, check_meaning, parse_recipe
from ...pipeline.machine import DeviceName
from ...pipeline.store.folder import StoreFormat
from ..rollout.kinds import KINDS
from ..worlds.prompts import Guardrail
from ..worlds.source import WorldSource


class PrecomputeConfig(BaseModel):
    """What `theworld precompute` was asked for. None means: what the world model's card says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # what is rolled out or encoded, and where it goes
    images: LocalPath | None = None
    """Where inputs are, images or for kind frames videos: docs/inputs.md. None makes scenes of the worldlet in the
    cache."""
    column: str | None = None
    """Of a list or table: which one names or holds the inputs."""
    prompt_field: str | None = None
    """Of a list or table: which one holds each input's prompt."""
    scenes: Annotated[int, Field(ge=3)] = 900
    """How many scenes to make where there are no images; every third is a test scene."""
    cache: LocalPath = Path("latents")
    limit: Annotated[int, Field(ge=1)] | None = None

    # these decide the latents: they enter the recipe
    kind: KindName = "rollout"
    world: str | None = None
    steps: Annotated[int | None, Field(ge=0)] = None
    """Of each draw, for kind samples; None is 8, and what else is whole for kinds views and posterior."""
    stride: Annotated[int, Field(ge=1)] = 1
    size: str | None = None
    """HEIGHTxWIDTH in pixels."""
    fit: Fit = "cover"
    denoise_steps: int | None = None
    solver: Solver = "euler"
    guidance: float = 1.0
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int = 0
    draws: Annotated[int | None, Field(ge=1)] = None
    """None is 4 for kind samples."""
    observed_frames: Annotated[int, Field(ge=1)] = 5
    views: Views = "pyramid"
    chunk_context: Annotated[int, Field(ge=0)] = 0
    """Above 0, clips beyond the world model's window are made in chunks of its length."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    dtype: StoredDtype = "float16"

    # these do not
    guardrail: Guardrail | None = None
    device: DeviceName = "auto"
    workers: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    format: StoreFormat | None = None
    """Of the store; None is what it has, zarr for a new one."""
    shard_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    in_process: bool = False
    address: str | None = None
    """HOST:PORT of a Ray cluster to join; None starts Ray on this machine alone."""
    events: LocalPath | None = None
    """File that gets one JSON line an event."""
    dry_run: bool = False
    retry_failed: bool = False
    rehash: bool = False
    """Read every input again, whatever the index of the cache knows."""
    max_bad: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _size_is_readable(self) -> PrecomputeConfig:
        if self.size is not None and not re.fullmatch(r"\d{1,5}x\d{1,5}", self.size):
            raise ValueError(f"size must be HEIGHTxWIDTH in pixels, such as 224x224; got {self.size!r}")
        return self

    @model_validator(mode="after")
    def _runs_in_one_place(self) -> PrecomputeConfig:
        if self.in_process and self.address is not None:
            raise ValueError("in_process works here and address elsewhere; choose one")
        if self.in_process and (self.workers or 1) > 1:
            raise ValueError(f"in_process is one worker, and workers says {self.workers}; choose one")
        return self

    @model_validator(mode="after")
    def _scenes_are_made(self) -> PrecomputeConfig:
        if self.images is not None and "scenes" in self.model_fields_set:
            raise ValueError("scenes are made where no images are given, and these are; leave one of them out")
        return self

    @model_validator(mode="after")
    def _kind_has_all_that_is_said(self) -> PrecomputeConfig:
        prompts = {"prompts": None if self.prompt_field is None else "sample"}
        check_meaning(self.kind, self.model_dump() | prompts)
        return self


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
    height, width = map(int, config.size.split("x")) if config.size else (card.height, card.width)
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
        where="these settings make no recipe",
    )
    kind.check(recipe, world)
    if height % (stride := world.latent_spec().spatial_stride) or width % stride:
        raise ConfigError(
            f"a latent of {world.name} stands for {stride}x{stride} pixels; --size {height}x{width} is no multiple"
        )
    world.family.check(recipe)
    return recipe

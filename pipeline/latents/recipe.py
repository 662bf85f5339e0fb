"""The recipe: everything that decides a latent's value, and its name, the recipe id.

Every field here changes the latent. What does not (workers, batch size, device, paths, library versions) lives in
the job's config and is recorded beside each shard, never hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, RecipeError
from ..messages import list_problems
from .kinds import KINDS, Kind, KindName, Views

Fit = Literal["cover", "pad", "stretch"]
Solver = Literal["euler", "2ab"]
StoredDtype = Literal["float16", "bfloat16", "float32"]

SIZE_MULTIPLE = 16
"""Pixels that every height and width is a multiple of; some world models take fewer."""
ENGINE_VERSION = 1
"""Version of the denoise loop in precompute/worlds/cosmos/predict2.py; bump it when its values change."""
IMAGE_RULES = 2
"""Version of the decoding in pipeline/files/images/decode.py and the fitting in precompute/media/images.py; bump it
when pixels change."""
VIDEO_RULES = 2
"""The same for precompute/media/video*.py; recipes of kind frames hold it, in the field `image_rules`. Pictures at
moments of videos follow them too, under the number of the image rules: raise both."""
VIEW_RULES = 2
"""The same for precompute/media/views.py; recipes of kind views hold it, in the field `image_rules`."""

_SINCE_SCHEMA: dict[str, int] = {
    "draws": 2,
    "observed_frames": 2,
    "views": 2,
    "chunk_frames": 2,
    "chunk_context": 2,
    "prompts": 2,
    "clip_fps": 2,
    "hidden_block": 3,
    "hidden_sigma": 3,
    "hidden_width": 3,
    "hidden_projection": 3,
}
"""Fields that came after schema 1. They enter the id only when they differ from their default, so that a store
written before they existed keeps its id."""


class Recipe(BaseModel):
    """Everything that decides a latent, besides its key: equal recipes and equal keys give equal latents."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    kind: KindName = "rollout"
    world: Annotated[str, Field(min_length=1)]
    """Which weights: `hub:ORG/NAME@<40 hex commit>`, or `sha256:<64 hex>` of a folder's weights and configs."""
    height: Annotated[int, Field(ge=16, le=4096, multiple_of=SIZE_MULTIPLE)]
    """Pixels."""
    width: Annotated[int, Field(ge=16, le=4096, multiple_of=SIZE_MULTIPLE)]
    fit: Fit = "cover"
    """How a picture of another shape meets height x width: cover crops the centre, pad adds grey, stretch distorts."""
    image_rules: Annotated[int, Field(ge=1)] = 1
    """Version of the rules that made pixels of files: precompute states that of its kind. A recipe that states none is
    of the first, so that ids never change."""
    rollout_steps: Annotated[int, Field(ge=0, le=256)] = 8
    """C, latent frames after the first; T = 1 + C. Of kind samples, those of all draws together."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Keep every stride-th latent frame of a longer clip."""
    denoise_steps: Annotated[int, Field(ge=2, le=1000)] = 10
    """Noise levels N. Euler runs N - 1 forwards, as the stock pipeline without its last, which changes nothing;
    2ab runs N."""
    solver: Solver = "euler"
    """euler: first order, the stock pipeline's. 2ab: second order in two steps with a clean last pass, NVIDIA's own."""
    guidance: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0
    """1.0 is off. Above it the stock formula applies: x0 = cond + g (cond - uncond), or that of the world's family."""
    prompt: str | None = None
    """None is the trained "no text" state: zero embeddings, no text encoder (Wan: the embedding of the empty text)."""
    negative_prompt: str | None = None
    """Text of the unconditional branch; None is "no text" there too. Only with guidance."""
    prompts: Literal["recipe", "sample"] = "recipe"
    """Whose prompt: the recipe's, the same for all, or each sample's own, which is then part of its key."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """None leaves the temporal positions unscaled, as Cosmos-Predict2 was trained (huggingface/diffusers#14768)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    draw: Annotated[int, Field(ge=0)] = 0
    """Which of the possible futures under one seed; the first of them, of kind samples."""
    draws: Annotated[int, Field(ge=1, le=256)] = 1
    """Futures of kind samples, draws `draw` to `draw + draws - 1`; each has rollout_steps / draws of the steps."""
    observed_frames: Annotated[int, Field(ge=1, le=1024)] = 5
    """Video frames that kind continuation is shown: 1 + a multiple of the temporal stride. Cosmos-Predict2 was
    trained with 1 and 5."""
    clip_fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames a second that are taken of a video, each the nearest in time. None takes the frames as they are stored,
    whatever their times."""
    views: Views = "pyramid"
    """pyramid: the whole, then 2 x 2, 3 x 3 … tiles, row by row. zoom: the whole, then the centre, each time 1/sqrt 2
    as wide."""
    chunk_frames: Annotated[int, Field(ge=0, le=256)] = 0
    """Latent frames of one joint diffusion; 0 is the whole clip. Longer clips go on chunk by chunk."""
    chunk_context: Annotated[int, Field(ge=0, le=1024)] = 0
    """Video frames that every further chunk begins with: the last decoded ones, encoded again."""
    hidden_block: Annotated[int, Field(ge=0, le=1000)] = 0
    """Of kind hidden: the block of the network, counted from 1, behind which its tokens are taken. 0 is none."""
    hidden_sigma: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Noise level of the frames to come, in the world model's own scale (Cosmos-Predict2: up to 80; along a flow: up to
    1). None is the first level of its schedule."""
    hidden_width: Annotated[int, Field(ge=0, le=65536)] = 0
    """Channels that a projection leaves of a token; 0 leaves all."""
    hidden_projection: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the projection: an orthonormal matrix that is drawn once and never trained."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the transformer. The VAE encodes in float32 always: it is one frame (hao-ai-lab/FastVideo#1472)."""
    dtype: StoredDtype = "float16"
    """Of the stored latents."""
    engine: Annotated[int, Field(ge=1)] = ENGINE_VERSION

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        check_meaning(self.kind, self.model_dump())
        self.traits.check_steps(self)
        if bool(self.chunk_frames) != bool(self.chunk_context):
            raise ValueError("chunk_frames and chunk_context go together: how long a chunk is, and what it begins with")
        if self.negative_prompt is not None and self.guidance <= 1.0:
            raise ValueError("negative_prompt has no effect without guidance: set guidance above 1.0, or drop it")
        if self.prompts == "sample" and self.prompt is not None:
            raise ValueError("each sample has its own prompt, and the recipe has one for all: leave out one of them")
        if self.guidance > 1.0 and self.prompt is None and self.negative_prompt is None and self.prompts == "recipe":
            raise ValueError(
                "guidance above 1.0 needs a text to steer to or away from; it doubles the cost. Give a prompt or a "
                "negative_prompt, or leave guidance at 1.0"
            )
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text is not None and (not text.strip() or "\0" in text):
                raise ValueError(f"{name} is empty or holds a NUL character; leave it out for no text")
            if text is not None and any("\ud800" <= c <= "\udfff" for c in text):  # JSON holds none, nor could a store
                raise ValueError(f"{name} is not Unicode text: type it, or keep its file, in UTF-8")
        return self

    def canonical(self) -> str:
        """The JSON text that is hashed: sorted keys, no spaces, later fields only where they differ."""
        fields = self.model_dump(mode="json")
        for name in _SINCE_SCHEMA:
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    def meaning(self) -> dict[str, Any]:
        """The fields that decide something in a recipe of this kind, with their values."""
        return self.model_dump(mode="json", exclude=set(self.traits.fields_without_meaning))

    @property
    def traits(self) -> Kind:
        """What tells recipes of this kind from others."""
        return KINDS[self.kind]

    @property
    def steps_of_a_draw(self) -> int:
        """Rollout steps of each future; those of the recipe, but of kind samples."""
        return self.rollout_steps // self.draws

    @property
    def id(self) -> str:
        """Recipe id: 64 hex digits, the SHA-256 of `canonical()`."""
        return hashlib.sha256(b"theworld recipe 1\n" + self.canonical().encode()).hexdigest()


def check_meaning(kind: KindName, values: Mapping[str, object]) -> None:
    """Refuse what decides nothing in a recipe of this kind, rather than ignore it.

    Args:
        values: names and values of fields or settings; None, or a field's default, is nothing said.
    Raises:
        ValueError: names each.
    """
    meaningless = [
        name
        for name in sorted(KINDS[kind].fields_without_meaning & values.keys())
        if values[name] not in (None, Recipe.model_fields[name].default)
    ]
    if meaningless:
        raise ValueError(
            f"{', '.join(meaningless)}: without meaning for kind {kind}; "
            f"leave {'it' if len(meaningless) == 1 else 'them'} out"
        )


def parse_recipe(value: object, *, where: str) -> Recipe:
    """A recipe from plain values, or one message that names each wrong field.

    Raises:
        RecipeError: a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{where}: {list_problems(error)}") from error


def recipe_of_draw(recipe: Recipe, draw: int) -> Recipe:
    """The recipe of one future: that of the `draw`-th after a recipe's own, or of the `draw`-th of kind samples.

    Raises:
        ConfigError: the recipe predicts no future.
    """
    if not recipe.traits.predicts:
        raise ConfigError(f"latents of kind {recipe.kind} hold no predicted future, so there are no draws of it")
    changes: dict[str, object] = {"draw": recipe.draw + draw}
    if recipe.traits.has_draws:
        changes |= {"kind": "rollout", "draws": 1, "rollout_steps": recipe.steps_of_a_draw}
    return recipe.model_copy(update=changes)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, of a text such as `224x288`: the height stands first.

    Raises:
        ConfigError: it is not of this form.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ConfigError(f"size must be HEIGHTxWIDTH in pixels, such as 224x224; got {text!r}")
    height, width = int(match[1]), int(match[2])
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        near = "x".join(str(max(1, round(side / SIZE_MULTIPLE)) * SIZE_MULTIPLE) for side in (height, width))
        raise ConfigError(
            f"height and width should be a multiple of {SIZE_MULTIPLE} pixels, got {text}. The nearest is {near}"
        )
    return height, width


def difference(ours: Recipe, theirs: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields in which two recipes differ: name -> (ours, theirs). Of two kinds, among those that both have."""
    a, b = ours.meaning(), theirs.meaning()
    return {name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]}

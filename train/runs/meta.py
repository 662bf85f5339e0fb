"""What a run folder says about itself: theworld.json. Loads neither torch nor transformers.

Lives here: `RunMeta` and its parts. Elsewhere: the weights beside it (checkpoint.py).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...pipeline.errors import RunError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.messages import list_problems
from ..reader.layouts import LayoutName, PoolName, TokenLayout

META, METRICS = "theworld.json", "metrics.json"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreFacts(_Facts):
    """Which snapshot of which store was read."""

    path: str
    shards: int
    samples: int
    keys_sha256: str
    """Of the sorted keys, one a line: two stores with the same digest hold the same images."""


class ReaderFacts(_Facts):
    """How to build the reader that the weights belong to."""

    latent_shape: tuple[int, int, int]
    hidden_size: int
    layout: LayoutName
    patch: int
    max_world_steps: int
    num_world_steps: int
    """K, the steps it was trained with."""
    frames: tuple[int, ...] | None = None
    """The latent frames it reads of those; None reads all."""
    pool: PoolName = "minmax"
    pool_steps: int = 1
    coarse: int = 2
    queries: int = 32

    def token_layout(self) -> TokenLayout:
        """The layout as the reader takes it."""
        return TokenLayout(
            name=self.layout,
            patch=self.patch,
            pool=self.pool,
            pool_steps=self.pool_steps,
            coarse=self.coarse,
            queries=self.queries,
        )


class LMFacts(_Facts):
    """Which language model the adapters belong to."""

    source: str
    identity: str


class QuestionFacts(_Facts):
    """What was learned from."""

    path: str
    sha256: str
    train: int


class RunMeta(_Facts):
    """Everything a run folder says about itself."""

    format: Literal[1] = 1
    recipe: Recipe
    recipe_id: str
    store: StoreFacts
    lm: LMFacts
    reader: ReaderFacts
    questions: QuestionFacts
    config: dict[str, Any]
    versions: dict[str, str]
    created: str
    """UTC, for people; nothing is decided by it."""


def versions() -> dict[str, str]:
    """What a result depends on without being part of it."""
    return {name: version(name) for name in ("theworld", "torch", "transformers", "peft", "accelerate")}


def read_meta(run: Path) -> RunMeta:
    """What a run folder says about itself.

    Raises:
        RunError: it is no run folder, or theworld.json is not what we write.
    """
    try:
        return RunMeta.model_validate_json((run / META).read_bytes())
    except OSError as error:
        raise RunError(
            f"{run} is not a run folder: {META} cannot be read ({error.strerror}). "
            "Name a folder that `theworld train` wrote, such as runs/1"
        ) from error
    except ValidationError as error:
        raise RunError(
            f"{run / META} does not describe a run: {list_problems(error)}. "
            "It was changed, or written by another version; train again"
        ) from error

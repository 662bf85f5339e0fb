"""theworld.json, which describes a run. Loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipeline.errors import RunError
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_file
from ...pipeline.latents.recipe import Recipe
from ...pipeline.messages import command, list_problems, name_some
from ..config import ShowChoices
from ..reader.layouts import LayoutName, PoolName, TokenLayout

META, METRICS = "theworld.json", "metrics.json"


_Size = Annotated[int, Field(ge=1, le=2**20)]
_Count = Annotated[int, Field(ge=0, le=2**16)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreFacts(_Facts):
    """The store that was read, and its state then."""

    path: str
    shards: int
    samples: int
    keys_sha256: str
    """SHA-256 of the sorted keys, one a line. Stores with the same digest hold the same images."""


class ReaderFacts(_Facts):
    """What is needed to build the reader again and load its weights."""

    latent_shape: tuple[_Size, _Size, _Size]
    hidden_size: _Size
    layout: LayoutName
    patch: _Size
    max_world_steps: _Count
    num_world_steps: _Count
    """K, the rollout steps it was trained with."""
    frames: tuple[_Count, ...] | None = None
    """The latent frames that it reads of those; None reads all."""
    pool: PoolName = "minmax"
    pool_steps: _Size = 1
    coarse: _Size = 2
    queries: _Size = 32

    @classmethod
    def of_layout(cls, layout: TokenLayout, **others: Any) -> Self:
        """Facts of a reader with this layout, which `token_layout` returns, and with other fields by name."""
        fields = asdict(layout)
        return cls(layout=fields.pop("name"), **fields, **others)

    def token_layout(self) -> TokenLayout:
        """The reader's layout."""
        return TokenLayout(
            name=self.layout,
            patch=self.patch,
            pool=self.pool,
            pool_steps=self.pool_steps,
            coarse=self.coarse,
            queries=self.queries,
        )


class LMFacts(_Facts):
    """The language model that the adapters belong to."""

    source: str
    identity: str
    """`Weights.identity`."""
    content: str | None = None
    """`Weights.content`, by which the same model is found elsewhere; None in runs of earlier versions."""


class QuestionFacts(_Facts):
    """The questions that were trained on."""

    path: str
    sha256: str
    train: int
    held_out: int = 0
    """Of those that state no split, so many were kept from it; 0 where the file states its splits."""


class RunMeta(_Facts):
    """The content of theworld.json."""

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
    """UTC time, for information only."""

    @property
    def show_choices(self) -> ShowChoices:
        """Whether and how prompts showed the choices in training.

        Raises:
            RunError: theworld.json names another way than there are.
        """
        name = self.config.get("show_choices", "none")  # runs of earlier versions showed none
        if name not in get_args(ShowChoices):
            names = ", ".join(get_args(ShowChoices))
            raise RunError(f"{META} names show_choices = {name!r}; there are {names}. It was changed; train again")
        return name


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in ("theworld", "torch", "transformers", "peft", "accelerate")}


def runs_in(folder: Path) -> list[Path]:
    """The run folders directly inside a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{META}") if (path.parent / METRICS).is_file())


def _is_of_a_store(error: ValidationError) -> bool:
    """Whether what is wrong with a theworld.json is that it describes a store, which has a file of this name, too."""
    problems = {(problem["type"], problem["loc"]) for problem in error.errors(include_input=False)}
    return {("extra_forbidden", ("layout",)), ("missing", ("reader",))} <= problems


def read_meta(run: Path) -> RunMeta:
    """Read the theworld.json of a run folder.

    Raises:
        RunError: it is not a run folder, or its theworld.json is not valid.
    """
    try:
        return RunMeta.model_validate_json(read_file(run / META, MAX_CONFIG_BYTES, within=run))
    except OSError as error:
        near = runs_in(run) or runs_in(run.parent)
        raise RunError(
            f"{run} is not a run folder: {META} cannot be read ({error.strerror}). "
            f"Name a folder that `theworld train` wrote, such as {name_some(near) or 'runs/1'}"
        ) from error
    except ValueError as error:
        if isinstance(error, ValidationError) and _is_of_a_store(error):
            train = command("train", run, "--questions", "QUESTIONS.jsonl")
            raise RunError(f"{run} is a store of latents, not a run. Train a run on it first: {train}") from error
        why = list_problems(error) if isinstance(error, ValidationError) else str(error)
        raise RunError(
            f"{run / META} does not describe a run: {why}. It was changed, or written by another version; train again"
        ) from error

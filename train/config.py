"""The settings of a training, and the summary of a finished one. Loads neither torch nor transformers."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..pipeline.files.local import LocalPath
from ..pipeline.machine import DeviceName
from ..pipeline.messages import split_names
from .reader.layouts import PATCH, POOL_STEPS, LayoutName, PoolName, TokenLayout

DtypeName = Literal["auto", "float32", "bfloat16"]
AttentionName = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]


def _how(help: str, **extra: Any) -> Any:
    """A field that is a flag, too: what `theworld train --help` says of it."""
    return Field(description=help, json_schema_extra={"panel": "How it runs", **extra})


class TrainConfig(BaseModel):
    """The settings of one training. The defaults suit the worldlet: about a minute on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    store: LocalPath
    questions: LocalPath
    columns: dict[str, str] | None = None
    """Question field -> column, for a table with other column names; or the text `field=column,…`."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """How many questions may be left out for each reason: a wrong row, no latents, too long. Each is reported."""
    lm: str | None = None
    """A folder, a .gguf file or a Hub id; None is the embedded worldlet language model."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """K, the rollout steps to read; None reads all in the store. A list, `[0, 8]` or "0,8", sets `steps_drawn`."""
    steps_drawn: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Each update reads one of these numbers of steps, drawn by (seed, update), so that one reader learns all of them.
    A number named twice is drawn twice as often. `steps` is then the largest."""
    layout: LayoutName = "patch"
    patch: Annotated[int, Field(ge=1)] = PATCH
    """Latent cells per side of a token. 4 keeps every number, needs a quarter of the tokens of 2, learned faster."""
    pool: PoolName = "minmax"
    """How cells or frames that share a token are summarised: see reader/layouts.py."""
    pool_steps: Annotated[int, Field(ge=1)] | None = None
    """Future frames that share their tokens; None is 2 for `pooled`, 4 for `hierarchical`, else 1."""
    coarse: Annotated[int, Field(ge=1)] = 2
    """hierarchical: patches per side that share a token, in the frames between the first and the last."""
    queries: Annotated[int, Field(ge=1)] = 32
    """resampler: world tokens in all."""
    max_world_steps: Annotated[int, Field(ge=0), _how("Most rollout steps that a run can learn to read.")] = 16
    lora_rank: Annotated[int, Field(ge=1)] = 16
    lora_alpha: Annotated[int, Field(ge=1), _how("LoRA scaling: alpha / rank.")] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1), _how("Dropout of the LoRA layers.", default="0")] = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images per update, each with the questions about it."""
    pack: Annotated[int, Field(ge=1), _how("Most questions of one image in a packed row.")] = 8
    """The most questions that share one image's world tokens; more get another row. Changes no question's loss."""
    train_steps: Annotated[int, Field(ge=1)] = 800
    """How many updates to train for."""
    epochs: Annotated[float | None, Field(gt=0), _how("Passes over the questions, instead of --train-steps.")] = None
    """Passes over the questions, instead of `train_steps`."""
    warmup: Annotated[float, Field(ge=0, lt=1), _how("Share of the updates in which the learning rate rises.")] = 0.05
    """Share of the updates in which the learning rate rises; it then falls to zero along a cosine."""
    max_grad_norm: Annotated[float, Field(gt=0), _how("Largest norm of a gradient; clipped above.", default="1")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: DeviceName = "auto"
    dtype: Annotated[DtypeName, _how("auto, float32 or bfloat16, of the frozen language model.")] = "auto"
    """Of the frozen model; trained parameters stay float32."""
    arm: str = "rollout"
    """What the reader sees in place of a rollout, for controlled comparisons: see data/arms.py."""
    futures: LocalPath | None = None
    """A store of the true futures, which the arm `true` reads."""
    labels: Annotated[int | None, Field(ge=1), _how("Train on the first so many scenes only.", default="all")] = None
    """Train on this many scenes, the first in the file; None takes all."""
    out: LocalPath | None = None
    """The run folder to write; None takes the next free number under runs/."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images that one process computes at a time; their gradients are summed. None computes its part of an update at
    once. Changes speed and memory; of an update only the rounding."""
    group_by_length: bool = False
    """Put questions of similar length into the same update, to pad less. This changes the order of learning."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass and do not keep them: far less memory, up to twice the time."""
    attention: AttentionName = "auto"
    """How the language model computes attention; auto takes what was checked for its architecture."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between checkpoints, in addition to those by time."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] | None = 5.0
    """Minutes between checkpoints; None writes none by time."""
    max_bad_steps: Annotated[int, Field(ge=1), _how("Updates in a row without a finite loss until training stops.")] = (
        10
    )
    """Updates in a row without a finite loss or gradient after which the training ends. Each of them is skipped."""
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between evaluations on the split `validation`; the run then keeps the best weights."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """End the training early after this many evaluations in a row without a lower validation loss."""
    report_to: TrackerName = "none"
    """The tracker that metrics are logged to, in addition to the run folder's metrics.json."""

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts evaluations on the validation split: set validate_every, too")
        if self.attention == "flash_attention_2" and self.pack > 1:
            raise ValueError("flash_attention_2 cannot separate packed questions: set pack = 1, or use flex_attention")
        return self

    @model_validator(mode="before")
    @classmethod
    def _parse_steps(cls, settings: dict[str, Any]) -> dict[str, Any]:
        steps = settings.get("steps")
        if isinstance(steps, str) and "," in steps:
            steps = split_names(steps, "steps", example="0,8")
        if isinstance(steps, list | tuple):
            try:
                drawn = sorted(int(part) for part in steps)
            except (TypeError, ValueError) as error:
                raise ValueError(f"steps must be numbers such as 8, or 0,8; got {settings['steps']!r}") from error
            return {**settings, "steps": drawn[-1] if drawn else None, "steps_drawn": drawn or None}
        return settings

    @model_validator(mode="after")
    def _check_steps_drawn(self) -> TrainConfig:
        if self.steps_drawn is not None and self.steps != max(self.steps_drawn, default=None):
            raise ValueError(f"steps_drawn {self.steps_drawn} needs steps {max(self.steps_drawn, default=None)}")
        return self

    def token_layout(self) -> TokenLayout:
        """The layout, with the usual `pool_steps` where none is set."""
        steps = POOL_STEPS.get(self.layout, 1) if self.pool_steps is None else self.pool_steps
        return TokenLayout(
            name=self.layout,
            patch=self.patch,
            pool=self.pool,
            pool_steps=steps,
            coarse=self.coarse,
            queries=self.queries,
        )

    @field_validator("columns", mode="before")
    @classmethod
    def _parse_columns(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in split_names(value, "columns", example="image=picture,answer=label")]
        if wrong := next(
            (name for name, equals, column in pairs if not (equals and name.strip() and column.strip())), None
        ):
            raise ValueError(f"write columns as field=column,field=column; {wrong!r} is not such a pair")
        return {name.strip(): column.strip() for name, _, column in pairs}

    @model_validator(mode="after")
    def _check_one_budget(self) -> TrainConfig:
        if self.epochs is not None and "train_steps" in self.model_fields_set:
            raise ValueError("train_steps and epochs both set how long to train: give one of them")
        return self


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The figures of a finished training."""

    run: Path
    train_steps: int
    seconds: float
    first_loss: float
    last_loss: float
    world_tokens: int
    """Per question."""
    supervised_tokens: int
    trainable: int
    """Parameters."""
    questions: int
    evaluation_split: str = "test"
    """Which split to evaluate: `test`, or what the questions have instead; `train` where there is nothing else."""

    @property
    def next_command(self) -> str:
        """What to type next."""
        split = "" if self.evaluation_split == "test" else f" --split {shlex.quote(self.evaluation_split)}"
        return f"theworld evaluate {shlex.quote(str(self.run))}{split}"

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "run": str(self.run), "next_command": self.next_command}

    def summary(self) -> str:
        """A few lines for the terminal."""
        note = "note: no question has a split of its own for tests, so the next command evaluates training questions"
        return (
            f"{self.run}: {self.train_steps} updates on {self.questions} questions in {self.seconds:.0f} s, "
            f"loss {self.first_loss:.3f} -> {self.last_loss:.3f}\n"
            f"{self.trainable:,} trained parameters, {self.world_tokens} world tokens a question, "
            f"{self.supervised_tokens:,} answer tokens learned\n"
            f"next: {self.next_command}" + f"\n{note}" * (self.evaluation_split == "train")
        )

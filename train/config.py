"""What one training is, and what it leaves behind, as plain values. Loads neither torch nor transformers.

Lives here: `TrainConfig`, `RunSummary`. Elsewhere: training (trainer.py), TOML files and flags (pipeline/config.py).
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..pipeline.machine import DeviceName
from .reader.layouts import PATCH, POOL_STEPS, LayoutName, PoolName, TokenLayout

DtypeName = Literal["auto", "float32", "bfloat16"]
AttentionName = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]


class TrainConfig(BaseModel):
    """What one training is. The defaults suit the worldlet: about a minute on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    store: Path
    questions: Path
    columns: dict[str, str] | None = None
    """Field -> column, for questions in a table whose columns have names of their own; or `field=column,…` as text."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """Rows that may be wrong, questions without latents, and questions that are too long: left out and said."""
    lm: str | None = None
    """A folder, a .gguf file or a Hub id; None is the embedded worldlet LM."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """K, rollout steps to read; None reads all the store has. Several, as `[0, 8]` or "0,8", are `steps_drawn`."""
    steps_drawn: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """One of these is read in each update, drawn by (seed, update), so that one reader knows them all. One named twice
    is drawn twice as often. `steps` is then the largest."""
    layout: LayoutName = "patch"
    patch: Annotated[int, Field(ge=1)] = PATCH
    """Cells per side of a token; 4 keeps every number, needs a quarter of the tokens of 2, and learned faster."""
    pool: PoolName = "minmax"
    """How a layout summarises cells or frames that share a token: see layouts.py."""
    pool_steps: Annotated[int, Field(ge=1)] | None = None
    """Future frames that share their tokens; None is 2 of `pooled`, 4 of `hierarchical`, else 1."""
    coarse: Annotated[int, Field(ge=1)] = 2
    """hierarchical: patches per side that share a token between now and the end."""
    queries: Annotated[int, Field(ge=1)] = 32
    """resampler: world tokens in all."""
    max_world_steps: Annotated[int, Field(ge=0)] = 16
    lora_rank: Annotated[int, Field(ge=1)] = 16
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images per update, each with the questions about it."""
    pack: Annotated[int, Field(ge=1)] = 8
    """The most questions behind one image's world tokens; what is more gets another row. Changes no question's loss."""
    train_steps: Annotated[int, Field(ge=1)] = 800
    """Updates: the budget."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the questions, instead of `train_steps`."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the updates in which the learning rate rises; it then falls to zero along a cosine."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    """Of the frozen model; what is trained stays float32."""
    arm: str = "rollout"
    """What the reader sees in place of a rollout, for controlled comparisons: see arms.py."""
    futures: Path | None = None
    """A store of the true futures, which the arm `true` reads."""
    labels: Annotated[int, Field(ge=1)] | None = None
    """Learn from the first so many scenes alone; None takes all."""
    out: Path | None = None
    """The run folder; None takes the next free number under runs/."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images of one process at a time, gradients summed; None is all of its part of an update. Changes speed and
    memory, and only the rounding of an update."""
    group_by_length: bool = False
    """Questions of similar length come into the same update, so that little is padded: another order of learning."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: far less memory, up to twice the time."""
    attention: AttentionName = "auto"
    """How the language model computes attention; auto is what has been checked for it."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between checkpoints, besides those by the clock."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] | None = 5.0
    """Minutes between checkpoints; None is never by the clock."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 10
    """Updates in a row whose loss or gradient is not finite, and which are refused, until the training ends."""
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Updates between looks at the questions of the split `validation`; the best weights are kept then."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Looks in a row without a better loss until the training ends early."""
    report_to: TrackerName = "none"
    """Who follows the training, besides the run folder's metrics.json."""

    @model_validator(mode="after")
    def _goes_together(self) -> TrainConfig:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts looks at the validation split: set validate_every, too")
        if self.attention == "flash_attention_2" and self.pack > 1:
            raise ValueError("flash_attention_2 cannot keep packed questions apart: set pack = 1, or flex_attention")
        return self

    @model_validator(mode="before")
    @classmethod
    def _several_steps(cls, settings: dict[str, Any]) -> dict[str, Any]:
        steps = settings.get("steps")
        if isinstance(steps, str) and "," in steps:
            steps = [part.strip() for part in steps.split(",")]
        if isinstance(steps, list | tuple):
            try:
                drawn = sorted(int(part) for part in steps)
            except (TypeError, ValueError) as error:
                raise ValueError(f"steps must be numbers such as 8, or 0,8; got {settings['steps']!r}") from error
            return {**settings, "steps": drawn[-1] if drawn else None, "steps_drawn": drawn or None}
        return settings

    @model_validator(mode="after")
    def _drawn_up_to_steps(self) -> TrainConfig:
        if self.steps_drawn is not None and self.steps != max(self.steps_drawn, default=None):
            raise ValueError(f"steps_drawn {self.steps_drawn} goes with steps {max(self.steps_drawn, default=None)}")
        return self

    def token_layout(self) -> TokenLayout:
        """The layout as the reader takes it."""
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
    def _as_typed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",")]
        if wrong := next(
            (name for name, equals, column in pairs if not (equals and name.strip() and column.strip())), None
        ):
            raise ValueError(f"write columns as field=column,field=column; {wrong!r} is not such a pair")
        return {name.strip(): column.strip() for name, _, column in pairs}

    @model_validator(mode="after")
    def _one_budget(self) -> TrainConfig:
        if self.epochs is not None and "train_steps" in self.model_fields_set:
            raise ValueError("train_steps and epochs are two ways to say one budget: give one of them")
        return self


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a training left behind."""

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

    @property
    def next_command(self) -> str:
        """What to type next."""
        return f"theworld evaluate {shlex.quote(str(self.run))}"

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {**asdict(self), "run": str(self.run), "next_command": self.next_command}

    def summary(self) -> str:
        """A few lines for a person."""
        return (
            f"{self.run}: {self.train_steps} updates on {self.questions} questions in {self.seconds:.0f} s, "
            f"loss {self.first_loss:.3f} -> {self.last_loss:.3f}\n"
            f"{self.trainable:,} trained parameters, {self.world_tokens} world tokens a question, "
            f"{self.supervised_tokens:,} answer tokens learned\n"
            f"next: {self.next_command}"
        )

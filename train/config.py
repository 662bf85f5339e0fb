"""The settings of a training, and of answers. Loads neither torch nor transformers."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..pipeline.config import DEFAULT_CACHE, HOW_IT_RUNS, WORLD_TOKENS, setting, settings_table
from ..pipeline.files.places.local import LocalPath
from ..pipeline.files.places.store_paths import StorePath
from ..pipeline.machine import DeviceName
from ..pipeline.messages import split_names
from .reader.context_budget import LIMITS_BY_MODEL
from .reader.layouts import LAYOUTS, PATCH, POOL_STEPS, LayoutName, PoolName, TokenLayout

DtypeName = Literal["auto", "float32", "bfloat16"]
AttentionName = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
ShuffleName = Literal["full", "blocks"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
ShowChoices = Literal["none", "list", "letters"]
ModuleName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)]


_running = partial(setting, panel=HOW_IT_RUNS)
_of_tokens = partial(setting, panel=WORLD_TOKENS)


_MODELS = [f"{name}{kind}" for name in LIMITS_BY_MODEL for kind in ("", "-it", "-pt")]


@settings_table("train")
class TrainConfig(BaseModel):
    """The settings of one training. The defaults suit the worldlet: about a minute on two CPU cores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    store: Annotated[
        StorePath,
        setting(
            "A store, or a cache folder with one store in it; a path, or s3://BUCKET/FOLDER, gs://…, az://….",
            default=str(DEFAULT_CACHE),
            argument=True,
            text=True,
            place=True,
        ),
    ]
    questions: Annotated[
        LocalPath,
        setting(
            "Questions file: JSONL, LLaVA and other formats (docs/questions.md).", default="the cache's own", place=True
        ),
    ]
    columns: Annotated[
        dict[str, str] | None,
        setting("Names of a table's columns, such as question=Q,answer=A; also choices, image, type.", text=True),
    ] = None
    """Question field -> column, for a table with other column names."""
    images: Annotated[
        LocalPath | None,
        setting(
            "Folder of the images that the questions name. With --no-cache: also the inputs that the store was made "
            "from.",
            default="beside the questions",
            place=True,
        ),
    ] = None
    """Looked into before the folder of the questions; without either, the names that precompute recorded find them."""
    holdout: Annotated[
        float,
        Field(ge=0, lt=1),
        _running("Share of images held out for the test, if no question states a split; 0 trains on all."),
    ] = 0.2
    """By a hash of the image or scene: questions/holdout.py. With `validate_every` as much again for `validation`."""
    show_choices: Annotated[
        ShowChoices,
        setting(
            "How the prompt shows a question's choices: none, list or letters. With letters, the answer is a letter."
        ),
    ] = "none"
    """The wordings: language/choice_prompts.py."""
    max_bad: Annotated[
        int,
        Field(ge=0),
        _running("Most questions to leave out for each problem (wrong row, too long, no latents). Each is reported."),
    ] = 0
    """For each of these reasons."""
    lm: Annotated[
        str | None,
        setting(
            "Language model: a Hub id, a folder, a .gguf file.", names=["--model"], default="embedded", models=_MODELS
        ),
    ] = None
    steps: Annotated[
        int | None,
        Field(ge=0),
        setting("Rollout steps to read. Of 0,8 each update draws one.", default="all the store has", text=True),
    ] = None
    """K. A list, `[0, 8]` or "0,8", sets `steps_drawn`."""
    steps_drawn: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Each update reads one of these numbers of steps, drawn by (seed, update), so that one reader learns all of them.
    A number named twice is drawn twice as often. `steps` is then the largest."""
    layout: Annotated[
        LayoutName,
        _of_tokens(f"{', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}. Counted by `theworld tokens`."),
    ] = "patch"
    patch: Annotated[int, Field(ge=1), _of_tokens("Cells per side of the square that becomes one token.")] = PATCH
    """4 keeps every number, needs a quarter of the tokens of 2, learned faster."""
    pool: Annotated[
        PoolName, _of_tokens("mean, max, minmax or stride: how cells that share a token are summarised.")
    ] = "minmax"
    pool_steps: Annotated[
        int | None,
        Field(ge=1),
        _of_tokens("Future frames that share a token.", default="1; 2 pooled, 4 hierarchical"),
    ] = None
    coarse: Annotated[int, Field(ge=1), _of_tokens("hierarchical: patches per side in a token of a middle frame.")] = 2
    queries: Annotated[int, Field(ge=1), _of_tokens("resampler: total number of world tokens.")] = 32
    max_world_steps: Annotated[int, Field(ge=0), _running("Most rollout steps that a run can learn to read.")] = 16
    lora_rank: Annotated[int, Field(ge=1), _running("Rank of the LoRA adapters.")] = 16
    lora_alpha: Annotated[int, Field(ge=1), _running("LoRA scaling: alpha / rank.")] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1), _running("Dropout of the LoRA layers.")] = 0.0
    target_modules: Annotated[
        tuple[ModuleName, ...] | None,
        Field(min_length=1),
        _running("Linear layers that get LoRA, such as q_proj,v_proj.", default="all", text=True),
    ] = None
    """As of peft. The output head gets none."""
    modules_to_save: Annotated[
        tuple[ModuleName, ...] | None,
        Field(min_length=1),
        _running("Norms of the language model to train as copies, such as input_layernorm.", default="none", text=True),
    ] = None
    """As of peft; other modules are refused: a copy of the embeddings would be as large as the model."""
    learning_rate: Annotated[float, Field(gt=0), _running("Peak learning rate.", names=["--lr"])] = 2e-3
    batch_size: Annotated[int, Field(ge=1), _running("Images per update, each with its questions.")] = 8
    pack: Annotated[int, Field(ge=1), _running("Most questions of one image in one packed row.")] = 8
    """They share the image's world tokens; more get another row. Changes no question's loss."""
    train_steps: Annotated[int, Field(ge=1), _running("Updates to train for.", names=["--max-steps"])] = 800
    epochs: Annotated[float | None, Field(gt=0), _running("Passes over the questions, instead of --train-steps.")] = (
        None
    )
    warmup: Annotated[float, Field(ge=0, lt=1), _running("Share of the updates in which the learning rate rises.")] = (
        0.05
    )
    """It then falls to zero along a cosine."""
    max_grad_norm: Annotated[float, Field(gt=0), _running("Gradients with a larger norm are clipped to it.")] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32), _running("Seed of the initial weights and of the order.")] = 0
    device: Annotated[DeviceName, _running("auto, cpu or cuda.")] = "auto"
    dtype: Annotated[DtypeName, _running("Precision of the frozen language model: auto, float32 or bfloat16.")] = "auto"
    """Trained parameters stay float32."""
    adapter_dtype: Annotated[DtypeName, _running("Precision of LoRA's products: auto, float32 or bfloat16.")] = "auto"
    """auto is bfloat16 beside a bfloat16 model on a GPU, else float32. bfloat16 rounds the products of LoRA, not its
    weights. The run records which it was, and answers alike."""
    arm: Annotated[
        str, _running("Input in place of the rollout, as in `theworld study`: text, frozen, shuffled, …")
    ] = "rollout"
    """See data/arms.py."""
    wrong_futures: Annotated[
        float | None,
        Field(ge=0, le=1),
        _running("Arm doubt: share of images shown with another scene's future.", default="0.1"),
    ] = None
    """Grows to that over the first third of the updates."""
    frozen_futures: Annotated[
        float | None,
        Field(ge=0, le=1),
        _running("Arm doubt: share of images shown with frame 0 alone, repeated.", default="0.1"),
    ] = None
    """Grows likewise."""
    futures: Annotated[
        StorePath | None, _running("Store of encoded true futures, for the arm true.", text=True, place=True)
    ] = None
    labels: Annotated[int | None, Field(ge=1), _running("Labelled scenes to train on.", default="all")] = None
    out: Annotated[
        LocalPath | None,
        setting("Run folder.", default="the next number under runs", typed_only="a file may not say where to write"),
    ] = None
    micro_batch: Annotated[
        int | None, Field(ge=1), _running("Images per pass, if an update does not fit in memory.", default="all")
    ] = None
    """In one process; the gradients of the passes are summed. Changes speed and memory; of an update only the
    rounding. The estimate, and a pass that does not fit, make it smaller."""
    group_by_length: Annotated[
        bool, _running("Put questions of similar length into the same update, to pad less. Changes their order.")
    ] = False
    shuffle: Annotated[
        ShuffleName | None,
        _running("full, or blocks (of some shards at a time).", default="full; blocks for a store in a bucket"),
    ] = None
    """Decides the order of rows. A training saves which it was, and stays with it wherever its store is moved."""
    shuffle_window: Annotated[int, Field(ge=1), _running("Shards in a block of --shuffle blocks.")] = 8
    """A store in a bucket fetches whole shards to local disk, and a block must fit there."""
    shuffle_groups: Annotated[int, Field(ge=1), _running("Machines that each read their own part of the blocks.")] = 1
    """Neighbouring ranks belong together. A machine then fetches one part of the store an epoch."""
    local_cache: Annotated[
        LocalPath | None,
        _running(
            "Folder on local disk that caches shards of a store in a bucket.",
            default="theworld/shards in the user's cache",
            typed_only="a file may not say where to write",
        ),
    ] = None
    local_cache_size: Annotated[
        ByteSize | None,
        Field(gt=0),
        _running("Largest size of this cache, such as 200GB.", default="half of what is free", text=True),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None, _running("Recompute activations: less memory, more time.", default="if not one image fits without")
    ] = None
    """None: if the memory of the device is known, and not even one image fits without."""
    memory: Annotated[
        float | None,
        Field(gt=0),
        _running("Plan for a GPU with this many GiB.", default="what the GPU has; no limit on a CPU"),
    ] = None
    """Decides passes and checkpointing, as an estimate says; see reader/memory.py."""
    attention: Annotated[AttentionName, _running("auto, eager, sdpa, flex_attention or flash_attention_2.")] = "auto"
    """auto takes what was checked for the language model's architecture; on a GPU flex_attention, if right there."""
    checkpoint_every: Annotated[
        int | None, Field(ge=1), _running("Updates between checkpoints.", default="by the minutes alone")
    ] = None
    checkpoint_minutes: Annotated[float | None, Field(ge=0), _running("Minutes between checkpoints.")] = 5.0
    """None writes none by time."""
    max_bad_steps: Annotated[
        int, Field(ge=1), _running("Stop after this many updates in a row without a finite loss.")
    ] = 10
    """Each of them is skipped."""
    validate_every: Annotated[
        int | None,
        Field(ge=1),
        _running("Updates between validations; the run keeps the best weights.", default="never"),
    ] = None
    """On the split `validation`."""
    patience: Annotated[
        int | None,
        Field(ge=1),
        _running("Stop after this many validations without a lower loss.", default="never"),
    ] = None
    report_to: Annotated[
        TrackerName,
        _running("Tracker: tensorboard, wandb or trackio.", typed_only="it may send the training to a service"),
    ] = "none"
    """In addition to the run folder's metrics.json."""

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainConfig:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts evaluations on the validation split: set validate_every, too")
        if self.attention == "flash_attention_2" and self.pack > 1:
            raise ValueError("flash_attention_2 cannot separate packed questions: set pack = 1, or use flex_attention")
        return self

    @model_validator(mode="after")
    def _check_groups(self) -> TrainConfig:
        if self.batch_size % self.shuffle_groups:
            raise ValueError(
                f"shuffle_groups {self.shuffle_groups} must divide batch_size {self.batch_size}: each machine gets its "
                "share of an update"
            )
        return self

    @model_validator(mode="after")
    def _check_doubts(self) -> TrainConfig:
        shares = {"wrong_futures": self.wrong_futures, "frozen_futures": self.frozen_futures}
        if given := [name for name, share in shares.items() if share is not None and self.arm != "doubt"]:
            raise ValueError(
                f"{' and '.join(given)} belong to the arm doubt, and the arm is {self.arm}: leave them out"
            )
        if sum(share or 0.0 for share in shares.values()) > 1:
            raise ValueError("wrong_futures and frozen_futures are shares of all images: together at most 1")
        return self

    def doubts(self) -> tuple[float, float, int]:
        """Shares of wrong and of frozen futures in the training of the arm doubt, and the seed of their choice."""
        wrong, frozen = (0.1 if share is None else share for share in (self.wrong_futures, self.frozen_futures))
        return wrong, frozen, self.seed

    def shuffle_text(self) -> str:
        """The order of rows, as a run states it."""
        return f"blocks of {self.shuffle_window} shards" if self.shuffle == "blocks" else "full"

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

    def lora(self) -> dict[str, Any]:
        """The arguments of `language.lora.add_lora`."""
        return {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "target_modules": self.target_modules,
            "modules_to_save": self.modules_to_save,
        }

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _parse_modules(cls, value: object, info: ValidationInfo) -> object:
        return split_names(value, str(info.field_name), example="q_proj,v_proj") if isinstance(value, str) else value

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


class AnswerConfig(BaseModel):
    """How a run writes answers in its own words. The defaults take the likeliest token, each time."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    max_new_tokens: Annotated[
        int | None, Field(ge=1, le=2**16), setting("Most tokens of a generated answer.", default="16 or more")
    ] = None
    """None is 16, or as many as the longest correct answer needs where it is known."""
    temperature: Annotated[
        float, Field(ge=0, le=100), setting("Sampling temperature of generated answers; 0 takes the likeliest tokens.")
    ] = 0.0
    top_p: Annotated[
        float, Field(gt=0, le=1), setting("Sample from the likeliest tokens with this total probability.")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32), setting("Seed of the sampling.")] = 0

    @model_validator(mode="after")
    def _check_drawing(self) -> AnswerConfig:
        if not self.temperature and self.model_fields_set & {"top_p", "seed"}:
            raise ValueError("top_p and seed are for an answer that is drawn: set temperature, too")
        return self

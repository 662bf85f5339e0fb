"""Prepare a training before anything is loaded: its questions and latents, its reader, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...pipeline.errors import ConfigError
from ...pipeline.machine import own_folder, resolve_device
from ...pipeline.messages import format_bytes
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, open_store
from ...pipeline.store.reading.bucket_reader import BucketRowReader
from ...pipeline.store.reading.shard_cache import ShardCache
from ..config import AttentionName, DtypeName, TrainConfig
from ..data.arms import Arm, open_arm, parse_arm
from ..data.batches import check_answers, encode, pack
from ..data.limits import examples_that_fit, questions_with_latents
from ..data.live import RollOut, roll_out_live
from ..data.loader import LatentDataset
from ..data.vision import open_vision_inputs
from ..language.adapter_dtype import adapter_dtype_of
from ..language.lm import LanguageModel, attention_of, load_tokenizer_only, unread_parts
from ..language.prompt_format import TokenizerOnly
from ..language.weights import Weights, find_weights
from ..questions.holdout import hold_out
from ..questions.images import require_folder
from ..questions.record import Question, evaluation_split, first_scenes, read_questions, select_split
from ..questions.shown_choices import all_as_shown
from ..reader.context_budget import Budget, context_limits_of
from ..reader.layouts import PATCH, TokenLayout
from ..reader.memory import Adapters, MemoryShape
from ..runs.folder import resolve_dtype
from ..runs.meta import ReaderFacts
from ..runs.sizes import shape_of
from .inputs import TrainData
from .memory_plan import MemoryPlan, large_reader_warning, plan_training

VALIDATION = "validation"
"""The split that early stopping uses."""


@dataclass(frozen=True, slots=True)
class SplitData:
    """The questions of a split, and the latents shown with them."""

    questions: tuple[Question, ...]
    keys: dict[str, str]
    """Question id -> key of its image."""
    images: LatentDataset | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """All that is known of a training before its language model is loaded."""

    config: TrainConfig
    """The settings, with the shuffle that suits the store where none was set."""
    arm: Arm
    store: LatentStore
    train_split: SplitData
    validation_split: SplitData | None
    held_out: int
    """Questions that are kept from it, where the file states no split."""
    evaluation_split: str
    weights: Weights
    device: torch.device
    dtype: torch.dtype
    """Of the frozen model."""
    attention: AttentionName
    """How the language model computes attention here, not auto."""
    adapter_dtype: DtypeName
    """What LoRA computes in, not auto."""
    facts: ReaderFacts
    plan: MemoryPlan


def prepare(
    config: TrainConfig,
    progress: Progress,
    *,
    processes: int = 1,
    live: RollOut | None = None,
    for_a_gpu: bool = False,
) -> Prepared:
    """Read and check all but the weights; raises as `train.train`.

    Args:
        processes: that train together.
        live: as of `train.train`.
        for_a_gpu: plan for one, whatever this machine has.
    """
    device = resolve_device(config.device)
    if config.attention == "flex_attention" and device.type == "cpu" and not for_a_gpu:
        raise ConfigError("flex_attention cannot be trained on a CPU: it has no backward pass there. Use eager")
    arm = parse_arm(config.arm)
    store = open_store(config.store, check_sizes=True)
    config = _with_shuffle(config, store)
    if config.shuffle == "blocks":
        progress.say(f"shuffle: {config.shuffle_text()}")
    _open_local_cache(config, store, progress)
    steps = arm.steps(_check_steps(config, arm, store))
    _check_pooling(config.token_layout(), store)
    if note := _coarse_tokens(config, store):
        progress.say(note)
    if live is None:
        require_folder(config.images)
    held_out = hold_out(
        read_questions(config.questions, columns=config.columns, max_bad=config.max_bad, progress=progress),
        config.holdout,
        config.questions,
        store,
        images=config.images,
        validation=config.validate_every is not None,
    )
    if held_out.line:
        progress.say(held_out.line)
    everything = held_out.questions
    train_split = _open_split("train", everything, config, arm, store, steps, progress, labels=config.labels)
    validation_split = None
    if config.validate_every is not None:
        validation_split = _open_split(VALIDATION, everything, config, arm, store, steps, progress)
    if live is not None:
        train_split = replace(train_split, images=roll_out_live(train_split.images, live, arm))

    weights, dtype = find_weights(config.lm, progress=progress), resolve_dtype(config.dtype, device)
    speech = load_tokenizer_only(weights)
    if unread := unread_parts(weights):
        progress.say(unread)
    facts = _reader_facts(config, arm, store, speech, steps)
    where = torch.device("cuda") if for_a_gpu else device
    wanted = None if for_a_gpu else device
    attention = attention_of(weights, config.attention, device=wanted, dtype=dtype, say=progress.warn)
    adapter_dtype = adapter_dtype_of(config.adapter_dtype, dtype, where)
    shape = shape_of(
        speech.config.to_dict(),
        facts,
        Adapters.on(config.target_modules, config.lora_rank, dtype_bytes=2 if adapter_dtype == "bfloat16" else 4),
        dtype=dtype,
        attention=attention,
        shows=train_split.images is not None,
    )
    if (warning := large_reader_warning(facts, shape)) is not None:
        progress.warn(warning)
    plan = _plan_memory(config, speech, facts, train_split, shape, device, processes=processes)
    return Prepared(
        config=config,
        arm=arm,
        store=store,
        train_split=train_split,
        validation_split=validation_split,
        held_out=sum(held_out.counts.values()),
        evaluation_split=evaluation_split(everything),
        weights=weights,
        device=device,
        dtype=dtype,
        attention=attention,
        adapter_dtype=adapter_dtype,
        facts=facts,
        plan=plan,
    )


def _with_shuffle(config: TrainConfig, store: LatentStore) -> TrainConfig:
    """The settings with the order of rows decided: blocks where whole shards are fetched from a bucket."""
    if config.shuffle is not None:
        return config
    return config.model_copy(update={"shuffle": "blocks" if isinstance(store.reader, BucketRowReader) else "full"})


def _open_local_cache(config: TrainConfig, store: LatentStore, progress: Progress) -> None:
    """Read a store in a bucket by way of this machine's disk, where its order of rows reads whole shards.

    Raises:
        ConfigError: the folder is no cache, or may not hold the shards that are read at a time.
    """
    if not isinstance(store.reader, BucketRowReader):
        if config.local_cache is not None:
            progress.say(f"--local-cache is not used: {config.store} is on a disk already")
        return
    in_blocks = config.shuffle == "blocks"
    if in_blocks or config.local_cache is not None:
        folder = config.local_cache or own_folder() / "shards"
        cache = ShardCache(folder, config.local_cache_size)
        store.use_local_cache(cache, window=config.shuffle_window if in_blocks else None)
        progress.say(f"shards of {config.store} are kept in {folder}, up to {format_bytes(cache.limit_bytes)}")


def _open_split(
    split: str,
    everything: Sequence[Question],
    config: TrainConfig,
    arm: Arm,
    store: LatentStore,
    steps: int,
    progress: Progress,
    *,
    labels: int | None = None,
) -> SplitData:
    """A split's questions, or those of its first `labels` scenes, and their latents as the arm shows them."""
    folder = config.images
    pool = questions_with_latents(
        select_split(everything, split, config.questions),
        config.questions,
        store,
        max_bad=config.max_bad,
        progress=progress,
        images=folder,
    )
    questions = first_scenes(pool, labels)
    keys, images = open_arm(
        arm,
        store,
        questions,
        pool,
        config.questions,
        rollout_steps=steps,
        futures=config.futures,
        images=folder,
        doubts=config.doubts() if split == "train" else None,
    )
    return SplitData(questions, keys, images)


def encode_split(
    split: SplitData, config: TrainConfig, lm: LanguageModel, world_tokens: int, progress: Progress
) -> tuple[SplitData, TrainData]:
    """The questions that fit into the language model's context, and the training rows made of them."""
    as_prompted = all_as_shown(split.questions, config.show_choices)
    check_answers(as_prompted, lm)
    examples = [encode(question, split.keys[question.id], lm, answer=question.answer) for question in as_prompted]
    questions, examples = examples_that_fit(
        split.questions, examples, lm, world_tokens=world_tokens, max_bad=config.max_bad, progress=progress
    )
    pictures = open_vision_inputs(lm, questions, split.keys, config.questions, images=config.images)
    return replace(split, questions=questions), TrainData(pack(examples, config.pack), split.images, pictures)


def _plan_memory(
    config: TrainConfig,
    lm: TokenizerOnly,
    facts: ReaderFacts,
    split: SplitData,
    shape: MemoryShape,
    device: torch.device,
    *,
    processes: int,
) -> MemoryPlan:
    """The passes that fit into memory, by the images with the longest texts; raises as `plan_training`."""
    by_image: dict[str, list[Question]] = {}
    for question in all_as_shown(split.questions, config.show_choices):
        by_image.setdefault(split.keys[question.id], []).append(question)
    pairs = sorted(by_image.items(), key=lambda pair: -sum(len(q.question) + len(q.answer) for q in pair[1]))
    examples = [
        encode(question, key, lm, answer=question.answer)
        for key, questions in pairs[: config.batch_size]
        for question in questions[: 2 * config.pack]
    ]
    return plan_training(
        config,
        shape,
        pack(examples, config.pack),
        source=lm.weights.source,
        facts=facts,
        device=device,
        processes=processes,
    )


def _reader_facts(config: TrainConfig, arm: Arm, store: LatentStore, lm: TokenizerOnly, steps: int) -> ReaderFacts:
    channels, _, height, width = store.sample_shape
    return ReaderFacts.of_layout(
        config.token_layout(),
        latent_shape=(channels, height, width),
        hidden_size=lm.config.get_text_config().hidden_size,
        max_world_steps=config.max_world_steps,
        num_world_steps=steps,
        frames=(0,) if store.recipe.traits.is_distribution else arm.frames(steps),  # what is drawn is one frame
    )


def _check_steps(config: TrainConfig, arm: Arm, store: LatentStore) -> int:
    """K, the rollout steps to read; refuses more than the store, the temporal embedding or the layout allow."""
    _, _, height, width = store.sample_shape
    stored_steps = arm.stored_steps(store.recipe)
    steps = stored_steps if config.steps is None else config.steps
    if steps > stored_steps:
        raise ConfigError(
            f"--steps {steps} asks for more than {config.store} holds: its rollouts have {stored_steps} steps. "
            f"Pass --steps {stored_steps} or fewer, or precompute with --steps {steps}"
        )
    if steps > config.max_world_steps:
        raise ConfigError(
            f"{steps} rollout steps do not fit max_world_steps={config.max_world_steps}. "
            f"Raise max_world_steps to {steps}, or pass fewer --steps"
        )
    config.token_layout().grid(height, width)
    return steps


def _coarse_tokens(config: TrainConfig, store: LatentStore) -> str | None:
    """What to know where the usual patch makes few tokens of hidden states, whose cells are tokens of a network."""
    if not store.recipe.traits.is_hidden or config.layout != "patch" or config.patch < PATCH:
        return None
    _, _, height, width = store.sample_shape
    each = config.token_layout().grid(height, width)
    return (
        f"note: hidden states of {store.place.name} have {height}x{width} cells a frame, each a token of the network; "
        f"--patch {config.patch} makes {each[0] * each[1]} world tokens of a frame. --patch {PATCH // 2} makes four "
        f"times as many, as --patch {PATCH} does of a rollout, and was read better"
    )


def _check_pooling(layout: TokenLayout, store: LatentStore) -> None:
    """Refuse to pool over frames that do not follow one another: views, and the draws of one image."""
    recipe, shared = store.recipe, layout.pool_steps
    if not recipe.traits.is_clip and not recipe.traits.is_distribution:
        content, instead = "views of one picture", "--pool-steps 1"
        is_mixed = shared > 1
    else:
        each = recipe.steps_of_a_draw
        content, instead = f"{recipe.draws} draws of {each} steps", f"--pool-steps 1, or a divisor of {each}"
        is_mixed = recipe.draws > 1 and each % shared != 0
    if is_mixed:
        raise ConfigError(
            f"--layout {layout.name} pools {shared} frames into one token, and those of {store.place} hold {content}: "
            f"a token would mix what does not follow one another. Pass {instead}"
        )


def world_tokens_of(facts: ReaderFacts) -> int:
    """World tokens of one image."""
    channels, height, width = facts.latent_shape
    return facts.token_layout().count(len(_frames(facts)), height, width, channels=channels)


def _frames(facts: ReaderFacts) -> tuple[int, ...]:
    return tuple(range(1 + facts.num_world_steps)) if facts.frames is None else facts.frames


def check_context(facts: ReaderFacts, splits: Sequence[TrainData], lm: LanguageModel, progress: Progress) -> None:
    """Refuse more tokens than the language model's context holds; warn of sliding windows."""
    budget = Budget(
        layout=facts.token_layout(),
        room=context_limits_of(lm.weights.source, lm.model.config.to_dict()),
        cells=facts.latent_shape,
        frames=_frames(facts),
        text=max(
            len(example.prompt) + len(example.answer) for split in splits for row in split.rows for example in row
        ),
    )
    budget.require_fit()
    if warning := budget.warning():
        progress.warn(f"warning: {warning}")

"""Train a reader and LoRA on the latents of a store: check everything, train, write a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from ...pipeline.errors import ConfigError, RunError
from ...pipeline.files.hashing import digest_of_lines
from ...pipeline.machine import resolve_device
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, open_store
from ..config import RunSummary, TrainConfig
from ..data.arms import Arm, open_arm, parse_arm
from ..data.batches import check_answers, encode, pack
from ..data.limits import examples_that_fit, questions_with_latents
from ..data.live import LiveLatents, RollOut, roll_out_live
from ..data.loader import LatentDataset
from ..data.vision import open_vision_inputs
from ..language.lm import LanguageModel, add_lora, checkpoint_activations, load_language_model
from ..language.weights import Weights, find_weights
from ..questions.holdout import hold_out
from ..questions.images import require_folder
from ..questions.readers import digest_of, place_of
from ..questions.record import Question, evaluation_split, first_scenes, read_questions, select_split
from ..questions.report import asked_by_type, blind_warning, measure, training_lines
from ..questions.shown_choices import all_as_shown
from ..reader.context_budget import Budget, context_limits_of
from ..reader.layouts import TokenLayout
from ..reader.model import TheWorld
from ..runs.folder import build_reader, resolve_dtype, save_run
from ..runs.meta import METRICS, LMFacts, QuestionFacts, ReaderFacts, RunMeta, StoreFacts, versions
from ..runs.partial import TrainingFacts, open_partial, partial_of, read_facts, require_free, run_of
from .distributed import Ranks
from .inputs import TrainData, Training
from .loop import fit
from .signals import Stop
from .trackers import require_tracker

VALIDATION = "validation"
"""The split that early stopping uses."""


def train(
    config: TrainConfig,
    *,
    resume: Path | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    live: RollOut | None = None,
) -> RunSummary:
    """Train on cached latents and write a run folder. Nothing is written before every check has passed.

    On one CPU thread the same configuration and files give the same weights, bit by bit, however often the training
    is killed and resumed. Under `accelerate launch` every process calls this; the first one writes.

    Args:
        resume: the folder of an unfinished training to resume; `config` comes from `partial.resumed_config`.
        stop: ends the training after an update, with a checkpoint, when asked; None leaves signals to the caller.
        live: rolls images forward in the loop instead of reading the store's latents (live.py).
    Raises:
        ConfigError: more steps than the store has, a layout that does not fit, a language model that does not load,
            more tokens than it can attend to, processes that accelerate was not set up for.
        QuestionError: a wrong record, a question without latents, an answer outside the vocabulary.
        StoreError: the store is missing or damaged.
        RunError: the run folder exists already, or the training diverged.
        StoreLockedError: another process has resumed the same training.
        Interrupted: `stop` was asked to end the training.
    """
    ranks = Ranks.here()
    progress = (progress or Progress.to_logger()) if ranks.is_first else Progress.silent()
    require_tracker(config.report_to)
    if resume is None and config.out is not None:
        require_free(config.out, begins=ranks.is_first)
    device = resolve_device(config.device)
    if config.attention == "flex_attention" and device.type == "cpu":
        raise ConfigError("flex_attention cannot be trained on a CPU: it has no backward pass there. Use eager")
    arm = parse_arm(config.arm)
    store = open_store(config.store, check_sizes=True)
    steps = arm.steps(_check_steps(config, store))
    _check_pooling(config.token_layout(), store)
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

    lm = load_language_model(
        find_weights(config.lm, progress=progress),
        device=device,
        dtype=resolve_dtype(config.dtype, device),
        attention=config.attention,
    )
    facts = _reader_facts(config, arm, store, lm, steps)
    world_tokens = _world_tokens(facts)
    train_split, train_data = _encode(train_split, config, lm, world_tokens, progress)
    validation = None if validation_split is None else _encode(validation_split, config, lm, world_tokens, progress)[1]
    _check_context(facts, [train_data] if validation is None else [train_data, validation], lm, progress)
    shown = all_as_shown(train_split.questions, config.show_choices)
    for line in training_lines(train_split.questions, measure(shown, lm, world_tokens=world_tokens)):
        progress.say(line)
    if blind := blind_warning(asked_by_type(train_split.questions)):
        progress.warn(f"warning: {blind}")

    set_seed(config.seed)
    lm = add_lora(lm, **config.lora())
    if config.gradient_checkpointing:
        checkpoint_activations(lm)
    model = TheWorld(
        lm.model,
        build_reader(facts, lm),
        num_world_steps=steps,
        max_world_steps=facts.max_world_steps,
        recipe=store.recipe,
    )
    meta = RunMeta(
        recipe=store.recipe,
        recipe_id=store.recipe.id,
        store=_store_facts(store),
        lm=LMFacts(source=lm.weights.source, identity=lm.weights.identity, content=lm.weights.content),
        reader=facts,
        questions=QuestionFacts(
            path=place_of(config.questions),
            sha256=digest_of(config.questions),
            train=len(train_split.questions),
            held_out=sum(held_out.counts.values()),
        ),
        config=_portable_settings(config),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    facts_of_training = TrainingFacts(
        config=meta.config,
        numbered=config.out is None,
        recipe_id=store.recipe.id,
        images_sha256=digest_of_lines(f"{name} {key}\n" for name, key in sorted(train_split.keys.items())),
        questions_sha256=meta.questions.sha256,
        lm=_identity_to_resume(resume, lm.weights),
        lm_content=meta.lm.content,
        versions=meta.versions,
        started=meta.created,
    )
    with open_partial(
        facts_of_training, config.out, resume=resume, writes=ranks.is_first, say=progress.say
    ) as partial_run:
        training = Training(
            config=config,
            train_data=train_data,
            validation=validation,
            pad_id=lm.pad_id,
            partial_run=partial_run,
            ranks=ranks,
            progress=progress,
            stop=stop or Stop(),
        )
        result = fit(model, training)
        _require_finite(result.weights, config)
        metrics: dict[str, Any] = {**result.metrics, "world_tokens": world_tokens}
        if isinstance(train_split.images, LiveLatents):
            metrics["rolled_out_live"] = train_split.images.facts()
        run = run_of(partial_run.path)
        if ranks.is_first:
            folder = partial_run.new_run()
            (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            save_run(folder, model, meta, result.weights)
            run = partial_run.finish()
    return RunSummary(
        run=run,
        train_steps=metrics["train_steps"],
        seconds=metrics["seconds"],
        first_loss=metrics["loss"][0]["loss"],
        last_loss=metrics["loss"][-1]["loss"],
        world_tokens=world_tokens,
        supervised_tokens=metrics["supervised_tokens"],
        trainable=sum(parameter.numel() for _, parameter in model.trainable_parameters()),
        questions=len(train_split.questions),
        evaluation_split=evaluation_split(everything),
    )


def _identity_to_resume(resume: Path | None, weights: Weights) -> str:
    """The identity of the language model, in the form that an interrupted training recorded if it is the same model."""
    begun = None if resume is None else read_facts(partial_of(resume))
    return begun.lm if begun is not None and weights.is_same(begun.lm, begun.lm_content) else weights.identity


@dataclass(frozen=True, slots=True)
class _SplitData:
    """The questions of a split, and the latents shown with them."""

    questions: tuple[Question, ...]
    keys: dict[str, str]
    """Question id -> key of its image."""
    images: LatentDataset | None


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
) -> _SplitData:
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
        arm, store, questions, pool, config.questions, rollout_steps=steps, futures=config.futures, images=folder
    )
    return _SplitData(questions, keys, images)


def _encode(
    split: _SplitData, config: TrainConfig, lm: LanguageModel, world_tokens: int, progress: Progress
) -> tuple[_SplitData, TrainData]:
    """The questions that fit into the language model's context, and the training rows made of them."""
    shown = all_as_shown(split.questions, config.show_choices)
    check_answers(shown, lm)
    examples = [encode(question, split.keys[question.id], lm, answer=question.answer) for question in shown]
    questions, examples = examples_that_fit(
        split.questions, examples, lm, world_tokens=world_tokens, max_bad=config.max_bad, progress=progress
    )
    pictures = open_vision_inputs(lm, questions, split.keys, config.questions, images=config.images)
    return replace(split, questions=questions), TrainData(pack(examples, config.pack), split.images, pictures)


def _reader_facts(config: TrainConfig, arm: Arm, store: LatentStore, lm: LanguageModel, steps: int) -> ReaderFacts:
    channels, _, height, width = store.sample_shape
    return ReaderFacts.of_layout(
        config.token_layout(),
        latent_shape=(channels, height, width),
        hidden_size=lm.hidden_size,
        max_world_steps=config.max_world_steps,
        num_world_steps=steps,
        frames=(0,) if store.recipe.traits.is_distribution else arm.frames(steps),  # what is drawn is one frame
    )


def _check_steps(config: TrainConfig, store: LatentStore) -> int:
    """K, the rollout steps to read; refuses more than the store, the temporal embedding or the layout allow."""
    _, latent_frames, height, width = store.sample_shape
    stored_steps = latent_frames - 1
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


def _check_pooling(layout: TokenLayout, store: LatentStore) -> None:
    """Refuse to pool over frames that do not follow one another: views, and the draws of one image."""
    recipe, shared = store.recipe, layout.pool_steps
    if not recipe.traits.is_clip and not recipe.traits.is_distribution:
        content, instead = "views of one picture", "--pool-steps 1"
        is_mixed = shared > 1
    else:
        each = recipe.rollout_steps // recipe.draws
        content, instead = f"{recipe.draws} draws of {each} steps", f"--pool-steps 1, or a divisor of {each}"
        is_mixed = recipe.draws > 1 and each % shared != 0
    if is_mixed:
        raise ConfigError(
            f"--layout {layout.name} pools {shared} frames into one token, and those of {store.path} hold {content}: a "
            f"token would mix what does not follow one another. Pass {instead}"
        )


def _world_tokens(facts: ReaderFacts) -> int:
    """World tokens of one image."""
    channels, height, width = facts.latent_shape
    return facts.token_layout().count(len(_frames(facts)), height, width, channels=channels)


def _frames(facts: ReaderFacts) -> tuple[int, ...]:
    return tuple(range(1 + facts.num_world_steps)) if facts.frames is None else facts.frames


def _check_context(facts: ReaderFacts, splits: Sequence[TrainData], lm: LanguageModel, progress: Progress) -> None:
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


def _portable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as a run stores them, with absolute paths to futures and images."""
    places = {"futures": config.futures, "images": config.images}
    absolute = {name: str(place.resolve()) for name, place in places.items() if place is not None}
    return config.model_dump(mode="json") | absolute


def _store_facts(store: LatentStore) -> StoreFacts:
    digest = digest_of_lines(f"{key}\n" for key in store.sorted_keys())
    return StoreFacts(
        path=str(store.path.resolve()),
        shards=len(store.shards),
        samples=len(store),
        keys_sha256=digest,
    )


def _require_finite(weights: Mapping[str, Tensor], config: TrainConfig) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise RunError(
            "the training diverged: weights are no longer finite, so no run was written. "
            f"Lower learning_rate (it is {config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g})"
        )

"""Train a reader and LoRA on the latents of a store: check everything, train, write a run folder.

Lives here: the checks before anything is written, and the order of it all.
Elsewhere: the configuration (config.py), the model (model.py), the loop (loop.py, updates.py), going on
(unfinished.py), the folder (checkpoint.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, RunError
from ..pipeline.progress import Progress
from ..pipeline.store import LatentStore, open_store
from .arms import Arm, open_arm, parse_arm
from .batches import Example, check_answers, encode, pack
from .budget import Budget, room_of
from .checkpoint import (
    METRICS,
    LMFacts,
    QuestionFacts,
    ReaderFacts,
    RunMeta,
    StoreFacts,
    build_reader,
    resolve_dtype,
    save_run,
    versions,
)
from .config import RunSummary, TrainConfig
from .layouts import TokenLayout
from .live import LiveLatents, RollOut, live_in_place_of
from .lm import LanguageModel, add_lora, checkpoint_activations, find_weights, load_language_model
from .loop import fit
from .model import TheWorld
from .pictures import open_pictures
from .question_checks import covered, fitting
from .question_files import digest_of, place_of
from .question_report import measure, training_lines
from .questions import first_scenes, read_questions, select_split
from .ranks import Ranks
from .stopping import Stop
from .unfinished import TrainingFacts, in_progress, name_of
from .updates import Material

VALIDATION = "validation"
"""The split that early stopping looks at."""


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
    was killed and resumed. Under `accelerate launch` every process calls this; the first one writes.

    Args:
        resume: the folder of an unfinished training to go on with; `config` comes from `unfinished.resumed_config`.
        stop: asks it to end after an update, with a checkpoint; None leaves signals to the caller.
        live: rolls images forward in the loop instead of reading the store's latents (live.py).
    Raises:
        ConfigError: more steps than the store has, a layout that does not fit, a language model that does not load,
            more tokens than it can attend to.
        QuestionError: a wrong record, a question without latents, an answer outside the vocabulary.
        StoreError: the store is missing or damaged.
        RunError: the run folder exists already, or the training diverged.
        StoreLockedError: another process goes on with the same unfinished training.
        Interrupted: `stop` was asked for.
    """
    ranks = Ranks.here()
    progress = (progress or Progress.silent()) if ranks.is_first else Progress.silent()
    _check_tracker(config)
    if resume is None and config.out is not None and config.out.exists():  # said before minutes of training
        raise RunError(f"{config.out} exists already; runs are never overwritten. Choose another --out, or remove it")
    arm = parse_arm(config.arm)
    store = open_store(config.store)
    steps = arm.steps(_check_steps(config, store))
    everything = read_questions(config.questions, columns=config.columns, max_bad=config.max_bad)
    pool = select_split(everything, "train", config.questions)
    pool = covered(pool, config.questions, store, max_bad=config.max_bad) if config.max_bad else pool
    questions = first_scenes(pool, config.labels)
    keys, images = open_arm(arm, store, questions, pool, config.questions, rollout_steps=steps, futures=config.futures)
    if live is not None:
        images = live_in_place_of(images, live, arm)
    device = resolve_device(config.device)
    if config.attention == "flex_attention" and device.type == "cpu":
        raise ConfigError("flex_attention cannot be trained on a CPU: it has no backward pass there. Use eager")
    lm = load_language_model(
        find_weights(config.lm),
        device=device,
        dtype=resolve_dtype(config.dtype, device),
        attention=config.attention,
    )
    check_answers(questions, lm)
    validation = None
    if config.validate_every is not None:
        validation = _validation(config, arm, store, lm, steps)
    examples = [encode(q, keys[q.id], lm, answer=q.answer) for q in questions]
    channels, _, height, width = store.sample_shape
    layout = config.token_layout()
    _check_pooling(layout, store)
    facts = ReaderFacts(
        latent_shape=(channels, height, width),
        hidden_size=lm.hidden_size,
        layout=layout.name,
        patch=layout.patch,
        pool=layout.pool,
        pool_steps=layout.pool_steps,
        coarse=layout.coarse,
        queries=layout.queries,
        max_world_steps=config.max_world_steps,
        num_world_steps=steps,
        frames=(0,) if store.recipe.kind == "posterior" else arm.frames(steps),  # what is drawn is one frame
    )
    world_tokens = _world_tokens(facts)
    questions, examples = fitting(questions, examples, lm, world_tokens=world_tokens, max_bad=config.max_bad)
    _check_context(facts, examples, lm, progress)
    pictures = open_pictures(lm, questions, keys, config.questions)
    for line in training_lines(questions, measure(questions, lm, world_tokens=world_tokens)):
        progress.say(line)

    set_seed(config.seed)
    lm = add_lora(lm, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
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
        lm=LMFacts(source=lm.weights.source, identity=lm.weights.identity),
        reader=facts,
        questions=QuestionFacts(
            path=place_of(config.questions),
            sha256=digest_of(config.questions),
            train=len(questions),
        ),
        config=config.model_dump(mode="json"),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    begun = TrainingFacts(
        config=meta.config,
        numbered=config.out is None,
        recipe_id=store.recipe.id,
        images_sha256=_digest(f"{name} {key}\n" for name, key in sorted(keys.items())),
        questions_sha256=meta.questions.sha256,
        lm=lm.weights.identity,
        versions=meta.versions,
        started=meta.created,
    )
    material = Material(pack(examples, config.pack), images, pictures)
    with in_progress(begun, config.out, resume=resume, writes=ranks.is_first, say=progress.say) as unfinished:
        done = fit(model, material, lm, config, unfinished, progress, validation=validation, ranks=ranks, stop=stop)
        _require_finite(done.weights, config)
        metrics: dict[str, Any] = {**done.metrics, "world_tokens": world_tokens}
        if isinstance(images, LiveLatents):
            metrics["rolled_out_live"] = images.facts()
        run = name_of(unfinished.path)
        if ranks.is_first:
            folder = unfinished.new_run()
            (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            save_run(folder, model, meta, done.weights)
            run = unfinished.finish()
    return RunSummary(
        run=run,
        train_steps=metrics["train_steps"],
        seconds=metrics["seconds"],
        first_loss=metrics["loss"][0]["loss"],
        last_loss=metrics["loss"][-1]["loss"],
        world_tokens=world_tokens,
        supervised_tokens=metrics["supervised_tokens"],
        trainable=sum(parameter.numel() for _, parameter in model.trainable_parameters()),
        questions=len(questions),
    )


def _check_steps(config: TrainConfig, store: LatentStore) -> int:
    """K, the rollout steps to read; refuses what the store, the temporal embedding or the layout has no room for."""
    _, latent_frames, height, width = store.sample_shape
    there = latent_frames - 1
    steps = there if config.steps is None else config.steps
    if steps > there:
        raise ConfigError(
            f"--steps {steps} asks for more than {config.store} holds: its rollouts have {there} steps. "
            f"Pass --steps {there} or fewer, or precompute with --steps {steps}"
        )
    if steps > config.max_world_steps:
        raise ConfigError(
            f"{steps} rollout steps do not fit max_world_steps={config.max_world_steps}. "
            f"Raise max_world_steps to {steps}, or pass fewer --steps"
        )
    config.token_layout().grid(height, width)
    return steps


def _check_pooling(layout: TokenLayout, store: LatentStore) -> None:
    """Refuses to pool over frames that do not follow one another: views, and the draws of one image."""
    recipe, shared = store.recipe, layout.pool_steps
    if recipe.kind == "views":
        told, fitting = "views of one picture", "--pool-steps 1"
        mixed = shared > 1
    else:
        each = recipe.rollout_steps // recipe.draws
        told, fitting = f"{recipe.draws} draws of {each} steps", f"--pool-steps 1, or a divisor of {each}"
        mixed = recipe.draws > 1 and each % shared != 0
    if mixed:
        raise ConfigError(
            f"--layout {layout.name} pools {shared} frames into one token, and those of {store.path} hold {told}: a "
            f"token would mix what does not follow one another. Pass {fitting}"
        )


def _world_tokens(facts: ReaderFacts) -> int:
    """Of one image."""
    channels, height, width = facts.latent_shape
    return facts.token_layout().count(len(_frames(facts)), height, width, channels=channels)


def _frames(facts: ReaderFacts) -> tuple[int, ...]:
    return tuple(range(1 + facts.num_world_steps)) if facts.frames is None else facts.frames


def _check_context(facts: ReaderFacts, examples: list[Example], lm: LanguageModel, progress: Progress) -> None:
    """Refuses a total beyond what the language model can attend to, warns of its windows."""
    budget = Budget(
        layout=facts.token_layout(),
        room=room_of(lm.weights.source, lm.model.config.to_dict()),
        cells=facts.latent_shape,
        frames=_frames(facts),
        text=max(len(example.prompt) + len(example.answer) for example in examples),
    )
    budget.require_fit()
    if warning := budget.warning():
        progress.warn(f"warning: {warning}")


def _check_tracker(config: TrainConfig) -> None:
    package = config.report_to  # each is called as what it reports to
    if package != "none" and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"report_to = {package} needs the package {package}, which is not installed: pip install {package}. "
            "Or leave --report-to out: metrics.json has the loss curve in any case"
        )


def _validation(config: TrainConfig, arm: Arm, store: LatentStore, lm: LanguageModel, steps: int) -> Material:
    """The rows that early stopping looks at: all questions of their split."""
    everything = read_questions(config.questions, columns=config.columns, max_bad=config.max_bad)
    asked = select_split(everything, VALIDATION, config.questions)
    asked = covered(asked, config.questions, store, max_bad=config.max_bad) if config.max_bad else asked
    keys, images = open_arm(arm, store, asked, asked, config.questions, rollout_steps=steps, futures=config.futures)
    check_answers(asked, lm)
    rows = pack([encode(q, keys[q.id], lm, answer=q.answer) for q in asked], config.pack)
    return Material(rows, images, open_pictures(lm, asked, keys, config.questions))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _store_facts(store: LatentStore) -> StoreFacts:
    digest = _digest(f"{key}\n" for key in sorted(store.keys))
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

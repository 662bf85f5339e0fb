"""Train a reader and LoRA on the latents of a store: check everything, train, write a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from ...pipeline.errors import RunError
from ...pipeline.files.hashing import digest_of_lines
from ...pipeline.files.places.place import Place
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..config import TrainConfig
from ..data.live import LiveLatents, RollOut
from ..language.adapter_dtype import compute_in_model_dtype
from ..language.lm import checkpoint_activations, load_language_model
from ..language.lora import add_lora
from ..language.weights import Weights
from ..questions.readers import digest_of, place_of
from ..questions.report import asked_by_type, blind_warning, measure, training_lines
from ..questions.shown_choices import all_as_shown
from ..reader.model import TheWorld
from ..runs.folder import build_reader, save_run
from ..runs.meta import METRICS, LMFacts, QuestionFacts, RunMeta, StoreFacts, versions
from ..runs.partial import TrainingFacts, open_partial, partial_of, read_facts, require_free, run_of
from ..runs.summary import RunSummary
from .distributed import Ranks
from .inputs import TrainData, Training
from .loop import fit
from .memory_plan import MemoryPlan
from .prepare import check_context, encode_split, prepare, world_tokens_of
from .signals import Stop
from .trackers import require_tracker


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
    prepared = prepare(config, progress, processes=ranks.size, live=live)
    config, store, facts, plan = prepared.config, prepared.store, prepared.facts, prepared.plan
    for line in plan.lines():
        progress.say(line)
    lm = load_language_model(
        prepared.weights, device=prepared.device, dtype=prepared.dtype, attention=prepared.attention
    )
    world_tokens, validation = world_tokens_of(facts), None
    train_split, train_data = encode_split(prepared.train_split, config, lm, world_tokens, progress)
    if prepared.validation_split is not None:
        validation = encode_split(prepared.validation_split, config, lm, world_tokens, progress)[1]
    check_context(facts, [train_data] if validation is None else [train_data, validation], lm, progress)
    as_prompted = all_as_shown(train_split.questions, config.show_choices)
    for line in training_lines(train_split.questions, measure(as_prompted, lm, world_tokens=world_tokens)):
        progress.say(line)
    if blind := blind_warning(asked_by_type(train_split.questions)):
        progress.warn(f"warning: {blind}")

    set_seed(config.seed)
    lm = add_lora(lm, **config.lora())
    if prepared.adapter_dtype == "bfloat16":
        compute_in_model_dtype(lm.model)
    if plan.checkpointed:
        checkpoint_activations(lm.model)
    model = TheWorld(
        lm.model,
        build_reader(facts, lm),
        num_world_steps=facts.num_world_steps,
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
            held_out=prepared.held_out,
        ),
        config=_portable_settings(config) | {"adapter_dtype": prepared.adapter_dtype},
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    facts_of_training = TrainingFacts(
        config=_portable_settings(config),
        numbered=config.out is None,
        recipe_id=store.recipe.id,
        images_sha256=digest_of_lines(f"{name} {key}\n" for name, key in sorted(train_split.keys.items())),
        shards_sha256=_shards_digest(config, train_data),
        questions_sha256=meta.questions.sha256,
        lm=_identity_to_resume(resume, lm.weights),
        lm_content=meta.lm.content,
        versions=meta.versions,
        started=meta.created,
    )
    stop = stop or Stop()
    stop.wait_for_updates()
    with open_partial(
        facts_of_training, config.out, resume=resume, writes=ranks.is_first, say=progress.say
    ) as partial_run:
        training = Training(
            config=config,
            train_data=train_data,
            validation=validation,
            plan=plan,
            pad_id=lm.pad_id,
            partial_run=partial_run,
            ranks=ranks,
            progress=progress,
            stop=stop,
        )
        result = fit(model, training)
        _require_finite(result.weights, config)
        computed = {"attention": prepared.attention, "adapter_dtype": prepared.adapter_dtype}
        metrics: dict[str, Any] = {**result.metrics, "world_tokens": world_tokens, "computed_with": computed}
        metrics["shuffle"] = config.shuffle_text()
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
        evaluation_split=prepared.evaluation_split,
    )


def plan(config: TrainConfig, *, progress: Progress | None = None) -> MemoryPlan:
    """How a training would fit into memory, without loading a language model's weights; raises as `train`.

    For a GPU that is only named by its size, `auto` is the dtype and the attention of a GPU.
    """
    for_a_gpu = config.memory is not None
    if for_a_gpu and config.dtype == "auto":
        config = config.model_copy(update={"dtype": "bfloat16"})
    progress = progress or Progress.to_logger()
    return prepare(config, progress, processes=Ranks.here().size, for_a_gpu=for_a_gpu).plan


def _identity_to_resume(resume: Path | None, weights: Weights) -> str:
    """The identity of the language model, in the form that an interrupted training recorded if it is the same model."""
    begun = None if resume is None else read_facts(partial_of(resume))
    return begun.lm if begun is not None and weights.is_same(begun.lm, begun.lm_content) else weights.identity


def _portable_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as a run stores them, with absolute paths to futures and images."""
    places = {"futures": config.futures, "images": config.images, "local_cache": config.local_cache}
    absolute = {name: str(place.resolve()) for name, place in places.items() if isinstance(place, Path)}
    return config.model_dump(mode="json") | absolute


def _shards_digest(config: TrainConfig, data: TrainData) -> str | None:
    """What decides an order in blocks besides the settings; None where the order needs no shards."""
    shards = data.shard_of_row() if config.shuffle == "blocks" else None
    return None if shards is None else digest_of_lines(f"{shard}\n" for shard in shards.tolist())


def _absolute(place: Place) -> str:
    return str(Path(str(place)).resolve()) if place.is_local else str(place)


def _store_facts(store: LatentStore) -> StoreFacts:
    digest = digest_of_lines(f"{key}\n" for key in store.sorted_keys())
    return StoreFacts(
        path=_absolute(store.place),
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

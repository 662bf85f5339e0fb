"""Train a reader and LoRA on the latents of a store: check everything, train, write a run folder.

Lives here: the checks before anything is written, the loop (transformers' Trainer).
Elsewhere: the configuration (config.py), the model (model.py), batches (batches.py), the folder (checkpoint.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, RunError
from ..pipeline.progress import Bar, Progress
from ..pipeline.store import LatentStore, open_store
from .arms import open_arm, parse_arm
from .batches import EpochShuffle, Example, check_answers, encode, pack, supervised_tokens, texts, with_latents
from .checkpoint import (
    METRICS,
    LMFacts,
    QuestionFacts,
    ReaderFacts,
    RunMeta,
    StoreFacts,
    build_reader,
    new_run_folder,
    resolve_dtype,
    save_run,
    versions,
)
from .config import RunSummary, TrainConfig
from .lm import LanguageModel, add_lora, find_weights, load_language_model
from .loader import LatentDataset
from .model import TheWorld
from .questions import first_scenes, read_questions, select_split
from .tokens import TokenLayout

_LOG_EVERY = 10  # updates averaged into one point of the loss curve; fewer in a short training


def train(config: TrainConfig, *, progress: Progress | None = None) -> RunSummary:
    """Train on cached latents and write a run folder. Nothing is written before every check has passed.

    On one CPU thread the same configuration and files give the same weights, bit by bit.

    Raises:
        ConfigError: more steps than the store has, a layout that does not fit, a language model that does not load,
            more tokens than it can attend to.
        QuestionError: a wrong record, a question without latents, an answer outside the vocabulary.
        StoreError: the store is missing or damaged.
        RunError: the run folder exists already, or the training diverged.
    """
    if config.out is not None and config.out.exists():  # said before minutes of training, and again after
        raise RunError(f"{config.out} exists already; runs are never overwritten. Choose another --out, or remove it")
    arm = parse_arm(config.arm)
    store = open_store(config.store)
    steps = arm.steps(_check_steps(config, store))
    pool = select_split(read_questions(config.questions), "train", config.questions)
    questions = first_scenes(pool, config.labels)
    keys, images = open_arm(arm, store, questions, pool, config.questions, rollout_steps=steps, futures=config.futures)
    device = resolve_device(config.device)
    lm = load_language_model(find_weights(config.lm), device=device, dtype=resolve_dtype(config.dtype, device))
    check_answers(questions, lm)
    examples = [encode(q, keys[q.id], lm, answer=q.answer) for q in questions]
    channels, _, height, width = store.sample_shape
    facts = ReaderFacts(
        latent_shape=(channels, height, width),
        hidden_size=lm.hidden_size,
        layout=config.layout,
        patch=config.patch,
        max_world_steps=config.max_world_steps,
        num_world_steps=steps,
        frames=(0,) if store.recipe.kind == "posterior" else arm.frames(steps),  # what is drawn is one frame
    )
    world_tokens = _check_context(facts, examples, lm)

    set_seed(config.seed)
    lm = add_lora(lm, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
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
            path=str(config.questions.resolve()),
            sha256=hashlib.sha256(config.questions.read_bytes()).hexdigest(),
            train=len(questions),
        ),
        config=config.model_dump(mode="json"),
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with new_run_folder(config.out) as (folder, final):
        metrics = _fit(model, pack(examples, config.pack), images, lm, config, folder, progress or Progress.silent())
        _require_finite(model, config)
        metrics["world_tokens"] = world_tokens
        (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        save_run(folder, model, meta)
    return RunSummary(
        run=final[0],
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
    TokenLayout(name=config.layout, patch=config.patch).grid(height, width)
    return steps


def _check_context(facts: ReaderFacts, examples: list[Example], lm: LanguageModel) -> int:
    """World tokens per question; refuses a total beyond what the language model can attend to."""
    layout, (_, height, width) = facts.token_layout(), facts.latent_shape
    frames = 1 + facts.num_world_steps if facts.frames is None else len(facts.frames)
    world_tokens = layout.count(frames, height, width)
    text = max(len(example.prompt) + len(example.answer) for example in examples)
    if world_tokens + text > lm.context:
        frame = layout.count(1, height, width)
        raise ConfigError(
            f"{world_tokens} world tokens ({frames} frames of {frame}) and {text} text tokens "
            f"exceed the {lm.context} tokens {lm.weights.source} attends to. Pass fewer --steps (at most "
            f"{max((lm.context - text) // frame - 1, 0)} fit this layout), or a larger --patch"
        )
    return world_tokens


def _store_facts(store: LatentStore) -> StoreFacts:
    digest = hashlib.sha256("".join(f"{key}\n" for key in sorted(store.keys)).encode())
    return StoreFacts(
        path=str(store.path.resolve()),
        shards=len(store.shards),
        samples=len(store),
        keys_sha256=digest.hexdigest(),
    )


def _require_finite(model: TheWorld, config: TrainConfig) -> None:
    if not all(bool(parameter.isfinite().all()) for _, parameter in model.trainable_parameters()):
        raise RunError(
            "the training diverged: weights are no longer finite, so no run was written. "
            f"Lower learning_rate (it is {config.learning_rate:g}) or max_grad_norm ({config.max_grad_norm:g})"
        )


def _fit(
    model: TheWorld,
    rows: list[tuple[Example, ...]],
    images: LatentDataset | None,
    lm: LanguageModel,
    config: TrainConfig,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Run the loop; returns what metrics.json holds."""
    per_epoch = math.ceil(len(rows) / config.batch_size)
    total = math.ceil(config.epochs * per_epoch) if config.epochs is not None else config.train_steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=-1 if config.epochs is not None else config.train_steps,
        num_train_epochs=config.epochs or 1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # below 1 it is a share of all updates
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, min(_LOG_EVERY, total // 20)),
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        seed=config.seed,
        use_cpu=lm.model.device.type == "cpu",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would mean DataParallel
    with progress.bar("train", total=total, unit="updates") as bar:
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=cast(Any, rows),  # a list is a dataset to it
            data_collator=partial(texts, pad_id=lm.pad_id),
            callbacks=[_Progress(bar)],
        )
        trainer.images = images
        trainer.remove_callback(PrinterCallback)  # prints to stdout, which belongs to results
        started = time.perf_counter()
        try:
            trainer.train()
        finally:
            trainer.end_reading()
    seconds = time.perf_counter() - started
    loss = [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {
        "seconds": round(seconds, 3),
        "train_steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens": trainer.tokens,
        "supervised_tokens": trainer.supervised,
        "loss": loss,
    }


class _Trainer(Trainer):
    """transformers' Trainer with our order of examples, and a count of what it fed."""

    tokens = 0
    supervised = 0
    images: LatentDataset | None
    _texts: Any = None
    _batches: Any = None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Read latents ahead of what comes here, behind all that shuffles and skips."""
        if epoch_iterator is not self._texts:  # another epoch
            self._texts = epoch_iterator
            self._batches = with_latents(
                epoch_iterator,
                self.images,
                keep=self.args.gradient_accumulation_steps,
                device=self.args.device if self.args.device.type == "cuda" else None,
            )
        return super().get_batch_samples(self._batches, num_batches, device)

    def end_reading(self) -> None:
        """An epoch may end in its middle: the threads that read ahead must end too."""
        if self._batches is not None:
            self._batches.close()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochShuffle:
        rows: Any = train_dataset or self.train_dataset
        return EpochShuffle(len(rows), self.args.seed)

    def compute_loss(self, model: nn.Module, inputs: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        reader = cast(TheWorld, self.model).reader
        world = reader.count(*inputs["latents"].shape[2:]) if "latents" in inputs else 0
        self.tokens += int(inputs["attention_mask"].sum()) + world * len(inputs["input_ids"])
        self.supervised += supervised_tokens(inputs["labels"])
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[arg-type]


class _Progress(TrainerCallback):
    """Moves the bar on and shows the loss beside it."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._bar.advance(1, note=self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

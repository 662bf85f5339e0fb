"""How a trained run answers: by ranking choices, or in its own words.

With choices, the answer is the choice of the highest log-likelihood, summed over its tokens and the token that ends
it, so that a choice is not preferred for being the start of a longer one. Without choices, the likeliest tokens are
taken one by one. Elsewhere: many questions, and counting what was right (evaluate.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..pipeline.errors import ConfigError
from ..pipeline.progress import Progress
from ..pipeline.store import LatentStore
from .batches import Collator, Example, encode, pad_rows, to_device
from .checkpoint import LoadedRun, load_run
from .questions import Question

_MAX_NEW_TOKENS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One choice and how likely it was."""

    choice: str
    probability: float
    """Among the choices."""
    log_likelihood: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run says to one question."""

    text: str
    ranked: tuple[Ranked, ...]
    """Likeliest first; empty without choices."""


def ask(
    run: Path | LoadedRun,
    latents: Float[Tensor, "1 C T H W"],
    question: str,
    choices: Sequence[str] | None = None,
    *,
    steps: int | None = None,
) -> Answer:
    """Answer one question about one rollout, cached or fresh.

    Args:
        run: a run folder, or one already loaded.
        latents: standardised, of the recipe the run was trained on.
        choices: rank these; without them the model answers in its own words.
        steps: K, rollout steps to read; by default those it was trained with.
    Raises:
        RunError: no run folder, or another base model.
        ConfigError: more steps than the latents have.
        LatentShapeError: latents of another shape than it was trained on.
    """
    loaded = load_run(run) if isinstance(run, Path) else run
    steps = check_steps(loaded, latents.shape[2] - 1, steps)
    prompt = tuple(loaded.lm.prompt_ids(question))
    rows = [Example("", prompt, tuple(loaded.lm.answer_ids(choice))) for choice in choices or ()]
    batch = pad_rows(rows or [Example("", prompt, ())], loaded.lm.pad_id)
    batch["latents"] = latents.expand(len(batch["input_ids"]), -1, -1, -1, -1)
    if not choices:
        return Answer(_generate(loaded, batch, steps)[0], ())
    scores = _score(loaded, batch, steps)
    shares = torch.tensor(scores).softmax(0).tolist()
    ranked = sorted(map(Ranked, choices, shares, scores), key=lambda choice: -choice.log_likelihood)
    return Answer(ranked[0].choice, tuple(ranked))


def answer_all(
    loaded: LoadedRun,
    questions: Sequence[Question],
    keys: Mapping[str, str],
    store: LatentStore,
    *,
    steps: int,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """One answer per question, in their order.

    Args:
        keys: question id -> key of its image's latents.
        steps: K, rollout steps to read.
        batch_size: rows at a time, a row being a question with one of its choices; changes speed only.
    """
    collate = Collator(store, steps, loaded.lm.pad_id)
    ranked = [(question, choice) for question in questions for choice in question.choices or ()]
    own_words = [question for question in questions if question.choices is None]
    best: dict[str, tuple[float, str]] = {}
    answers: dict[str, str] = {}
    with progress.bar("evaluate", total=len(ranked) + len(own_words), unit="answers") as bar:
        for start in range(0, len(ranked), batch_size):
            part = ranked[start : start + batch_size]
            batch = collate([encode(asked, keys[asked.id], loaded.lm, answer=choice) for asked, choice in part])
            for (question, choice), score in zip(part, _score(loaded, batch, steps), strict=True):
                if question.id not in best or score > best[question.id][0]:
                    best[question.id] = (score, choice)
            bar.advance(len(part))
        for start in range(0, len(own_words), batch_size):
            part = own_words[start : start + batch_size]
            batch = collate([encode(question, keys[question.id], loaded.lm, answer=None) for question in part])
            answers |= zip((question.id for question in part), _generate(loaded, batch, steps), strict=True)
            bar.advance(len(part))
    answers |= {name: choice for name, (_, choice) in best.items()}
    return [answers[question.id] for question in questions]


def check_steps(loaded: LoadedRun, there: int, steps: int | None) -> int:
    """K, the rollout steps to read of latents that have `there`.

    Raises:
        ConfigError: they have fewer than asked for.
    """
    trained = loaded.meta.reader.num_world_steps
    steps = trained if steps is None else steps
    if not 0 <= steps <= there:
        raise ConfigError(f"{steps} rollout steps are asked for, the latents have {there}. Pass --steps 0 to {there}")
    if steps > trained:
        logger.warning(
            "%s was trained with %d rollout steps: those up to %d are new to it", loaded.path, trained, steps
        )
    return steps


def _score(loaded: LoadedRun, batch: Mapping[str, Tensor], steps: int) -> list[float]:
    return loaded.model.log_likelihood(**to_device(batch, loaded.device), num_world_steps=steps).tolist()


def _generate(loaded: LoadedRun, batch: Mapping[str, Tensor], steps: int) -> list[str]:
    inputs = to_device(batch, loaded.device)
    del inputs["labels"]
    ids = loaded.model.generate(
        **inputs, num_world_steps=steps, end_id=loaded.lm.end_id, max_new_tokens=_MAX_NEW_TOKENS
    )
    return [loaded.lm.decode(row) for row in ids.tolist()]

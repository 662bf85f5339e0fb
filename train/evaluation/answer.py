"""Answer one question with a trained run: rank the choices, or generate an answer.

With choices, the answer is the choice with the highest log-likelihood, summed over its tokens and the end token: the
probability that the model says exactly this. A mean over tokens would favour long choices whose words follow from one
another; without the end token, a choice would gain from being the start of a longer one. If all choices are different
single tokens, none is the start of another, so one forward pass compares the likelihoods of these tokens. Without
choices, the likeliest tokens are generated one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ...pipeline.errors import ConfigError, LatentShapeError, QuestionError
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.progress import Progress
from ..config import AnswerConfig
from ..data.arms import arm_of_run
from ..data.batches import Example, pad_rows, to_device
from ..data.doubt import as_doubted
from ..data.vision import VisionInputs
from ..language.prompt_format import PromptFormat
from ..questions.markers import Markers
from ..questions.record import Question
from ..questions.shown_choices import as_shown
from ..runs.folder import LoadedRun, load_run
from .answering.forward import MAX_NEW_TOKENS, generate_texts, log_likelihoods, most_new_tokens, next_token_logits
from .answering.many import single_tokens
from .answering.row_limit import RowLimit


@dataclass(frozen=True, slots=True)
class Ranked:
    """One choice and its likelihood."""

    choice: str
    probability: float
    """Among the choices."""
    log_likelihood: float
    """Natural logarithm; of its token alone where every choice is one token, else of its tokens and the end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a run to one question."""

    text: str
    ranked: tuple[Ranked, ...]
    """Likeliest first; empty without choices."""


def ask(
    run: Path | str | LoadedRun,
    latents: Float[Tensor, "_ C T H W"] | Shaped[np.ndarray, "_ C T H W"],
    question: str,
    choices: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    image: Path | None = None,
    writing: AnswerConfig | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Answer one question about one rollout, cached or fresh.

    Args:
        run: a run folder, or one already loaded.
        latents: (1, C, T, H, W) of one image, standardised, of the recipe the run was trained on: a tensor, or what a
            store's `read` returns. Of a run of the arm `doubt`: all draws of the image.
        choices: rank these, shown in the prompt as in the run's training; without them the model generates an answer.
        steps: K, rollout steps to read; by default those it was trained with.
        image: the file the latents are of, for a language model that looks at images itself.
        writing: how an answer is generated: greedily, or drawn.
        progress: where warnings go; None is `Progress.to_logger()`.
    Raises:
        RunError: no run folder, or another base model.
        ConfigError: more steps than the latents have; or as of `read_asked`.
        QuestionError: as of `read_asked`.
        LatentShapeError: latents of another shape than it was trained on.
    """
    progress = progress or Progress.to_logger()
    loaded = run if isinstance(run, LoadedRun) else load_run(run)
    latents = as_tensor(latents) if isinstance(latents, np.ndarray) else latents
    if len(latents) != 1:
        raise LatentShapeError(f"ask takes the latents of one image, (1, C, T, H, W), got {tuple(latents.shape)}")
    asked = read_asked(loaded, question, choices, writing)
    if asked.question != question.strip():
        progress.say("note: the marker of the image is taken out of the question: world tokens always come first")
    question = asked.question
    if unknown := loaded.lm.unknown_words(question):
        progress.warn(f"warning: {loaded.lm.weights.source} has no token for {', '.join(unknown)} in the question")
    latents, steps = _as_read(loaded, latents, steps, progress)
    asked.require_room(loaded, steps)
    prompt, answers = asked.prompt, asked.answers
    first = single_tokens(answers)
    rows = [first[:1]] if first else answers or [()]
    batch = pad_rows([(Example("", prompt, row),) for row in rows], loaded.lm.pad_id)
    if loaded.meta.reader.frames != ():
        batch["latents"] = latents.expand(len(batch["input_ids"]), -1, -1, -1, -1)
    if loaded.lm.image_tokens:
        if image is None:
            raise ConfigError(f"{loaded.lm.weights.source} looks at images itself: pass the image as well")
        pixels = VisionInputs(loaded.lm, {}).prepare(image)
        batch["pixel_values"] = pixels.expand(len(batch["input_ids"]), -1, -1, -1)
    batch = to_device(batch, loaded.device)
    limit = RowLimit(loaded.device, progress, loaded.sizes, memory=loaded.memory)
    if not choices:
        writing = writing or AnswerConfig()
        written = limit.answer(
            rows, batch, lambda _, part: generate_texts(loaded, part, writing), new_tokens=most_new_tokens(writing)
        )
        return Answer(written[0], ())
    if first:
        [logits] = limit.answer(rows, batch, lambda _, part: [next_token_logits(loaded, part)[0]])
        scores = logits.float().log_softmax(0)[list(first)].tolist()
    else:
        scores = limit.answer(rows, batch, lambda _, part: log_likelihoods(loaded, part))
    shares = torch.tensor(scores).softmax(0).tolist()
    ranked = sorted(map(Ranked, choices, shares, scores), key=lambda choice: -choice.log_likelihood)
    return Answer(ranked[0].choice, tuple(ranked))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a run reads it."""

    question: str
    """Without the marker of an image."""
    prompt: tuple[int, ...]
    answers: list[tuple[int, ...]]
    """The ids of each choice; empty where an answer is generated."""
    generated: int
    """Tokens of an answer that is generated, unless how many was said."""

    def require_room(self, loaded: LoadedRun, steps: int) -> None:
        """Refuse a question that does not fit into the context, which training and evaluation refuse, too.

        Args:
            steps: rollout steps that are read.
        Raises:
            QuestionError: names the tokens of each part.
        """
        facts = loaded.meta.reader
        world = 0 if facts.frames == () else loaded.model.reader.count(1 + steps, *facts.latent_shape[1:])
        answer = max(map(len, self.answers), default=self.generated)
        if world + len(self.prompt) + answer > loaded.lm.context:
            raise QuestionError(
                f"the question is too long: {len(self.prompt):,} tokens of it, {answer:,} of the answer and {world:,} "
                f"world tokens are more than the {loaded.lm.context:,} that {loaded.lm.weights.source} attends to. "
                "Shorten it"
            )


def read_asked(
    loaded: LoadedRun, question: str, choices: Sequence[str] | None, writing: AnswerConfig | None = None
) -> Asked:
    """A question and its choices as the run reads them, before anything is rolled out for them.

    Args:
        choices, writing: as of `ask`.
    Raises:
        ConfigError: an empty question, or one about several images; choices that are not two different ones, or
            `writing` with choices, which are ranked.
        QuestionError: a choice has words the language model has no token for, or a text holds a control token.
    """
    if isinstance(choices, str):
        raise ConfigError(f"choices are a list of texts, got the text {choices!r}")
    if any("\ud800" <= letter <= "\udfff" for text in (question, *(choices or ())) for letter in text):
        raise ConfigError("the question or a choice is not Unicode text: write it in UTF-8")
    markers = Markers()
    question = markers.take(question)
    if not question:
        raise ConfigError("the question is empty")
    if markers.images > 1:
        raise ConfigError(f"the question refers to {markers.images} images, and a run is asked about one")
    if choices and writing is not None and writing != AnswerConfig():
        raise ConfigError(
            "choices are ranked, so nothing is generated: leave out max_new_tokens, temperature, top_p and seed, or "
            "the choices"
        )
    prompt_text, labels = _as_prompted(question, choices, loaded)
    _check_choices(labels, loaded.lm)
    is_open = writing is None or writing.max_new_tokens is None  # what was said is checked where it is generated
    return Asked(
        question,
        tuple(loaded.lm.prompt_ids(prompt_text)),
        [tuple(loaded.lm.answer_ids(label)) for label in labels or ()],
        MAX_NEW_TOKENS if is_open else 0,
    )


def _as_read(loaded: LoadedRun, latents: Tensor, steps: int | None, progress: Progress) -> tuple[Tensor, int]:
    """The frames that the run reads, (1, C, 1 + K, H, W), and K."""
    arm, recipe = arm_of_run(loaded.meta.config), loaded.meta.recipe
    if arm.kind != "doubt":
        steps = check_steps(loaded, latents.shape[2] - 1, steps, progress)
        return latents[:, :, : 1 + steps], steps
    steps = check_steps(loaded, arm.stored_steps(recipe) if latents.shape[2] > 1 else 0, steps, progress)
    return as_doubted(latents, recipe, steps), steps


def _as_prompted(question: str, choices: Sequence[str] | None, loaded: LoadedRun) -> tuple[str, Sequence[str] | None]:
    """The text of the prompt and the answers that are ranked, as the run was trained to see them."""
    if not choices or loaded.meta.show_choices == "none":
        return question, choices
    record = Question.model_construct(question=question, choices=tuple(choices), answer=choices[0])
    prompted = as_shown(record, loaded.meta.show_choices)
    return prompted.question, prompted.choices


def _check_choices(choices: Sequence[str] | None, lm: PromptFormat) -> None:
    if not choices:
        return
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choice.strip() for choice in choices):
        raise ConfigError(f"choices must be two or more different answers, got {list(choices)}")
    for choice in choices:
        if unknown := lm.unknown_words(choice):  # all such choices would look the same to it
            raise QuestionError(
                f"the tokenizer of {lm.weights.source} has no token for {unknown} in the choice {choice!r}. Say it in "
                "other words"
            )


def check_steps(loaded: LoadedRun, stored_steps: int, steps: int | None, progress: Progress) -> int:
    """K, the rollout steps to read from latents that hold `stored_steps`; None is as many as in training.

    Raises:
        ConfigError: as of `require_steps`.
    """
    trained = loaded.meta.reader.num_world_steps
    steps = trained if steps is None else steps
    require_steps(loaded, stored_steps, steps)
    if steps > trained:
        progress.warn(
            f"warning: {loaded.path} was trained with {trained} rollout steps: those up to {steps} are new to it"
        )
    return steps


def require_steps(loaded: LoadedRun, stored_steps: int, steps: int) -> None:
    """Refuse to read so many rollout steps of latents that hold `stored_steps`.

    Raises:
        ConfigError: the latents hold fewer, or the run reads only some frames and not these.
    """
    if not 0 <= steps <= stored_steps:
        raise ConfigError(
            f"{steps} rollout steps are asked for, the latents have {stored_steps}. Pass --steps 0 to {stored_steps}"
        )
    frames = loaded.meta.reader.frames or ()
    if (last_frame := max(frames, default=0)) and steps not in (0, last_frame):
        raise ConfigError(
            f"{loaded.path} reads frames {', '.join(map(str, frames))} of a rollout and no others: pass "
            f"--steps {last_frame}, or 0 for the observed frame alone"
        )

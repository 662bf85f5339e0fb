"""A trained run, the latents it reads and the questions it is asked: `AnswerSession`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...pipeline.files.places.store_paths import store_path
from ...pipeline.machine import DeviceName
from ...pipeline.progress import Progress
from ...pipeline.store.find import moved_store
from ...pipeline.store.folder import LatentStore, open_store
from ..config import ShowChoices
from ..data.arms import Arm, arm_of_run, open_arm
from ..data.batches import check_answers
from ..data.limits import questions_that_fit, questions_with_latents
from ..data.loader import LatentDataset
from ..data.vision import open_vision_inputs
from ..language.choice_prompts import letters
from ..language.lora import merge_adapters
from ..questions.holdout import hold_out
from ..questions.images import require_folder
from ..questions.record import Question, read_questions
from ..questions.shown_choices import all_as_shown
from ..runs.folder import LoadedRun, load_run, require_same_recipe
from .answering.many import Response, answer_all
from .draws import require_draws
from .own_words import normalised


@dataclass(frozen=True, slots=True)
class OpenedArm:
    """Questions, and the latents that an arm shows with them."""

    arm: Arm
    questions: tuple[Question, ...]
    keys: dict[str, str]
    """Question id -> key of its image."""
    images: LatentDataset | None
    """None where no world is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSession:
    """A loaded run with the store and the questions file that it is asked about."""

    loaded: LoadedRun
    store: LatentStore
    questions_file: Path
    max_bad: int
    """Wrong rows, questions without latents, and questions that are too long: as many of each may be left out."""
    show_choices: ShowChoices
    """Whether and how the prompts show the choices."""
    futures: Path | str | None
    """A store of true futures, for the arms that show them."""
    images: Path | None = None
    """The folder that image names are relative to; None is that of the questions."""
    progress: Progress
    """Where warnings and the bar of the answers go."""

    @classmethod
    def open(
        cls,
        run: Path,
        *,
        store: Path | str | None = None,
        questions: Path | None = None,
        futures: Path | str | None = None,
        max_bad: int | None = None,
        images: Path | None = None,
        show_choices: ShowChoices | None = None,
        lm: str | None = None,
        device: DeviceName = "auto",
        memory: float | None = None,
        draws: int | None = None,
        progress: Progress | None = None,
    ) -> AnswerSession:
        """Load a run and open its store.

        Args:
            store, questions, futures, max_bad, images, show_choices: by default those the run was trained with.
            lm: where the base language model lies now, if it has moved.
            memory: plan for a GPU of so many GiB; None is what is free on the device.
            draws: the store holds at least so many futures of each image, of kind `samples`; None is one of the run's
                own recipe.
            progress: where a person watches; None is `Progress.to_logger()`.
        Raises:
            RunError: no run folder, or another base model.
            StoreMismatchError: latents of another recipe.
            ConfigError: a store of fewer draws.
        """
        progress = progress or Progress.to_logger()
        loaded = load_run(run, lm=lm, device=device, memory=memory, progress=progress)
        meta, config = loaded.meta, loaded.meta.config
        latents = open_store(store or moved_store(meta.store.path, meta.recipe_id), check_sizes=True)
        if draws is None:
            require_same_recipe(meta, run, latents)
        else:
            require_draws(meta, run, latents, draws)
        merge_adapters(loaded.lm)
        if futures is None and config.get("futures") is not None:
            futures = store_path(config["futures"])
        require_folder(images)  # that of the training may have gone: the store's names find its images, too
        if images is None and config.get("images") is not None:
            images = Path(config["images"])
        return cls(
            loaded=loaded,
            store=latents,
            questions_file=questions or Path(meta.questions.path),
            max_bad=config.get("max_bad", 0) if max_bad is None else max_bad,
            show_choices=meta.show_choices if show_choices is None else show_choices,
            futures=futures,
            images=images,
            progress=progress,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The settings that the run was trained with."""
        return self.loaded.meta.config

    @property
    def trained_arm(self) -> str:
        """The name of the arm that the run was trained on."""
        return arm_of_run(self.config).name

    def read_questions(self) -> tuple[Question, ...]:
        """All questions of the file; where it states no split, some are held out, as in the training.

        Raises:
            QuestionError: more than `max_bad` records are wrong.
        """
        held_out = hold_out(
            read_questions(
                self.questions_file, columns=self.config.get("columns"), max_bad=self.max_bad, progress=self.progress
            ),
            self.config.get("holdout", 0.0),
            self.questions_file,
            self.store,
            images=self.images,
            validation=self.config.get("validate_every") is not None,
        )
        if held_out.line:
            self.progress.say(held_out.line)
        return held_out.questions

    def answerable(self, questions: Sequence[Question], *, steps: int) -> tuple[Question, ...]:
        """The questions that have latents and leave room for the world tokens of so many rollout steps.

        Raises:
            QuestionError: more than `max_bad` are without latents or too long, or the language model has no token for
                a word of an answer.
        """
        limits: dict[str, Any] = {"max_bad": self.max_bad, "progress": self.progress}
        with_latents = questions_with_latents(questions, self.questions_file, self.store, images=self.images, **limits)
        as_prompted = all_as_shown(with_latents, self.show_choices)
        check_answers(as_prompted, self.loaded.lm)
        tokens = self.world_tokens(steps)
        fitting = {
            question.id for question in questions_that_fit(as_prompted, self.loaded.lm, world_tokens=tokens, **limits)
        }
        return tuple(question for question in with_latents if question.id in fitting)

    def world_tokens(self, steps: int) -> int:
        """World tokens of one image where so many rollout steps are read."""
        return self.loaded.model.reader.count(1 + steps, *self.loaded.meta.reader.latent_shape[1:])

    def open_arm(self, arm: Arm, questions: Sequence[Question], *, steps: int) -> OpenedArm:
        """What an arm shows with these questions, `steps` being the rollout steps of an arm that reads a rollout.

        The questions must be all of their split: arms exchange futures between them. Raises as `arms.open_arm`.
        """
        keys, images = open_arm(
            arm,
            self.store,
            questions,
            questions,
            self.questions_file,
            rollout_steps=arm.steps(steps),
            futures=self.futures,
            images=self.images,
        )
        return OpenedArm(arm, tuple(questions), keys, images)

    def answer(
        self, opened: OpenedArm, *, batch_size: int, generate: bool = False, max_new_tokens: int | None = None
    ) -> list[Response]:
        """One response per question, in their order, letters replaced by their choices; else as of `answer_all`."""
        responses = answer_all(
            self.loaded,
            all_as_shown(opened.questions, self.show_choices),
            opened.keys,
            opened.images,
            batch_size=batch_size,
            progress=self.progress,
            pictures=open_vision_inputs(
                self.loaded.lm, opened.questions, opened.keys, self.questions_file, images=self.images
            ),
            generate=generate,
            max_new_tokens=max_new_tokens,
        )
        if self.show_choices != "letters":
            return responses
        return list(map(_without_letters, responses, opened.questions))


def _without_letters(response: Response, question: Question) -> Response:
    """The response with a choice's text for its letter, also where the model says both: "B. right"."""
    if not question.choices:
        return response
    choice_by_letter = dict(zip(letters(len(question.choices)), question.choices, strict=True))
    generated = response.generated
    if generated is not None:
        words = {
            normalised(label): choice
            for letter, choice in choice_by_letter.items()
            for label in (f"{letter}. {choice}", letter)
        }
        generated = words.get(normalised(generated), generated)
    return replace(response, text=choice_by_letter[response.text], generated=generated)

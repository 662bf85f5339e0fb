"""The questions that a threshold is chosen on: none that is evaluated, and none that the run was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ....pipeline.errors import ConfigError, QuestionError
from ...questions.record import Question, first_scenes, select_split

CALIBRATION = 500
"""Scenes at most that a threshold is chosen on."""


def training_scenes_of(questions: Sequence[Question], labels: int | None, file: Path) -> frozenset[str]:
    """The scenes that a run with this number of labels was trained on."""
    try:
        pool = select_split(questions, "train", file)
    except QuestionError:
        return frozenset()
    return frozenset(question.scene_id for question in first_scenes(pool, labels))


def calibration_split(
    questions: Sequence[Question],
    requested: str | None,
    split: str | None,
    training_scenes: frozenset[str] | None,
    file: Path,
) -> tuple[tuple[Question, ...], str]:
    """The questions to choose thresholds on, with a description of them, or with the reason why there are none.

    Args:
        training_scenes: those left out, which are left out; None if the run was trained on other questions.
    """
    if requested is not None and requested == split:
        raise ConfigError(f"--calibrate {requested} is the split to evaluate: a threshold chosen there flatters itself")
    has_validation = split != "validation" and any(question.split == "validation" for question in questions)
    name = requested or ("validation" if has_validation else "train")
    if split is None or name == split:
        return (), "every question is in the split that is evaluated, or was used in training"
    try:
        split_questions = select_split(questions, name, file)
    except QuestionError:
        if requested is not None:
            raise
        split_questions = ()
    trusted = name != "train" or requested is not None
    chosen = tuple(
        question
        for question in split_questions
        if (trusted if training_scenes is None else question.scene_id not in training_scenes)
    )
    if not chosen:
        reason = f"the training used (or may have used) all scenes of split '{name}', none is left to calibrate on"
        if requested is not None:
            raise ConfigError(f"--calibrate {name}: {reason}. Name another split, or train with fewer --labels")
        return (), f"{reason}. Name a split with --calibrate, or train with fewer --labels"
    label = f"split {name}"
    if len(chosen) < len(split_questions):
        label = f"{len({question.scene_id for question in chosen})} scenes of {label} that the training did not use"
    scenes = list(dict.fromkeys(question.scene_id for question in chosen))
    if len(scenes) > CALIBRATION:
        sampled_scenes = {scenes[n * len(scenes) // CALIBRATION] for n in range(CALIBRATION)}
        chosen = tuple(question for question in chosen if question.scene_id in sampled_scenes)
        label = f"{CALIBRATION} scenes of {label}"
    return chosen, label

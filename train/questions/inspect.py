"""Describe a questions file, or write it in our own layout: the work of `theworld questions`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.config import load_config
from ...pipeline.errors import ConfigError, QuestionError
from ...pipeline.files.rights import follow_umask
from ...pipeline.progress import Progress
from ...pipeline.store.folder import open_store
from ..config import TrainConfig
from ..language.prompt_format import PromptFormat
from ..language.tokenizer_files import read_prompt_format
from ..language.weights import Weights, find_weights
from .holdout import hold_out
from .images import find_file, image_folders, require_folder
from .readers import folder_of, read_rows
from .record import read_question_file, resolve_keys, select_split
from .report import QuestionReport, describe, measure
from .shown_choices import all_as_shown

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


def inspect_questions(
    file: Path, store: Path | str | None, settings: Mapping[str, Any], *, split: str | None = None
) -> QuestionReport:
    """A report on questions, made without a language model's weights.

    Args:
        settings: as in [train], of a training on these questions.
    Raises:
        QuestionError: the questions cannot be read at all. StoreError: there is no such store.
        ConfigError: a setting is wrong, or the language model cannot be found.
    """
    config = load_config(TrainConfig, "train", None, {**settings, "questions": file, "store": store or Path("none")})
    loaded = read_question_file(file, columns=config.columns)
    if not loaded.questions:
        return describe(loaded)
    require_folder(config.images)
    opened = None if store is None else open_store(store)
    held_out = hold_out(loaded.questions, config.holdout, file, opened, images=config.images)
    questions = select_split(held_out.questions, split, file)
    coverage = None if opened is None else resolve_keys(questions, file, opened, images=config.images)
    world_tokens = None
    if opened is not None:
        channels, latent_frames, height, width = opened.sample_shape
        steps = latent_frames - 1 if config.steps is None else config.steps
        if steps > latent_frames - 1:
            raise ConfigError(f"--steps {steps} asks for more than {store} holds: {latent_frames - 1}")
        world_tokens = config.token_layout().count(1 + steps, height, width, channels=channels)
    as_prompted = all_as_shown(questions, config.show_choices)
    tokens = measure(as_prompted, _prompt_format(find_weights(config.lm)), world_tokens=world_tokens)
    return describe(loaded, questions, coverage=coverage, tokens=tokens, max_bad=config.max_bad, held_out=held_out.line)


def _prompt_format(weights: Weights) -> PromptFormat:
    """By the tokenizers library where its files are clear, else by transformers, whose import takes seconds."""
    if (prompt_format := read_prompt_format(weights)) is not None:
        return prompt_format
    from ..language.lm import load_tokenizer_only

    return load_tokenizer_only(weights)


@dataclass(frozen=True, slots=True)
class WrittenQuestions:
    """Where questions were written, and how many."""

    path: Path
    questions: int
    images: int


def write_questions(
    file: Path, folder: Path, settings: Mapping[str, Any], *, progress: Progress | None = None
) -> WrittenQuestions:
    """Write questions as JSON lines, and images that a table holds as files. The folder appears complete or not at all.

    `theworld precompute FOLDER/images` and `theworld train --questions FOLDER/questions.jsonl` continue from it.

    Raises:
        QuestionError: `folder` exists already; more rows are wrong than `max_bad` allows.
    """
    config = load_config(TrainConfig, "train", None, {**settings, "questions": file, "store": Path("none")})
    if folder.exists():
        raise QuestionError(f"{folder} exists already, and nothing is overwritten. Choose another folder for --write")
    questions = read_question_file(file, columns=config.columns).require(config.max_bad, progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".questions-", dir=folder.parent))
    try:
        names: dict[str, str] = {}

        def keep(digest: str, content: bytes) -> None:
            (building / "images").mkdir(exist_ok=True)
            suffix = next((suffix for magic, suffix in _SUFFIXES.items() if content.startswith(magic)), ".img")
            names[digest] = f"images/{digest[:32]}{suffix}"
            (building / names[digest]).write_bytes(content)

        for _ in read_rows(file, config.columns, keep=keep).rows:
            pass
        folders = image_folders(folder_of(file), config.images)
        with (building / "questions.jsonl").open("w", encoding="utf-8") as lines:
            for question in questions:
                record = question.model_dump(mode="json", exclude_defaults=True)
                if question.image_sha256 in names:
                    record["image"] = names[question.image_sha256 or ""]
                elif (image_file := _file_of(question.image, folders)) is not None:
                    record["image"] = os.path.relpath(image_file, folder)
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        follow_umask(building)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return WrittenQuestions(folder / "questions.jsonl", len(questions), len(names))


def _file_of(image: str, folders: Sequence[Path]) -> Path | None:
    file = None
    with suppress(OSError, ValueError):  # a name that no file can have; the store may know it
        file = find_file(image, folders)
    return None if file is None else file.path

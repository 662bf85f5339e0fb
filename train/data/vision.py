"""Prepare images for the vision tower of a multimodal language model, which sees them beside the rollout.

Axes:  B image
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...pipeline.errors import ConfigError, QuestionError
from ...pipeline.files.hub.pretrained import load_pretrained
from ...pipeline.files.images.decode import decode_image, read_input_file
from ..language.prompt_format import PromptFormat
from ..questions.images import find_file, image_folders
from ..questions.readers import folder_of
from ..questions.record import Question


class VisionInputs:
    """Keys of images to pixels. Called for every batch: decoding is cheap beside a vision tower."""

    def __init__(self, lm: PromptFormat, files: Mapping[str, Path]) -> None:
        """
        Args:
            files: key -> image file.
        Raises:
            ConfigError: the language model's folder does not say how images are prepared.
        """
        self._files = files
        if not (lm.weights.folder / "preprocessor_config.json").is_file():
            raise ConfigError(
                f"{lm.weights.source} sees images, but its folder has no preprocessor_config.json, which says how they "
                "are prepared. Fetch the whole repository of the model"
            )
        # transformers' image processors take a quarter of a second to load, which most language models need not
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        self._prepare: Any = load_pretrained(
            Gemma3ImageProcessorPil, lm.weights.folder, error=ConfigError, what="language model's image processor"
        )

    def __call__(self, keys: Sequence[str]) -> Float[Tensor, "B 3 height width"]:
        """The images of these keys, prepared as the language model's own processor does.

        Raises:
            ImageError: a file has gone or cannot be decoded.
        """
        return torch.cat([self.prepare(self._files[key]) for key in keys])

    def prepare(self, file: Path) -> Float[Tensor, "1 3 height width"]:
        """One image file."""
        return self.prepare_image(decode_image(read_input_file(file), source=str(file)))

    def prepare_image(self, image: Image.Image) -> Float[Tensor, "1 3 height width"]:
        """One RGB image."""
        return self._prepare(image, do_pan_and_scan=False, return_tensors="pt")["pixel_values"]


def open_vision_inputs(
    lm: PromptFormat,
    questions: Iterable[Question],
    keys: Mapping[str, str],
    questions_file: Path,
    *,
    images: Path | None = None,
) -> VisionInputs | None:
    """The images of questions, where the language model looks at them; None where it sees none.

    Args:
        keys: question id -> key of its image.
        images: folder to look into first.
    Raises:
        QuestionError: an image is no file beside the questions.
        ConfigError: as `VisionInputs`.
    """
    if not lm.image_tokens:
        return None
    folders, files = image_folders(folder_of(questions_file), images), dict[str, Path]()
    for question in questions:
        if (key := keys[question.id]) not in files:
            file = find_file(question.image, folders)
            files[key] = folders[0] / question.image if file is None else file.path
    if gone := [path for path in files.values() if not path.is_file()]:
        raise QuestionError(
            f"{lm.weights.source} looks at the images itself, and {len(gone)} of {len(files)} are no files beside "
            f"{questions_file}: {gone[0]}. Name their folder with --images, or put them there (`theworld questions "
            "FILE --write FOLDER` takes images out of a table), or choose a language model that sees none"
        )
    return VisionInputs(lm, files)

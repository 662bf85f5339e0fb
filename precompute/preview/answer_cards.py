"""Pictures of what a run answered from a store: the input, the future that was read, the answers.

Elsewhere: drawing one (preview.py), where inputs are found by the names in a store (originals.py), the same for an
input that no store holds (live.py); what decodes (viewer.py).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...pipeline.errors import ConfigError, ImageError, TheWorldError
from ...pipeline.files.images import read_input_file
from ...pipeline.latents.keys import key_of_sample
from ...pipeline.latents.tensors import as_tensor
from ...pipeline.machine import DeviceName
from ...pipeline.store.folder import LatentStore
from ..inputs.lookup import InputLookup
from ..inputs.sandbox import shared_decoder
from ..rollout.kinds import KINDS
from ..worlds.source import WORLDLET, resolve_world
from .latent_decoder import LatentDecoder
from .store_preview import GUARDRAIL_NOTE


class AnswerPictures:
    """Draws what a reader saw. Where world model or inputs are not at hand, says so in `notes` and draws without."""

    def __init__(self, store: LatentStore, images: Path, *, world: str | None = None, device: DeviceName) -> None:
        """
        Args:
            images: folder that the questions' images are relative to, or one the store was made from.
            world: where the world model's weights are; by default where the recipe says.
        """
        self._store, self._images = store, images
        self._kind = KINDS[store.recipe.kind]
        self._originals: InputLookup | None = None
        self._viewer: LatentDecoder | None = None
        self._without: set[str] = set()
        self.notes: list[str] = []
        """What a person should know of the pictures."""
        try:
            self._viewer = LatentDecoder.for_store(store, world=world, device=device)
            self._originals = InputLookup(store, images if images.is_dir() else None)
            if store.recipe.world != resolve_world(WORLDLET).identity:
                self.notes.append(GUARDRAIL_NOTE)
        except TheWorldError as error:
            self.notes.append(f"note: examples have no pictures: {error}")

    def draw(
        self, key: str, image: str, question: str, answers: Sequence[tuple[str, float | None]], *, steps: int
    ) -> bytes | None:
        """A PNG; None where the world model is not at hand.

        Args:
            key: of the image's latents. image: its file, as the question names it.
            answers: the likeliest first.
            steps: K, the rollout steps that were read.
        """
        if self._viewer is None or key not in self._store:
            return None
        steps = 0 if self._store.recipe.kind == "posterior" else steps
        latents = as_tensor(self._store.read([key], rollout_steps=steps)).float()
        first = self._input(key, image)
        try:
            if first is not None:
                self._viewer.require_same(first, latents)
        except ConfigError as error:
            self._viewer = None
            self.notes.append(f"note: examples have no pictures: {error}")
            return None
        if first is None:
            self.notes += [note for note in self._viewer.notes if note not in self.notes]
        picture = self._viewer.draw_answer(first, latents, question, answers)
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        return content.getvalue()

    def _input(self, key: str, image: str) -> Tensor | None:
        """The input's first picture; None where it is not there any more, so that the decoded one stands in."""
        assert self._viewer is not None
        assert self._originals is not None
        try:
            file = self._images / image
            if file.is_file():
                content = read_input_file(file, max_bytes=self._kind.max_bytes)
                if key_of_sample(content, self._store.prompts().get(key)) == key:
                    spec = self._viewer.spec
                    return shared_decoder().load(content, self._store.recipe, spec, image).first
            return self._originals.load(key).first
        except (ImageError, OSError, ValueError) as error:
            if not self._without:
                self.notes.append(f"note: some examples begin with the decoded first frame: {error}")
            self._without.add(key)
            return None

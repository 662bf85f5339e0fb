"""One input, made into latents on the spot: what a run needs to answer about a picture that no store holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..pipeline.config import DeviceName
from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, ImageError
from ..pipeline.keys import key_of_bytes
from ..pipeline.recipe import Recipe
from .cosmos import CosmosWorld
from .images import read_input_file, to_image
from .kinds import KINDS, Loaded
from .preview import answer_picture
from .world import WORLDLET, resolve_world

_log = logging.getLogger(__name__)


class LiveWorld:
    """A world model loaded for one recipe."""

    def __init__(self, world: CosmosWorld, recipe: Recipe, *, fps: float) -> None:
        """
        Args:
            fps: video frames per second of what the world model was trained on.
        """
        self.world = world
        self.recipe = recipe
        self.fps = recipe.fps or fps
        self._kind = KINDS[recipe.kind]

    @classmethod
    def for_recipe(cls, recipe: Recipe, *, world: str | None = None, device: DeviceName = "auto") -> LiveWorld:
        """Load the world model a recipe names.

        Args:
            world: where it lies; by default the Hub id in the recipe, or the embedded worldlet.
        Raises:
            ConfigError: the weights found are not the recipe's, or the recipe has a prompt.
            WorldModelError: they cannot be found or loaded.
        """
        if recipe.prompt is not None or recipe.negative_prompt is not None:
            raise ConfigError("this run was trained on prompted rollouts; a prompt needs precompute and its guardrail")
        name = world or recipe.world.removeprefix("hub:") if world or recipe.world.startswith("hub:") else WORLDLET
        source = resolve_world(name)
        if source.identity != recipe.world:
            raise ConfigError(
                f"the run was trained on rollouts of {recipe.world}, and {name} is {source.identity}. "
                "Name the world model it was trained on with --world"
            )
        loaded = CosmosWorld.load(source.folder, device=str(resolve_device(device)), compute_dtype=recipe.compute_dtype)
        return cls(loaded, recipe, fps=float(source.card.fps))

    def roll_out(self, file: Path) -> Float[Tensor, "1 C T H W"]:
        """Standardised latents of one image file, or of one video for recipes of kind frames, as precompute would
        make them, before they are rounded for storage.

        Raises:
            ImageError: the file cannot be used.
        """
        content, loaded = self._load(file)
        if loaded.note:
            _log.warning("%s is %s", file, loaded.note)
        return self._kind.latents(self.world, loaded.pixels.unsqueeze(0), [key_of_bytes(content)], self.recipe).cpu()

    def save_answer(
        self,
        file: Path,
        latents: Float[Tensor, "1 C T H W"],
        question: str,
        answers: Sequence[tuple[str, float | None]],
        path: Path,
    ) -> None:
        """A picture of the image or first video frame, the decoded latents, the question and the answers to it."""
        _, loaded = self._load(file)
        video, seconds = self.world.decode(latents)[0], self.recipe.stride / self.fps
        answer_picture(to_image(loaded.first), video, question, answers, frame_seconds=seconds).save(path, format="PNG")

    def _load(self, file: Path) -> tuple[bytes, Loaded]:
        content = read_input_file(file, max_bytes=self._kind.max_bytes)
        try:
            return content, self._kind.load(content, self.recipe, str(file))
        except ImageError as error:
            if error.reason != "format":
                raise
            takes = self._kind.takes
            raise ImageError("format", f"{error}. This run was trained on {takes}s: ask it about {takes}s") from error

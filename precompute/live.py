"""One image, rolled out on the spot: what a run needs to answer about a picture that no store holds."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ..pipeline.config import DeviceName
from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError
from ..pipeline.keys import key_of_bytes
from ..pipeline.recipe import Recipe
from .cosmos import CosmosWorld
from .images import decode_image, fit_image, load_image, read_image_file
from .preview import contact_sheet
from .world import WORLDLET, resolve_world


class LiveWorld:
    """A world model loaded for one recipe."""

    def __init__(self, world: CosmosWorld, recipe: Recipe) -> None:
        self.world = world
        self.recipe = recipe

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
        return cls(loaded, recipe)

    def roll_out(self, image: Path) -> Float[Tensor, "1 C T H W"]:
        """Standardised latents of one image file, as precompute would make them, before they are rounded for storage.

        Raises:
            ImageError: the file cannot be used.
        """
        content = read_image_file(image)
        recipe = self.recipe
        pixels = load_image(content, recipe.height, recipe.width, recipe.fit, source=str(image))
        return self.world.rollout(pixels.unsqueeze(0), [key_of_bytes(content)], recipe).cpu()

    def save_preview(self, image: Path, latents: Float[Tensor, "1 C T H W"], path: Path) -> None:
        """A PNG strip: the image, then the last video frame of each predicted latent frame."""
        recipe = self.recipe
        shown = fit_image(
            decode_image(read_image_file(image), source=str(image)), recipe.height, recipe.width, recipe.fit
        )
        contact_sheet([shown], self.world.decode(latents)).save(path)

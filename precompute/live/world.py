"""Roll out inputs that no store holds, such as the picture of a question that was just asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.latents.keys import key_of_bytes
from ...pipeline.latents.recipe import Recipe, recipe_of_draw
from ...pipeline.latents.world_model import WorldModel
from ...pipeline.machine import DeviceName, resolve_device
from ...pipeline.progress import Progress
from ...pipeline.store.folder import PROMPT, LatentStore
from ..preview.latent_decoder import LatentDecoder, place_of, require_pictures, require_rules, require_weights
from ..preview.room import require_room_to_roll_out
from ..rollout.batch import latents_of_batch
from ..rollout.kinds import KINDS
from ..worlds.family import require_ability, settings_of
from ..worlds.network.offloading import load_or_offload
from ..worlds.prompts import embed_prompts, load_prompt_embeddings
from ..worlds.source import find_family, resolve_world
from ..worlds.text_embeddings import TextEmbeddings


def require_noise(recipe: Recipe, world: str | None) -> None:
    """Refuse several draws of a world model that has one future, before anything is loaded.

    Raises:
        ConfigError: it draws no noise.
    """
    family = find_family(place_of(recipe, world))
    settings = settings_of(family)
    if settings is not None and not settings.noise:
        raise ConfigError(
            f"--draws: {family.title} draws no noise: an image has one future, and all its draws would be equal. Leave "
            "it out"
        )


class LiveWorld(LatentDecoder):
    """A world model loaded for one recipe."""

    def __init__(
        self,
        world: WorldModel,
        recipe: Recipe,
        *,
        fps: float,
        name: str = "",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            fps: video frames per second of what the world model was trained on. name: for people.
            device: where it computes, in torch's words.
            progress: where warnings of inputs go; None is `Progress.to_logger()`.
        """
        super().__init__(world, recipe, fps=fps, name=name, device=device, progress=progress)
        self.world = world
        self._texts: Callable[[Sequence[str]], TextEmbeddings] | None = None
        """The prompts of keys, where each sample has its own."""

    @classmethod
    def for_recipe(
        cls,
        recipe: Recipe,
        *,
        world: str | None = None,
        device: DeviceName = "auto",
        text: TextEmbeddings | None = None,
        memory: float | None = None,
        progress: Progress | None = None,
    ) -> LiveWorld:
        """Load the world model a recipe names.

        Args:
            world: where it lies; by default the Hub id in the recipe, or the embedded worldlet.
            text: the recipe's prompt embeddings, where it has a prompt.
            memory: plan for a GPU of so many GiB; None is what is free on the device.
            progress: where warnings of inputs go; None is `Progress.to_logger()`.
        Raises:
            ConfigError: the weights found, or this release's rules, are not the recipe's; or the recipe has a prompt
                and no `text` is given.
            WorldModelError: they cannot be found or loaded.
        """
        prompted = recipe.prompt is not None or recipe.negative_prompt is not None
        if prompted and text is None:
            raise ConfigError(
                "these latents were made with a prompt, and a prompt needs precompute and its guardrail. Only what "
                f"a store keeps of it ({PROMPT}) could be used without them, and there is none here"
            )
        name = place_of(recipe, world)
        source = resolve_world(name, with_text=prompted or recipe.prompts == "sample", progress=progress)
        require_weights(recipe, name, source.identity)
        require_rules(recipe, source)
        require_room_to_roll_out(source, recipe, device, memory=memory, progress=progress)
        where = str(resolve_device(device))
        text = text or embed_prompts(source.folder, recipe, source.family.text)
        load = partial(source.family.load, source.folder, compute_dtype=recipe.compute_dtype, text=text)
        loaded = load_or_offload(lambda device: load(device=device), where, progress or Progress.to_logger())
        live = cls(loaded, recipe, fps=float(source.card.fps), name=source.name, device=where, progress=progress)
        live.knows_scenes_alone = source.knows_scenes_alone
        return live

    @classmethod
    def for_store(
        cls,
        store: LatentStore,
        *,
        world: str | None = None,
        device: DeviceName = "auto",
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> LiveWorld:
        """Load the world model a store was made with, and the prompt embeddings it keeps; raises as `for_recipe`."""
        del steps  # all are rolled out
        is_kept = PROMPT in store.place.names("")
        text = TextEmbeddings.load_from(store.place, PROMPT) if is_kept else None
        live = cls.for_recipe(store.recipe, world=world, device=device, text=text, progress=progress)
        if store.recipe.prompts == "sample":
            prompts, negative = store.prompts(), text.negative if text else None
            live._texts = lambda keys: load_prompt_embeddings(store.place, [prompts[key] for key in keys], negative)
        return live

    def roll_out(self, file: Path, *, draw: int | None = None) -> Float[Tensor, "1 C T H W"]:
        """Standardised latents of one image file, or of one video for recipes of kind frames, as precompute would
        make them, before they are rounded for storage.

        Args:
            draw: as of `roll_out_batch`.
        Raises:
            ImageError: the file cannot be used.
            ConfigError: a draw of a recipe that has none.
        """
        if self.recipe.prompts == "sample":
            raise ConfigError(
                "this run was trained on latents that each had a prompt of their own, and a picture alone has none"
            )
        content, loaded = self.load(file)
        return self.roll_out_batch([loaded.pixels], [key_of_bytes(content)], size=1, draw=draw)

    def roll_out_batch(
        self, pixels: Sequence[Tensor], keys: Sequence[str], *, size: int, draw: int | None = None
    ) -> Tensor:
        """Latents (B, C, T, H, W) of loaded inputs, with the bits that a worker with batches of `size` gives them.

        Args:
            draw: which other future, from 0, which is the recipe's own or first one; None is what the recipe says.
        """
        text = self._texts(keys) if self._texts is not None else None
        recipe = self.recipe if draw is None else recipe_of_draw(self.recipe, draw)
        return latents_of_batch(KINDS[recipe.kind], self.world, pixels, keys, recipe, size, text=text)


class LazyRollout:
    """One input, looked at as far as is asked: encoded by the autoencoder alone, rolled out by the whole world model,
    which is loaded when it is first wanted."""

    def __init__(
        self,
        recipe: Recipe,
        file: Path,
        *,
        world: str | None = None,
        device: DeviceName = "auto",
        memory: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            recipe, world, device, memory, progress: as of `LiveWorld.for_recipe`.
            file: an image, or what else the recipe's kind takes.
        """
        self._recipe, self._file = recipe, file
        self._world = world
        self._device: DeviceName = device
        self._memory = memory
        self._progress = progress or Progress.to_logger()
        self._viewer: LatentDecoder | None = None
        self._live: LiveWorld | None = None

    @property
    def viewer(self) -> LatentDecoder:
        """What decodes the latents that were seen last."""
        assert self._live or self._viewer, "nothing was seen yet"
        return self._live or self._viewer  # type: ignore[return-value]

    def require_pictures(self) -> None:
        """Refuse a world model that decodes nothing, before anything is rolled out for a picture.

        Raises:
            ConfigError: it decodes nothing.
        """
        require_pictures(self._recipe, "no picture of this question")
        require_ability(find_family(place_of(self._recipe, self._world)), "decode", "no picture of this rollout")

    def require_draws(self) -> None:
        """Refuse several draws where there is one future, before anything is rolled out; raises as `require_noise`."""
        require_noise(self._recipe, self._world)
        recipe_of_draw(self._recipe, 0)

    def see_draw(self, steps: int, draw: int) -> Float[Tensor, "1 C T H W"]:
        """The observed frame and so many steps of one of the possible futures; draw 0 is the recipe's own.

        Raises:
            ImageError: the file cannot be used.
            ConfigError, WorldModelError: as `LiveWorld.for_recipe`.
        """
        return self._load_live().roll_out(self._file, draw=draw)[:, :, : 1 + steps]

    def see(self, steps: int) -> Float[Tensor, "1 C T H W"]:
        """The observed frame and so many steps of the recipe's rollout, which is made where there are any.

        Raises:
            ImageError: the file cannot be used.
            ConfigError, WorldModelError: as `LiveWorld.for_recipe`.
        """
        if steps == 0 and self._recipe.traits.begins_with_encoding and self._live is None:
            if self._viewer is None:
                self._viewer = LatentDecoder.for_recipe(
                    self._recipe,
                    world=self._world,
                    device=self._device,
                    memory=self._memory,
                    progress=self._progress,
                )
            return self._viewer.encode(self._file)
        return self._load_live().roll_out(self._file)[:, :, : 1 + steps]

    def _load_live(self) -> LiveWorld:
        if self._live is None:
            self._live = LiveWorld.for_recipe(
                self._recipe,
                world=self._world,
                device=self._device,
                memory=self._memory,
                progress=self._progress,
            )
        return self._live

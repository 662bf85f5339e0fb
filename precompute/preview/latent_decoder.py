"""Decode latents to pictures with the autoencoder alone: 0.5 GB, where a whole world model has 4 to 32 GB."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...pipeline.device_memory import PeakMemory, wrong_estimate
from ...pipeline.errors import ConfigError, ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.images.decode import read_input_file
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ...pipeline.latents.time_axis import label_frames
from ...pipeline.latents.world_model import Autoencoder, Encoder
from ...pipeline.machine import DeviceName, resolve_device
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..inputs.sandbox import shared_decoder
from ..media.images import to_image
from ..rollout.kind import Loaded
from ..rollout.kinds import KINDS
from ..worlds.memory import Memory
from ..worlds.scene_look import MEANS_NOTHING, is_scene
from ..worlds.source import WORLDLET, WorldSource, find_autoencoder, resolve_world
from .drawing import to_frames
from .room import require_room_to_decode
from .terminal import show_frames

_SAME = 0.1
"""Of the latents' own size: rounding and devices make a hundredth, another autoencoder more than all of it."""


class LatentDecoder:
    """A world model's autoencoder, loaded for the latents of one recipe.

    Attributes:
        recipe: of the latents.
        fps: video frames per second of theirs.
        name: the world model, for people.
        device: where it computes, in torch's words.
        notes: what a person should know of the pictures.
        asks_guardrail: whether the world model's licence asks for a guardrail, which decoded frames then pass, too.
        knows_scenes_alone: whether the world model was trained on our scenes, so that photographs mean nothing to it.
    """

    def __init__(
        self,
        autoencoder: Encoder,
        recipe: Recipe,
        *,
        fps: float,
        name: str = "",
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            fps: video frames per second of what the world model was trained on.
            progress: where warnings of inputs go; None is `Progress.to_logger()`.
        """
        self._progress = progress or Progress.to_logger()
        self.autoencoder, self.recipe = autoencoder, recipe
        self.fps = recipe.fps or fps
        self.name, self.device = name, device
        self.notes: tuple[str, ...] = ()
        self._need: Memory | None = None
        self._peak: PeakMemory | None = None
        self.asks_guardrail = self.knows_scenes_alone = False
        self._warned: set[Path] = set()

    @classmethod
    def for_store(
        cls,
        store: LatentStore,
        *,
        world: str | None = None,
        device: DeviceName = "auto",
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> LatentDecoder:
        """Load what decodes a store's latents. Of a family that cannot do with less, the whole world model.

        A folder's identity is that of all its weights. To find it out would mean to read them all, so a folder that is
        named has only to have the store's latent space, until `require_same` holds it against an input; `notes` says
        so.

        Args:
            world: where the world model lies; by default the Hub id in the recipe, or the embedded worldlet.
            steps: rollout steps that are decoded; None is all.
            progress: is told how much memory that takes; None is nobody.
        Raises:
            ConfigError: it is another one, or has another latent space, or the device is too small.
            WorldModelError: it cannot be found or loaded.
        """
        require_pictures(store.recipe, f"no pictures of {store.place.name}")
        name = place_of(store.recipe, world)
        source = find_autoencoder(name)
        identity = source.identity or (resolve_world(name).identity if name == WORLDLET else "")
        if identity:
            require_weights(store.recipe, name, identity)
        elif (space := source.latent_spec()) != store.spec:
            raise ConfigError(
                f"{store.place} was made in another latent space ({store.spec.channels} channels) than that of "
                f"{source.folder} ({space.channels} channels, or other means and deviations): it would decode to "
                "noise. Name the world model it was made with: --world PATH"
            )
        source.require("decode", f"no pictures of {store.place.name}")
        need = require_room_to_decode(source, store.recipe, device, steps=steps, progress=progress)
        where = str(resolve_device(device))
        peak = PeakMemory(where)
        loaded = source.load_autoencoder(device=where)
        viewer = cls(loaded, store.recipe, fps=float(source.card.fps), name=source.name, device=where)
        viewer._need, viewer._peak = need, peak
        viewer.knows_scenes_alone = source.knows_scenes_alone
        if source.family.text is not None and source.family.text.guardrail:
            viewer.asks_guardrail = store.recipe.world != resolve_world(WORLDLET).identity  # which is ours
        if not identity:
            viewer.notes = (
                f"note: decoded by the VAE in {source.folder}, which has the store's latent space; that it is the very "
                "one the store was made with was not checked, which would mean reading the whole world model",
            )
        return viewer

    @torch.inference_mode()
    def require_same(self, first: Float[Tensor, "3 height width"], latents: Float[Tensor, "1 C T H W"]) -> None:
        """Where it is not known yet whether this is the store's autoencoder: it must encode an input to its latents.

        Args:
            first: the input's first picture, float32 in [-1, 1].
            latents: what the store holds of it.
        Raises:
            ConfigError: it encodes it to something else.
        """
        if not self.notes:
            return
        kept = latents[:, :, :1].float()
        apart = (self.autoencoder.encode(first[None].to(self.device)).float().cpu() - kept).square().mean().sqrt()
        if apart > _SAME * kept.square().mean().sqrt():
            raise ConfigError(
                f"the VAE of {self.name} encodes an input to other latents than the store has of it, so it would "
                "decode them to other pictures. Name the world model they were made with: --world PATH"
            )
        self.notes = ()

    @classmethod
    def for_recipe(
        cls,
        recipe: Recipe,
        *,
        world: str | None = None,
        device: DeviceName = "auto",
        memory: float | None = None,
        progress: Progress | None = None,
    ) -> LatentDecoder:
        """Load what encodes inputs as a recipe says; a folder's weights are all read once, to know that they are its.

        Args:
            world: where it lies; by default the Hub id in the recipe, or the embedded worldlet.
            memory: plan for a GPU of so many GiB; None is what is free on the device.
            progress: where warnings of inputs go; None is `Progress.to_logger()`.
        Raises:
            ConfigError: the weights found, or this release's rules, are not the recipe's.
            WorldModelError: they cannot be found or loaded.
        """
        name = place_of(recipe, world)
        source = find_autoencoder(name)
        require_weights(recipe, name, source.identity or _whole_identity(recipe, name))
        require_rules(recipe, source)
        require_room_to_decode(source, recipe, device, steps=0, memory=memory, progress=progress)
        where = str(resolve_device(device))
        autoencoder = source.load_autoencoder(device=where)
        viewer = cls(autoencoder, recipe, fps=float(source.card.fps), name=source.name, device=where, progress=progress)
        viewer.knows_scenes_alone = source.knows_scenes_alone
        return viewer

    def memory_note(self) -> str | None:
        """Where the estimate of memory was far off on a GPU: both numbers."""
        measured = self._peak.measured() if self._peak else None
        return None if measured is None or self._need is None else wrong_estimate(self._need.total, measured)

    @property
    def spec(self) -> LatentSpec:
        """The space the latents live in."""
        return self.autoencoder.spec

    def load(self, file: Path) -> tuple[bytes, Loaded]:
        """A file's content and its pixels, decoded as precompute does, in a process of its own, which a broken file
        may end.

        Raises:
            ImageError: it cannot be used.
        """
        kind = KINDS[self.recipe.kind]
        content = read_input_file(file, max_bytes=kind.max_bytes)
        try:
            loaded = shared_decoder().load(content, self.recipe, self.spec, str(file))
        except ImageError as error:
            if error.reason != FailureReason.FORMAT:
                raise
            message = f"{error}. This run was trained on {kind.takes}s: ask it about {kind.takes}s"
            raise ImageError(FailureReason.FORMAT, message) from error
        for note in loaded.notes:
            self._progress.warn(f"{file}: {note}")
        if file not in self._warned and not self.is_known(np.asarray(to_image(loaded.first))):
            self._warned.add(file)
            self._progress.warn(f"warning: {MEANS_NOTHING.format(these=f'{file} is none of them')}")
        return content, loaded

    def is_known(self, picture: NDArray[np.uint8]) -> bool:
        """Whether the world model can mean something by its predictions for an input: the worldlet knows scenes alone.

        Args:
            picture: (height, width, 3), the input's first.
        """
        if not (self.knows_scenes_alone and self.recipe.traits.predicts):
            return True
        return is_scene(picture)

    def encode(self, file: Path) -> Float[Tensor, "1 C 1 H W"]:
        """Standardised latents of one image file, float32 on the CPU: the first frame of its rollout."""
        _, loaded = self.load(file)
        return self.autoencoder.encode(loaded.pixels[None]).float().cpu()

    @property
    def has_pictures(self) -> bool:
        """Whether these latents can be decoded at all."""
        return isinstance(self.autoencoder, Autoencoder) and not self.recipe.traits.is_hidden

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "1 C T H W"]) -> Float[Tensor, "3 F height width"]:
        """Video in [-1, 1], on the CPU, of the latents of one input; raises as `decode_clips`."""
        return self.decode_clips(latents[:, :, : self.recipe.traits.pictures(latents.shape[2])])[0]

    @torch.inference_mode()
    def decode_clips(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B 3 F height width"]:
        """Videos in [-1, 1], on the CPU, of latents that follow one another in time.

        Raises:
            ConfigError: the world model decodes none, or they are hidden states.
        """
        require_pictures(self.recipe, "these latents cannot be decoded")
        if not isinstance(self.autoencoder, Autoencoder):
            raise ConfigError(f"latents of {self.name} have no pictures: this world model decodes none")
        return self.autoencoder.decode(latents.to(self.device)).float().cpu()

    def show(self, latents: Float[Tensor, "1 C T H W"], terminal: TextIO) -> None:
        """The rollout in a terminal, as far as it is wide: the observed frame, the last, and some between."""
        if not self.recipe.traits.is_clip:  # views and draws do not follow one another
            return
        if self.recipe.traits.is_hidden:
            terminal.write("no picture: there is no picture of hidden states\n")
            return
        if not self.has_pictures:
            terminal.write(f"no picture: {self.name} decodes no latents\n")
            return
        frames = to_frames(self.decode(latents)[None, :, :: self.spec.temporal_stride])[0]
        show_frames(frames, label_frames(self.recipe, self.spec, self.fps, len(frames)), terminal)


def place_of(recipe: Recipe, world: str | None) -> str:
    """Where the world model of a recipe is: the place that the user named, the Hub, or the package."""
    return world or (recipe.world.removeprefix("hub:") if recipe.world.startswith("hub:") else WORLDLET)


def require_weights(recipe: Recipe, name: str, identity: str) -> None:
    """Refuse another world model than the recipe's.

    Raises:
        ConfigError: it is another one.
    """
    if identity != recipe.world:
        raise ConfigError(
            f"these latents are of the weights {recipe.world}, and {name} is {identity}. "
            "Name the world model they were made with: --world PATH"
        )


def require_rules(recipe: Recipe, source: WorldSource) -> None:
    """Refuse a recipe of other rules than this release has.

    Raises:
        ConfigError: its latents were made by another version of engine or pixels.
    """
    kind = KINDS[recipe.kind]
    for what, stated, actual in (
        ("engine", recipe.engine, source.family.engine),
        (f"{kind.takes} rules", recipe.image_rules, kind.rules),
    ):
        if stated != actual:
            raise ConfigError(
                f"these latents were made by version {stated} of the {what}, this theworld has version {actual}: it "
                "makes others by design. Use the release that made them"
            )


def _whole_identity(recipe: Recipe, name: str) -> str:
    prompted = recipe.prompt is not None or recipe.negative_prompt is not None or recipe.prompts == "sample"
    return resolve_world(name, with_text=prompted).identity


def require_pictures(recipe: Recipe, what: str) -> None:
    """Refuse to draw latents that are no pictures.

    Args:
        what: is wanted, for the message.
    Raises:
        ConfigError: they are hidden states.
    """
    if recipe.traits.is_hidden:
        raise ConfigError(
            f"{what}: there is no picture of hidden states. For pictures, precompute the same inputs as --kind rollout"
        )

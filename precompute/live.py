"""One input, made into latents on the spot: what a run needs to answer about a picture that no store holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..pipeline.config import DeviceName
from ..pipeline.device import resolve_device
from ..pipeline.errors import ConfigError, ImageError
from ..pipeline.keys import key_of_bytes
from ..pipeline.recipe import Recipe
from ..pipeline.store import PROMPT, LatentStore
from ..pipeline.time_axis import is_clip
from ..pipeline.world import WorldModel
from .batch import make_batch
from .decoder import shared_decoder
from .drawing import to_frames
from .images import read_input_file, to_image
from .kinds import KINDS, Loaded
from .preview import answer_picture
from .terminal import show_frames
from .text import TextEmbeddings, embed_prompts, load_each
from .world import WORLDLET, resolve_world

_log = logging.getLogger(__name__)


class LiveWorld:
    """A world model loaded for one recipe."""

    def __init__(self, world: WorldModel, recipe: Recipe, *, fps: float, name: str = "", device: str = "cpu") -> None:
        """
        Args:
            fps: video frames per second of what the world model was trained on. name: for people.
            device: where it computes, in torch's words.
        """
        self.name, self.device = name, device
        self.world = world
        self.recipe = recipe
        self.fps = recipe.fps or fps
        self._texts: Callable[[Sequence[str]], TextEmbeddings] | None = None
        """The prompts of keys, where each sample has its own."""
        self._kind = KINDS[recipe.kind]

    @classmethod
    def for_recipe(
        cls, recipe: Recipe, *, world: str | None = None, device: DeviceName = "auto", text: Path | None = None
    ) -> LiveWorld:
        """Load the world model a recipe names.

        Args:
            world: where it lies; by default the Hub id in the recipe, or the embedded worldlet.
            text: file of the recipe's prompt embeddings, where it has a prompt.
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
        name = world or recipe.world.removeprefix("hub:") if world or recipe.world.startswith("hub:") else WORLDLET
        source = resolve_world(name, with_text=prompted or recipe.prompts == "sample")
        if source.identity != recipe.world:
            raise ConfigError(
                f"these latents are of the weights {recipe.world}, and {name} is {source.identity}. "
                "Name the world model they were made with: --world PATH"
            )
        for what, stated, here in (
            ("engine", recipe.engine, source.family.engine),
            (f"{KINDS[recipe.kind].takes} rules", recipe.image_rules, KINDS[recipe.kind].rules),
        ):
            if stated != here:
                raise ConfigError(
                    f"these latents were made by version {stated} of the {what}, this theworld has version {here}: it "
                    "makes others by design. Use the release that made them"
                )
        where = str(resolve_device(device))
        embeddings = TextEmbeddings.load(text) if text else embed_prompts(source.folder, recipe, source.family.text)
        loaded = source.family.load(
            source.folder,
            device=where,
            compute_dtype=recipe.compute_dtype,
            text=embeddings,
        )
        return cls(loaded, recipe, fps=float(source.card.fps), name=source.name, device=where)

    @classmethod
    def for_store(cls, store: LatentStore, *, world: str | None = None, device: DeviceName = "auto") -> LiveWorld:
        """Load the world model a store was made with, and the prompt embeddings it keeps; raises as `for_recipe`."""
        text = store.path / PROMPT
        live = cls.for_recipe(store.recipe, world=world, device=device, text=text if text.is_file() else None)
        if store.recipe.prompts == "sample":
            prompts, negative = store.prompts(), TextEmbeddings.load(text).negative if text.is_file() else None
            live._texts = lambda keys: load_each(store.path, [prompts[key] for key in keys], negative)
        return live

    def roll_out(self, file: Path) -> Float[Tensor, "1 C T H W"]:
        """Standardised latents of one image file, or of one video for recipes of kind frames, as precompute would
        make them, before they are rounded for storage.

        Raises:
            ImageError: the file cannot be used.
        """
        if self.recipe.prompts == "sample":
            raise ConfigError(
                "this run was trained on latents that each had a prompt of their own, and a picture alone has none"
            )
        content, loaded = self._load(file)
        if loaded.note:
            _log.warning("%s is %s", file, loaded.note)
        return self.roll_out_batch([loaded.pixels], [key_of_bytes(content)], size=1)

    def roll_out_batch(self, pixels: Sequence[Tensor], keys: Sequence[str], *, size: int) -> Tensor:
        """Latents (B, C, T, H, W) of loaded inputs, with the bits that a worker with batches of `size` gives them."""
        text = self._texts(keys) if self._texts is not None else None
        return make_batch(self._kind, self.world, pixels, keys, self.recipe, size, text=text)

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
        self.draw_answer(loaded.first, latents, question, answers).save(path, format="PNG")

    def draw_answer(
        self,
        first: Tensor | None,
        latents: Float[Tensor, "1 C T H W"],
        question: str,
        answers: Sequence[tuple[str, float | None]],
    ) -> Image.Image:
        """The same picture of an input that was loaded; without one (None), the decoded first frame stands in."""
        video = self.decode(latents)
        return answer_picture(
            to_image(video[:, 0].clamp(-1, 1) if first is None else first),
            video,
            question,
            answers,
            frame_seconds=self.recipe.stride / self.fps,
            temporal_stride=self.world.spec.temporal_stride,
        )

    def show(self, latents: Float[Tensor, "1 C T H W"], terminal: TextIO) -> None:
        """The rollout in a terminal, as far as it is wide: the observed frame, the last, and some between."""
        if not is_clip(self.recipe.kind):  # views and draws do not follow one another
            return
        stride = self.world.spec.temporal_stride
        frames = to_frames(self.decode(latents)[None, :, ::stride])[0]
        seconds = stride * self.recipe.stride / self.fps
        show_frames(frames, ["now", *(f"+{n * seconds:.2f} s" for n in range(1, len(frames)))], terminal)

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "1 C T H W"]) -> Tensor:
        """(3, F, height, width) in [-1, 1], on the CPU."""
        if self.recipe.kind == "posterior":  # a log-variance is no picture
            latents = latents[:, :, :1]
        return self.world.decode(latents.to(self.device))[0].float().cpu()

    def _load(self, file: Path) -> tuple[bytes, Loaded]:
        """Decoded as precompute does, in a process of its own, which a broken file may end."""
        content = read_input_file(file, max_bytes=self._kind.max_bytes)
        try:
            return content, shared_decoder().load(content, self.recipe, self.world.spec, str(file))
        except ImageError as error:
            if error.reason != "format":
                raise
            takes = self._kind.takes
            raise ImageError("format", f"{error}. This run was trained on {takes}s: ask it about {takes}s") from error

"""What all kinds of recipe share: an input that is ready, and the questions that each kind answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ...pipeline.latents.world_model import WorldModel
from ..media.video_times import Window
from ..worlds.source import WorldSource


@dataclass(frozen=True, slots=True)
class Loaded:
    """One input, ready for the world model."""

    pixels: Tensor
    """Float32 in [-1, 1]: (3, height, width) of an image, (3, F, height, width) of a video or of several views."""
    notes: tuple[str, ...] = ()
    """What was done with the input, or could not be, that a person should know. Each is counted over the inputs of a
    job and printed behind their number: `3 videos: turned upright`."""
    rate: float | None = None
    """Of a video: frames a second of the file, on average."""

    @property
    def first(self) -> Tensor:
        """The image, or the first frame or view, (3, height, width)."""
        return self.pixels if self.pixels.ndim == 3 else self.pixels[:, 0]


class Kind(Protocol):
    """One kind of recipe: its input files, its work, and the words for both."""

    takes: str
    """Noun for one input, such as `image`."""
    makes: str
    """Plural noun for the results."""
    doing: str
    phase: str
    """Name of the work in shard records and, as a `FailureReason`, in the ledger."""
    suffixes: frozenset[str]
    max_bytes: int
    """Largest input file."""
    rules: int
    """Version of the rules that turn a file into pixels."""
    batch: tuple[int, int]
    """The largest batch by default, on a CPU and on a GPU; of large pictures it is smaller (batch_size.py)."""

    def check(self, recipe: Recipe, world: WorldSource) -> None:
        """Raise ConfigError where this world model cannot make the recipe's latents."""
        ...

    def describe(self, recipe: Recipe, world: WorldSource) -> str:
        """One line for the plan: what is made of one input."""
        ...

    def load(
        self, content: bytes, recipe: Recipe, spec: LatentSpec, source: str, window: Window | None = None
    ) -> Loaded:
        """Pixels from the bytes of a file.

        Args:
            spec: latent space of the world model; it states how many video frames one latent frame covers.
            source: the file's name in error messages.
            window: of a video, where it is read: a clip begins there, and an image is the frame at its start. None is
                the video from its first frame on, or an image file.
        Raises:
            ImageError: it cannot be used.
        """
        ...

    def latents(self, world: WorldModel, batch: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        """Standardised float32 latents (B, C, T, H, W) of the pixels of several inputs."""
        ...

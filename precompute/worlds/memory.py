"""How much memory a world model takes, by the estimate of its own family. Loads no torch.

An estimate comes from configs and shapes alone, before any weights are there. Of a family that says nothing, nothing
is known, and a plan says that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from ...pipeline.errors import WorldModelError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.messages import format_bytes
from .arithmetic import is_plain
from .family import Configs, WorldFamily

SHARE_OF_ALL = 0.5
"""Of a GPU's memory that networks which take turns may take together to stay there; the rest is for the clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes at the moment that takes most."""

    weights: int
    """Of the parts that are on the device, in the dtypes they compute in: of all that are loaded, but for networks that
    take turns, of which one is there."""
    computed: int
    """Activations."""
    during: str
    """What takes most: encoding, the forward, decoding."""
    offloadable: int = 0
    """Of the weights: all but two blocks of the network, which `--offload` leaves in main memory; 0: it cannot."""
    taking_turns: tuple[int, ...] = ()
    """Weights of networks that take turns. One of them is in `weights`; the others, too, on a device that has room."""

    @classmethod
    def at_most(cls, weights: int, stages: Mapping[str, int], *, offloadable: int = 0) -> Memory:
        """The memory of stages that follow one another: the largest one decides."""
        during = max(stages, key=lambda name: stages[name])
        return cls(weights=weights, computed=stages[during], during=during, offloadable=offloadable)

    def offloaded(self) -> Memory:
        """With `--offload`: of each network two blocks are on the device, and what is outside of its blocks."""
        return replace(self, weights=self.weights - self.offloadable, offloadable=0, taking_turns=())

    def on(self, limit: float | None) -> Memory:
        """On a device of so many bytes: networks that take turns all stay where they take at most half of it.

        Args:
            limit: None is no limit, or one that is not known.
        """
        together = sum(self.taking_turns)
        if not self.taking_turns or (limit is not None and together > SHARE_OF_ALL * limit):
            return self
        return replace(self, weights=self.weights + together - max(self.taking_turns), taking_turns=())

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.computed

    def describe(self) -> str:
        """In a few words."""
        parts = f"{format_bytes(self.weights)} weights, {format_bytes(self.computed)} activations in {self.during}"
        return f"{format_bytes(self.total)} ({parts})"


@runtime_checkable
class HasMemoryEstimate(Protocol):
    """Optional for a family: how much memory its engine takes. Without it a plan says that memory is not known."""

    def memory_of_batch(self, configs: Configs, recipe: Recipe, batch: int) -> Memory:
        """The most that the latents of a batch take, all weights loaded.

        A config that describes no such model may raise WorldModelError, LookupError, TypeError or ValueError.
        """
        ...

    def memory_of_decoding(self, configs: Configs, frames: int, height: int, width: int) -> Memory:
        """The most that decoding a clip takes, with the autoencoder's weights alone; raises as `memory_of_batch`.

        Args:
            frames: of its latents. height, width: in pixels.
        """
        ...


def memory_of_batch(
    family: WorldFamily,
    configs: Configs,
    recipe: Recipe,
    batch: int,
    *,
    limit: float | None = None,
    offload: bool = False,
) -> Memory | None:
    """The most that the latents of a batch take; None where it is not known.

    Args:
        limit: bytes of the device, on which it depends whether networks take turns; None is not known.
        offload: whether weights stay in main memory.
    """
    if not isinstance(family, HasMemoryEstimate):
        return None
    need = _memory_or_none(lambda: family.memory_of_batch(_plain(configs), recipe, batch))
    if need is None:
        return None
    return need.offloaded() if offload else need.on(limit)


def memory_of_decoding(family: WorldFamily, configs: Configs, frames: int, height: int, width: int) -> Memory | None:
    """The most that decoding a clip takes; None where it is not known. Arguments are as of `HasMemoryEstimate`."""
    if not isinstance(family, HasMemoryEstimate):
        return None
    return _memory_or_none(lambda: family.memory_of_decoding(_plain(configs), frames, height, width))


def _plain(configs: Configs) -> Configs:
    return {part: config for part, config in configs.items() if is_plain(config)}


def _memory_or_none(say: Callable[[], Memory]) -> Memory | None:
    try:
        return say()
    # a config of no such class: loading says why
    except (WorldModelError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def frames_of_forward(recipe: Recipe) -> int:
    """Latent frames of one joint diffusion."""
    return recipe.chunk_frames or 1 + recipe.steps_of_a_draw * recipe.stride

"""The memory that decoding a store's latents, or one rollout, needs: said, and compared with the device's, before any
weights are loaded. Loads no torch where there is no GPU."""

from __future__ import annotations

from ...pipeline.device_memory import free_memory, name_of, usable
from ...pipeline.errors import ConfigError
from ...pipeline.latents.recipe import Recipe
from ...pipeline.machine import DeviceName, resolve_device
from ...pipeline.messages import format_bytes
from ...pipeline.progress import Progress
from ..worlds.family import read_configs
from ..worlds.memory import Memory, memory_of_batch, memory_of_decoding
from ..worlds.source import WorldSource


def require_room_to_decode(
    source: WorldSource,
    recipe: Recipe,
    device: DeviceName,
    *,
    steps: int | None = None,
    memory: float | None = None,
    progress: Progress | None = None,
) -> Memory | None:
    """Say how much memory decoding takes, by the clip that takes most; None where that is not known.

    Args:
        steps: rollout steps that are decoded; None is all.
        memory: plan for a GPU of so many GiB; None is what is free on the device.
        progress: is told; None is nobody.
    Raises:
        ConfigError: the device is too small.
    """
    last = recipe.rollout_steps if steps is None else steps
    clips = recipe.traits.frames_decoded_together(recipe)
    frames = max(1, *(sum(t <= last for t in clip) + (clip[0] > 0 and len(clip) > 1) for clip in clips))
    need = memory_of_decoding(source.family, read_configs(source.folder), frames, recipe.height, recipe.width)
    what = f"decode {frames} latent frames of {recipe.height}x{recipe.width}"
    advice = "Decode on a CPU (--device cpu)" + (", or fewer --steps" if frames > 1 else "")
    _require(source, need, device, what, advice, memory, progress)
    return need


def require_room_to_roll_out(
    source: WorldSource,
    recipe: Recipe,
    device: DeviceName,
    *,
    memory: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Say how much memory the latents of a single input take; arguments and errors as of `require_room_to_decode`.

    Weights that do not fit will stay in main memory (`load_or_offload`), and then are not counted.
    """
    configs, free = read_configs(source.folder), free_memory(resolve_device(device), memory)
    need = memory_of_batch(source.family, configs, recipe, 1, limit=free)
    if need is not None and free is not None and need.weights > free:
        need = memory_of_batch(source.family, configs, recipe, 1, offload=True)
    what = f"roll out one {recipe.traits.takes} of {recipe.height}x{recipe.width}"
    _require(source, need, device, what, "Use a CPU (--device cpu), or a larger GPU", memory, progress)


def _require(
    source: WorldSource,
    need: Memory | None,
    device: DeviceName,
    what: str,
    advice: str,
    memory: float | None,
    progress: Progress | None,
) -> None:
    if need is None:
        if progress is not None:
            progress.say(f"memory: not known, as the family of {source.name} does not say what it takes")
        return
    where = resolve_device(device)
    free = free_memory(where, memory)
    if free is not None and need.total > usable(free):
        raise ConfigError(
            f"{name_of(where, memory)} is too small for {source.name}: to {what} it needs about {need.describe()}, and "
            f"{format_bytes(usable(free))} of {format_bytes(free)} can be used. {advice}"
        )
    if progress is not None:
        progress.say(f"memory: about {need.describe()} to {what}")

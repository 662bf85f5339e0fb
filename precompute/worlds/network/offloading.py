"""World models larger than a GPU: the weights of the network stay in main memory, and the GPU holds two of its blocks.

While one block computes, diffusers' group offloading copies the next one. The same operations run on the same weights
on the same device, so no bit of a latent changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from ....pipeline.errors import ConfigError, WorldModelError
from ....pipeline.messages import format_amount, format_bytes

if TYPE_CHECKING:
    from torch import nn

    from ....pipeline.latents.world_model import WorldModel
    from ....pipeline.progress import Progress

Offload = Literal["pinned", "mapped"]
"""pinned: the weights are read once into memory that the GPU copies from at full speed. mapped: they stay in their
files, of which the system keeps in memory what it can; each block is read before it is copied, and the GPU waits."""

BLOCKS_ON_GPU = 2
"""One computes, and the next is copied."""
PCIE_4_BYTES_S = 25e9
"""Assumed of a GPU in a PCIe 4.0 x16 slot: 0.8 of the slot's 31.5 GB/s."""


@runtime_checkable
class Offloadable(Protocol):
    """Optional for a world model: its network has blocks that can be copied to the GPU one by one."""

    def offload(self, device: str, *, pinned: bool) -> None:
        """Of a world model loaded on the CPU: put its small parts on the device, and hand its network to
        `offload_blocks`. Called once, before the first rollout."""
        ...


def offload_world(world: WorldModel, device: str, how: Offload) -> None:
    """Have a world model that was loaded on the CPU compute on a device that has no room for its weights.

    Raises:
        ConfigError: its engine has no such blocks.
        RuntimeError: main memory, or the device's, is too small even so.
    """
    if not isinstance(world, Offloadable):
        raise ConfigError(
            f"--offload: {type(world).__name__} has no blocks that could be copied one by one; leave it out"
        )
    world.offload(device, pinned=how == "pinned")


def load_or_offload(load: Callable[[str], WorldModel], device: str, progress: Progress) -> WorldModel:
    """Load a world model on a device; if its weights do not fit there, keep them in main memory, mapped, and say so.

    Args:
        load: returns the world model, its weights on the device that it is given.
    Raises:
        WorldModelError: they do not fit, and its engine has no blocks that could be copied one by one.
    """
    import torch

    try:
        return load(device)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
    torch.cuda.empty_cache()  # here, where the error and what it held on to are gone
    world = load("cpu")
    if not isinstance(world, Offloadable):
        raise WorldModelError(f"the weights do not fit on {device} ({reason}). Use --device cpu, or a larger GPU")
    progress.warn(
        f"note: the weights do not fit on {device} ({reason}). They stay in main memory, and each block is copied when "
        "it computes: the same latents, more slowly"
    )
    offload_world(world, device, "mapped")
    return world


def offload_blocks(network: nn.Module, device: str, *, pinned: bool) -> None:
    """Let a network on the CPU compute on a device, each block copied there for as long as it computes.

    Blocks are the elements of the network's module lists; what is outside of them is copied at the start of a forward
    and stays to its end. On a CPU nothing is copied.

    Args:
        network: its forward calls each block as a module, or the hooks that copy it do not run.
        pinned: copies all blocks into pinned memory now; else each before it is copied to the device.
    """
    import torch
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        network,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        # without a stream of its own, each block would also be copied back, and nothing be copied ahead
        use_stream=not device.startswith("cpu"),
        low_cpu_mem_usage=not pinned,
    )


def copies_text(weight_bytes: int) -> str:
    """What offloading so many bytes of weights costs, for the plan."""
    seconds = format_amount(weight_bytes / PCIE_4_BYTES_S)
    return (
        f"weights stay in main memory: each forward pass copies up to {format_bytes(weight_bytes)} to the GPU, "
        f"{seconds} s at the {PCIE_4_BYTES_S / 1e9:g} GB/s of PCIe 4.0 x16 (computed). "
        "The copies run while blocks compute, so a batch that computes longer hides them"
    )


def bytes_on_gpu(network: nn.Module) -> int:
    """Bytes of an offloaded network's weights that are on the device at one time, at most.

    Args:
        network: on any device; one on the meta device will do.
    """
    from torch import nn

    blocks = [bytes_of(block) for child in network.children() if isinstance(child, nn.ModuleList) for block in child]
    together = [sum(blocks[first : first + BLOCKS_ON_GPU]) for first in range(len(blocks))]
    return bytes_of(network) - sum(blocks) + max(together, default=0)


def bytes_of(module: nn.Module) -> int:
    """Of its weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))

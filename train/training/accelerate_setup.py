"""accelerate for a training: devices, precision and the weights of pieces are ours, the rest is the launcher's."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from ...pipeline.errors import ConfigError
from .inputs import Training


def make_accelerator(training: Training, device: torch.device) -> Accelerator:
    """accelerate as the launcher set it up, except for devices, precision and the weights of pieces, which we set.

    Raises:
        ConfigError: it is set up for another training in this process, or for FSDP 1.
    """
    is_alone, on_cpu = training.ranks.size == 1, device.type == "cpu"
    # the reader is unused without latents
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=training.train_data.images is None)]
    if on_cpu and not is_alone:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    try:
        accelerator = Accelerator(
            cpu=on_cpu and not is_initialized(),  # one process may train on a GPU, and then on the CPU
            device_placement=False,
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a piece has its own weight
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise ConfigError(f"accelerate cannot be set up for this training: {error}") from error
    if accelerator.num_processes != training.ranks.size:
        raise ConfigError(
            f"this process is one of {training.ranks.size} of a training, but accelerate was set up for "
            f"{accelerator.num_processes} in it before. Train in a process of its own"
        )
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise ConfigError("FSDP needs `fsdp_version: 2` in the file for accelerate launch, as in configs/fsdp.yaml")
    return accelerator

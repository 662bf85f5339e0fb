"""Where tensors are computed: from the word a user types to a torch device."""

from __future__ import annotations

import torch

from .config import DeviceName
from .errors import ConfigError


def resolve_device(name: DeviceName) -> torch.device:
    """The device a word stands for; "auto" is a GPU where there is one.

    Raises:
        ConfigError: cuda is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this torch sees no GPU. Use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")

"""Networks that take turns on a device which cannot hold all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..memory import SHARE_OF_ALL


class TakingTurns:
    """One network is on the device, the others wait in host memory; all stay on a GPU that has room for them.

    Their weights stay in host memory, too: making room for the next one copies nothing back.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        """
        Args:
            networks: in host memory. device: that of their inputs.
        """
        self._device = device
        self._host = {network: [value.data for _, _, value in _tensors(network)] for network in networks}
        size = sum(value.nbytes for values in self._host.values() for value in values)
        self._has_room = device.type == "cpu"
        if device.type == "cuda":
            self._has_room = size <= SHARE_OF_ALL * torch.cuda.mem_get_info(device)[1]
        self._on_gpu: list[nn.Module] = []

    def take(self, network: nn.Module) -> None:
        """Have a network on the device, and the others away from it unless there is room."""
        if network in self._on_gpu:
            return
        with torch.inference_mode(mode=False):  # weights made within it could not be used outside
            if not self._has_room:
                for other in self._on_gpu:
                    _set(other, self._host[other])
                self._on_gpu.clear()
            _set(network, [value.to(self._device) for value in self._host[network]])
        self._on_gpu.append(network)


def _tensors(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, name and value of each parameter and buffer, in an order that stays."""
    for module in network.modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield module, name, value


def _set(network: nn.Module, values: Sequence[Tensor]) -> None:
    for (module, name, before), value in zip(list(_tensors(network)), values, strict=True):
        is_parameter = isinstance(before, nn.Parameter)
        setattr(module, name, nn.Parameter(value, requires_grad=False) if is_parameter else value)

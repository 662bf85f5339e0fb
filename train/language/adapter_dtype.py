"""LoRA in the precision of a GPU's matrix units, beside float32 masters.

peft computes float32 adapters in float32: beside a bfloat16 model it widens what each layer gets, keeps that copy for
the backward pass, and multiplies at a fraction of the speed. Here a layer's adapters take what the layer gets, round
their weights for the product, and add it in the model's dtype. Weights, gradients and the optimizer's moments stay
float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...pipeline.errors import ConfigError
from ..config import DtypeName


class RoundedLinear(nn.Linear):
    """A linear layer of float32 weights, whose product is computed in the dtype of its input."""

    @classmethod
    def of(cls, linear: nn.Linear) -> RoundedLinear:
        """The same layer, with the same parameters."""
        assert linear.bias is None, "LoRA is made without a bias"
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight = linear.weight
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        return nn.functional.linear(input, self.weight.to(input.dtype))


def compute_in_model_dtype(model: Any) -> None:
    """Let LoRA of a model compute in the dtype of the layers it is on."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (layer.lora_A, layer.lora_B):
                for name, linear in part.items():
                    part[name] = RoundedLinear.of(linear)  # pyright: ignore[reportArgumentType] - peft puts linears there


def adapter_dtype_of(name: DtypeName, dtype: torch.dtype, device: torch.device) -> DtypeName:
    """What LoRA computes in: by itself bfloat16 beside a bfloat16 model on a GPU, else float32.

    Args:
        dtype: of the frozen model.
    Raises:
        ConfigError: bfloat16 beside a float32 model, whose layers get float32.
    """
    if name == "auto":
        return "bfloat16" if dtype == torch.bfloat16 and device.type == "cuda" else "float32"
    if name == "bfloat16" and dtype != torch.bfloat16:
        raise ConfigError(
            "adapter_dtype = bfloat16 is for a model in bfloat16, and this one is in float32: set dtype = bfloat16, "
            "too, or leave adapter_dtype out"
        )
    return name

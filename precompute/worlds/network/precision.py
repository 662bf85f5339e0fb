"""Float32 products in full precision, whatever torch's settings say.

By default torch lets a GPU round the factors of a float32 convolution to TF32, which has 10 bits: the encoding of a
first frame then differs from a CPU's by about 1e-3. Our latents are made without that, on every device.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

FULL = "ieee"
"""Torch's word for products in full precision; recorded beside each shard."""


@contextmanager
def full_float32() -> Generator[None]:
    """Within this, products of matrices and convolutions in float32 are not rounded to TF32 or bfloat16.

    The settings are of the whole process and come back at the end: a training program may have its own.
    """
    backends: Any = torch.backends
    operations: list[Any] = [
        *(backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul),
        *(backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul),
    ]
    before, matmul = [operation.fp32_precision for operation in operations], torch.get_float32_matmul_precision()
    # both of torch's interfaces to one thing: it refuses to read the older where only the newer was changed
    backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for operation in operations:
        operation.fp32_precision = FULL
    try:
        yield
    finally:
        backends.cudnn.allow_tf32 = before[0] == "tf32"
        torch.set_float32_matmul_precision(matmul)
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision

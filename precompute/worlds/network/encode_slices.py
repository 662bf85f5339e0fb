"""How a batch is encoded: in slices of a fixed number of pixels, since above 224x224 the float32 encoder, not the
transformer, would decide what fits a GPU. Loads no torch."""

from __future__ import annotations

ENCODE_PIXELS = 2**20
"""Pixels that are in the encoder at once: 20 frames of 224x224, 3 of 432x768. Its activations then take about 4 GiB at
the width of Wan's (3.8 KiB a pixel, from the allocations of its shapes). On a GPU another size may change last bits."""
FRAMES_AT_ONCE = 4
"""Of a clip: the causal encoder takes the first frame alone, and then so many. Source: `AutoencoderKLWan._encode`."""
LEAST = 2
"""Samples of a slice, where there are as many: for one alone, convolutions on a CPU sum in another order, while two
have the bits of any number."""


def encode_slices(batch: int, frames: int, height: int, width: int) -> list[tuple[int, int]]:
    """First sample and end of each slice of a batch; all of one size, so that none is rounded otherwise.

    The last slice begins with samples of the one before where the batch is no multiple: their encodings are dropped.

    Args:
        frames, height, width: of a sample, in pixels.
    """
    pixels = min(frames, FRAMES_AT_ONCE) * height * width
    size = min(batch, max(LEAST, ENCODE_PIXELS // pixels))
    return [(min(start, batch - size), min(start, batch - size) + size) for start in range(0, batch, size)]

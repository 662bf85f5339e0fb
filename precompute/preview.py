"""Pictures of rollouts: what a person looks at to believe a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

GAP = 2
"""Pixels between pictures."""
SHORTEST = 96
"""Pictures smaller than this are enlarged by a whole factor, so that a 64 pixel world can be seen."""


def contact_sheet(sources: Sequence[Image.Image], videos: Float[Tensor, "B 3 F height width"]) -> Image.Image:
    """One row per rollout: the source image, then one decoded frame per latent frame (the last of each four).

    Args:
        sources: one per rollout, of the videos' size.
        videos: in [-1, 1].
    """
    frames = videos[:, :, ::4].permute(0, 2, 3, 4, 1)
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    rows = [
        [np.asarray(source.convert("RGB")), *row] for source, row in zip(sources, pixels, strict=True)
    ]
    height, width = rows[0][0].shape[:2]
    scale = max(1, -(-SHORTEST // min(height, width)))
    cell_h, cell_w = height * scale + GAP, width * scale + GAP
    sheet = Image.new("RGB", (cell_w * len(rows[0]) - GAP, cell_h * len(rows) - GAP), (255, 255, 255))
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            tile = Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left * cell_w, top * cell_h))
    return sheet

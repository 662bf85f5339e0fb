"""Values that follow from the number of an update alone: learning rate, rollout steps, seeds.

So a checkpoint holds neither a schedule nor the state of random generators, and no process depends on the draws of
another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..config import TrainConfig


def learning_rate(update: int, total: int, config: TrainConfig) -> float:
    """The learning rate of an update, counted from 0: a line up to the peak, then a cosine down to zero.

    In the first w = ceil(warmup * total) updates it is (update + 1) / (w + 1) of the peak, which update w has. So no
    update has rate zero and learns nothing: neither the first, nor the only one of a training of one update.

    Source: nanoGPT, `get_lr` in train.py, with zero as the rate that the cosine ends at.
    """
    rise = math.ceil(config.warmup * total)
    if update < rise:
        return config.learning_rate * ((update + 1) / (rise + 1))
    progress = (update - rise) / max(1, total - rise)
    return config.learning_rate * (0.5 * (1.0 + math.cos(math.pi * progress)))


def draw_steps(choices: Sequence[int], seed: int, update: int) -> int:
    """The rollout steps that one update reads; the same arguments give the same steps, also after a resume."""
    return choices[int(np.random.default_rng([seed, update]).integers(len(choices)))]


def seed_of(seed: int, update: int, piece: int, rank: int) -> int:
    """The seed of what is drawn in one forward and backward pass: dropout, samples of a posterior."""
    return int(np.random.SeedSequence([seed, update, piece, rank]).generate_state(1, np.uint64)[0])

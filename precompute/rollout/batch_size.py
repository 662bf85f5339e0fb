"""How many samples a batch holds, and how many rows are computed for a run's inputs. Loads no model."""

from __future__ import annotations

import math

from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ..worlds.memory import frames_of_forward
from .kinds import KINDS

TOKENS_A_BATCH = 2**15
"""Of one forward by default, in patches of 2x2 cells. A GPU is busy from about 16 thousand on; more costs memory, and
work that a failure loses: 16 images of 224x224 and 9 latent frames, 2 of 432x768, 1 of 704x1280."""


def default_batch(recipe: Recipe, spec: LatentSpec, *, on_gpu: bool) -> int:
    """The batch size where the user names none: by tokens, a power of two, at most the kind's own."""
    most = KINDS[recipe.kind].batch[on_gpu]
    if not recipe.traits.predicts or recipe.rollout_steps == 0:
        return most  # encoding goes in slices of its own
    fitting = TOKENS_A_BATCH // tokens_of_forward(recipe, spec)
    return min(most, 1 << max(0, fitting.bit_length() - 1))


def tokens_of_forward(recipe: Recipe, spec: LatentSpec) -> int:
    """Tokens of one sample in a joint diffusion: patches of 2x2 cells of all its latent frames."""
    _, _, height, width = spec.sample_shape(recipe.height, recipe.width, 0)
    return frames_of_forward(recipe) * math.ceil(height / 2) * math.ceil(width / 2)


def batch_of_run(requested: int | None, recipe: Recipe, spec: LatentSpec, inputs: int, *, on_gpu: bool) -> int:
    """The batch size of a run: exactly as requested; by default no larger than all its inputs.

    A requested size is kept for fewer inputs, too: the same size gives the same bits, whatever the neighbours.

    Args:
        inputs: of the whole run, the done ones included. So a run that is resumed for its last ones makes them in the
            batches, thus with the bits, that it would have had without the interruption.
    """
    return requested or max(1, min(default_batch(recipe, spec, on_gpu=on_gpu), inputs))


def computed_rows(inputs: int, batch_size: int, samples_a_task: int | None = None) -> int:
    """Rows that are computed for so many inputs: the last batch of each task is filled up with copies.

    Args:
        samples_a_task: of each task but the last; None is one task for all.
    """
    whole, rest = divmod(inputs, samples_a_task or max(1, inputs))
    return (whole * math.ceil((samples_a_task or inputs) / batch_size) + math.ceil(rest / batch_size)) * batch_size

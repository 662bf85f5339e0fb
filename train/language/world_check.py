"""Whether a language model reads world tokens as they are given to it: tried when it loads, on a few tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from ...pipeline.errors import ConfigError
from ...pipeline.machine import is_out_of_memory
from ..reader.lm_inputs import run_rows, vector_inputs


@torch.no_grad()
def check_world_inputs(model: Any) -> None:
    """Refuse a model that would not read world tokens as `TheWorld` gives them, on a few tokens.

    transformers 4.x multiplied Gemma-2's `inputs_embeds` by sqrt(hidden), 48 times too much for vectors that already
    have the embeddings' scale; 5.4 moved that factor into the embedding layer (vllm-project/vllm#36787). Gemma-4's
    forward takes vectors that are no embeddings only beside `per_layer_inputs`.

    Raises:
        ConfigError: embedding vectors give other logits than their ids; vectors that are no embeddings cannot be read
            or change nothing; or two texts in a row do not give the logits that each has alone.
    """
    embed, device = model.get_input_embeddings(), model.device
    ids = torch.arange(8, device=device)[None] % embed.weight.shape[0]
    vectors, mask = embed(ids), torch.ones_like(ids)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]], device=device)
    by_ids = run_rows(model, {"input_ids": ids}, mask).logits
    if not bool(by_ids.isfinite().all()):
        precision = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"the {type(model).__name__} gives logits that are no numbers in {precision}: its weights are damaged, or "
            "too large for this precision. Fetch them again, or choose --dtype float32"
        )
    world = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0]], device=device)[..., None]
    between = torch.where(world == 1, vectors.roll(1, 1) - vectors.roll(2, 1), vectors)  # of their scale, and no word's
    try:
        by_vectors = run_rows(model, vector_inputs(model, vectors, ids), mask).logits
        alone = run_rows(model, vector_inputs(model, between, ids), mask).logits
        two = torch.cat([between, between[:, 3:]], 1), torch.cat([ids, ids[:, 3:]], 1)
        both = torch.cat([segments, 2 * segments[:, 3:]], 1)
        packed = run_rows(model, vector_inputs(model, *two), torch.ones_like(both), both).logits
    except Exception as error:  # the library raises almost anything where its arguments do not fit
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{type(model).__name__} of transformers {transformers.__version__} cannot read world tokens: {error}"
        ) from error
    _require_equal(
        model, by_ids, by_vectors, "changes inputs_embeds inside", "world tokens would reach it at the wrong scale"
    )
    if torch.equal(alone[:, 3:], by_ids[:, 3:]):
        raise ConfigError(f"{type(model).__name__} of transformers {transformers.__version__} ignores world tokens")
    for second in (packed[:, 3:8], packed[:, 8:]):
        _require_equal(
            model, alone[:, 3:], second, "mixes the texts of a row in", "questions of an image would see each other"
        )


def _require_equal(model: Any, wanted: Tensor, logits: Tensor, what: str, so: str) -> None:
    wanted, logits = wanted.float(), logits.float()
    # by all together: of so many words in 16 bits, added in another order, some single one is always off by more
    off = float((wanted - logits).norm() / wanted.norm().clamp(min=1e-30))
    if not off <= (1e-3 if model.dtype == torch.float32 else 0.05):
        raise ConfigError(
            f"transformers {transformers.__version__} {what} {type(model).__name__} "
            f"(logits are off by {off:.2g} of their size), so {so}. Use transformers "
            "5.23.0, which was tried, or another model"
        )

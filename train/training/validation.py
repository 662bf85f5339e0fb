"""Loss and accuracy on the validation split during a training."""

from __future__ import annotations

import torch
from torch import nn

from ..data.batches import count_right_answers, to_device
from .distributed import split_again
from .inputs import Training
from .update_order import UpdateOrder


@torch.no_grad()
def validate(
    model: nn.Module, training: Training, device: torch.device, pass_rows: int | None = None
) -> tuple[float, float]:
    """Mean loss over the supervised tokens of all processes, and the share of correct answers.

    All processes must call it together. It leaves the model in evaluation mode.

    Args:
        pass_rows: rows of a pass; None is as the settings say.
    """
    config, ranks, data = training.config, training.ranks, training.validation
    assert data is not None
    order = UpdateOrder(
        data.rows,
        batch_size=config.batch_size,
        rank=ranks.rank,
        world_size=ranks.size,
        micro_batch=pass_rows or config.micro_batch,
        shuffle=False,
    )
    tokens_by_piece = (
        order.answer_tokens(update, number)
        for update in range(order.updates)
        for number in range(order.pieces_of(update))
    )
    model.eval()
    loss = token_count = correct = answers = 0.0
    batches = data.batches(order, range(order.updates), pad_id=training.pad_id, device=device)
    for tokens, batch in zip(tokens_by_piece, batches, strict=True):
        inputs = to_device(batch, device)
        output = model(**inputs)
        loss, token_count = loss + float(output.loss) * tokens, token_count + tokens
        if tokens:  # without, the piece only keeps the processes in step
            counts = count_right_answers(output.logits, inputs["labels"], inputs.get("segments"))
            correct, answers = correct + counts[0], answers + counts[1]
    split_again(model)
    loss, token_count, correct, answers = ranks.total([loss, token_count, correct, answers], device)
    return loss / token_count, correct / answers

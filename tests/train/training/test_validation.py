"""The validation loss is a mean over tokens, however the rows are cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example
from theworld.train.reader.model import WorldOutput
from theworld.train.training.inputs import TrainData, Training
from theworld.train.training.validation import validate

from .test_loop import partial_run

ROWS = [(Example(f"{n:032x}", (1, 5, 6), (*range(7, 8 + n % 3), 2)),) for n in range(5)]


class Counting(nn.Module):
    """Its loss is the mean of the tokens to learn, and it always predicts token 2, which ends an answer."""

    def forward(self, labels: Tensor, **_: Any) -> WorldOutput:
        assert not torch.is_grad_enabled()
        assert not self.training
        learned = labels[labels >= 0]
        logits = torch.zeros(len(learned), 20)
        logits[:, 2] = 1
        return WorldOutput(learned.float().mean(), logits)


@pytest.mark.parametrize("changes", [{"batch_size": 4}, {"batch_size": 2}, {"batch_size": 5, "micro_batch": 1}])
def test_the_validation_loss_is_the_mean_over_all_tokens_whatever_the_pieces(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    config = TrainConfig.model_validate({"store": "s", "questions": "q", **changes})
    data = TrainData([*ROWS, (Example("5", (1, 5), (2,)),)], None)
    training = Training(config, data, partial_run(tmp_path), pad_id=0, validation=data)
    loss, accuracy = validate(Counting(), training, torch.device("cpu"))
    tokens = [token for (example,) in data.rows for token in example.answer]
    assert loss == pytest.approx(sum(tokens) / len(tokens))
    assert accuracy == 1 / 6  # of six answers one is the end alone

"""Rows that do not fit in memory together are answered in smaller passes, with the same answers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.progress import Progress
from theworld.train.evaluation.answering import row_limit
from theworld.train.evaluation.answering.row_limit import RowLimit
from theworld.train.reader.memory import Adapters, LMShape, MemoryShape, Rows
from theworld.train.reader.public_sizes import GEMMA_2_2B

CPU = torch.device("cpu")
ROWS = list("abcdefghij")
BATCH = {"input_ids": torch.arange(50).reshape(10, 5), "labels": torch.zeros(10, 5, dtype=torch.long)}


def work_up_to(most: int, done: list[int]) -> Any:
    def work(rows: list[str], part: dict[str, Tensor]) -> list[str]:
        assert len(rows) == len(part["input_ids"])
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.append(len(rows))
        return [f"{row}{int(ids[0])}" for row, ids in zip(rows, part["input_ids"], strict=True)]

    return work


def test_what_does_not_fit_is_halved_and_remembered_for_texts_of_that_length() -> None:
    warnings: list[str] = []
    limit, done = RowLimit(CPU, Progress.keeping(warnings)), list[int]()
    everything = [f"{row}{5 * n}" for n, row in enumerate(ROWS)]
    assert limit.answer(ROWS, BATCH, work_up_to(10, done)) == everything
    assert limit.answer(ROWS, BATCH, work_up_to(3, done)) == everything
    assert limit.answer(ROWS, BATCH, work_up_to(3, done)) == everything
    assert done == [10, *[2] * 5, *[2] * 5]
    assert warnings == [
        "out of memory: 10 rows of 5 text tokens do not fit; now 5 at a time",
        "out of memory: 5 rows of 5 text tokens do not fit; now 2 at a time",
    ]


def test_a_single_row_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"one row of 5 text tokens .* Read fewer --steps"):
        RowLimit(CPU, Progress.silent()).answer(ROWS, BATCH, work_up_to(0, []))


def test_rows_are_chosen_by_the_estimate_where_the_free_memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {
        "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 96, "model_type": "gemma2", "sliding_window": 4096,
    }  # fmt: skip
    shape = MemoryShape(lm=LMShape.of(text), reader=None, adapters=Adapters(), dtype_bytes=4)
    needed = shape.answering(Rows(count=10, text=5, labels=50)).computed
    monkeypatch.setattr(row_limit, "free_memory", lambda *_: 0.6 * needed / 0.9)
    done = list[int]()
    RowLimit(CPU, Progress.silent(), shape).answer(ROWS, BATCH, work_up_to(10, done))
    assert done == [5, 5]


def test_for_a_gpu_of_a_given_size_the_weights_count_too() -> None:
    lm = LMShape.of(GEMMA_2_2B)
    shape = MemoryShape(lm=lm, reader=None, adapters=Adapters(), dtype_bytes=2)
    done = list[int]()
    for memory in (24.0, 6.2):
        RowLimit(CPU, Progress.silent(), shape, memory=memory).answer(ROWS, BATCH, work_up_to(10, done))
    assert done == [10, 5, 5], "beside 4.9 GiB of weights"

"""Latents are made with float32 products in full precision; a program's own settings are as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.miniatures.world_model import mini_transformer, mini_vae
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.network.precision import full_float32

BACKENDS: Any = torch.backends


def operations() -> list[str]:
    of = BACKENDS
    found = (of.cudnn.conv, of.cudnn.rnn, of.cuda.matmul, of.mkldnn.conv, of.mkldnn.rnn, of.mkldnn.matmul)
    return [operation.fp32_precision for operation in found]


def allow_everywhere() -> None:
    BACKENDS.fp32_precision = "tf32"


def refuse_in_one_place() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "ieee"


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "change",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
        allow_everywhere,
        refuse_in_one_place,
    ],
)
def test_whatever_a_program_has_set_holds_again_afterwards(change: Callable[[], None]) -> None:
    change()
    before = operations(), torch.get_float32_matmul_precision()
    with full_float32():
        assert operations() == ["ieee"] * 6
        assert torch.get_float32_matmul_precision() == "highest"
        assert not BACKENDS.cudnn.allow_tf32  # a program that reads the older settings is not refused
        assert not BACKENDS.cuda.matmul.allow_tf32
    assert (operations(), torch.get_float32_matmul_precision()) == before


def test_they_hold_again_after_an_error_too() -> None:
    before = operations()
    with pytest.raises(torch.OutOfMemoryError), full_float32():
        raise torch.OutOfMemoryError
    assert operations() == before


def test_an_engine_sees_to_it_whoever_calls_it() -> None:
    world, seen = CosmosWorld(mini_vae(), mini_transformer()), []
    for network in (world.vae.encoder, world.transformer):
        network.register_forward_pre_hook(lambda *_: seen.append(operations()))
    torch.set_float32_matmul_precision("medium")
    world.denoise(world.encode(torch.zeros(1, 3, 16, 16)), torch.zeros(1, 16, 2, 2, 2), denoise_steps=2)
    assert seen == [["ieee"] * 6] * 2
    assert torch.get_float32_matmul_precision() == "medium"

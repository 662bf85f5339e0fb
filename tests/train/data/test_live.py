"""Latents that are rolled out in the loop are those of the keys asked for, in their order and in the store's dtype."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import LatentStore
from theworld.train.data.arms import parse_arm
from theworld.train.data.live import LiveLatents, roll_out_live
from theworld.train.data.loader import LatentDataset

from ...miniatures.lm import save_mini_store


class Again:
    """Rolls out what the store holds, and remembers what it was asked for."""

    def __init__(self, store: LatentStore) -> None:
        self.store, self.asked, self.checked = store, list[tuple[tuple[str, ...], int]](), list[str]()

    def check(self, keys: Sequence[str]) -> None:
        self.checked += keys

    def __call__(self, keys: Sequence[str], rollout_steps: int) -> torch.Tensor:
        self.asked.append((tuple(keys), rollout_steps))
        return as_tensor(self.store.read(list(keys), rollout_steps=rollout_steps)).float() + 1e-5


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return save_mini_store(tmp_path, images=4)[0]


def test_an_index_is_that_of_the_keys_given_and_only_the_steps_asked_for_are_made(store: LatentStore) -> None:
    keys, again = sorted(store.keys, reverse=True)[:3], Again(store)
    live = LiveLatents(store, again, keys=keys, rollout_steps=2)
    read = live.read([2, 0])
    assert again.asked == [((keys[2], keys[0]), 2)]
    assert read.dtype == torch.float16
    made = LatentDataset(store, keys=keys, rollout_steps=2).read([2, 0]).float() + 1e-5
    assert torch.equal(read, made.half())
    live.read([1])
    assert live.images == 3
    assert live.seconds > 0


def test_it_takes_the_place_of_latents_that_are_read_and_checks_its_inputs_first(store: LatentStore) -> None:
    keys, again = sorted(store.keys)[:2], Again(store)
    live = roll_out_live(LatentDataset(store, keys=keys, rollout_steps=1), again, parse_arm("rollout"))
    assert (list(live.keys), live.rollout_steps, again.checked) == (keys, 1, keys)
    assert not live.read_ahead


@pytest.mark.parametrize("name", ["frozen", "shuffled", "noise", "true"])
def test_what_is_not_the_rollout_itself_is_not_rolled_out(store: LatentStore, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        roll_out_live(LatentDataset(store), Again(store), parse_arm(name))

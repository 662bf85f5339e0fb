"""The facts of the machine that a shard records."""

import platform
from collections.abc import Sequence

import pytest
import torch

from theworld.pipeline.errors import WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.rollout.batch import latents_of_batch, machine_facts

RECIPE = Recipe(world="sha256:" + "0" * 64, height=16, width=16, rollout_steps=0)


@pytest.mark.parametrize(("processor", "device"), [("", "cpu"), ("x86_64", "cpu x86_64")])
def test_a_processor_without_a_name_leaves_the_device_alone(
    monkeypatch: pytest.MonkeyPatch, processor: str, device: str
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert machine_facts("cpu")["device"] == device


class Recording:
    """Makes of each picture its mean, and remembers what it was given."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def latents(self, _: object, batch: torch.Tensor, keys: Sequence[str], __: Recipe) -> torch.Tensor:
        assert len(batch) == len(keys)
        self.keys = list(keys)
        return batch.double().mean((1, 2, 3))[:, None, None, None, None]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_is_always_full_and_only_what_was_asked_for_comes_back(count: int) -> None:
    kind, keys = Recording(), ["a", "b", "c", "d"][:count]
    pixels = [torch.full((3, 2, 2), float(number)) for number in range(count)]
    latents = latents_of_batch(kind, None, pixels, keys, RECIPE, 4)  # type: ignore[arg-type]
    assert kind.keys == [*keys, *[keys[-1]] * (4 - count)]
    assert latents.flatten().tolist() == list(range(count))
    assert latents.dtype == torch.float32


class Giving:
    """A kind whose engine gives what it was made with."""

    def __init__(self, given: object) -> None:
        self.given = given

    def latents(self, *_: object) -> object:
        return self.given


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(0, 4, 3, 2, 2),  # no end would be in sight
        torch.zeros(1, 4, 3, 2, 2),
        torch.zeros(4, 3, 2, 2),  # one latent without a batch
        torch.zeros(2, 4, 2, 2, 2),
        torch.zeros(2, 4, 3, 2, 2, dtype=torch.int64),
        [torch.zeros(4, 3, 2, 2)] * 2,
        None,
    ],
)
def test_an_engine_that_gives_no_latent_of_the_store_s_shape_for_each_input_is_refused_by_name(given: object) -> None:
    pixels, shape = [torch.zeros(3, 8, 8)] * 2, (4, 3, 2, 2)
    with pytest.raises(WorldModelError, match=r"the engine object \(builtins\) gave .*\(2, 4, 3, 2, 2\)"):
        latents_of_batch(Giving(given), object(), pixels, ["a", "b"], RECIPE, 2, sample_shape=shape)  # type: ignore[arg-type]


def test_an_engine_need_not_know_of_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(1))

    class Learning:
        def latents(self, _: object, batch: torch.Tensor, *__: object) -> torch.Tensor:
            return weight * batch[:, :, None]

    latents = latents_of_batch(Learning(), None, [torch.ones(3, 2, 2)], ["a"], RECIPE, 1)  # type: ignore[arg-type]
    assert latents.numpy().shape == (1, 3, 1, 2, 2)

"""What the tests of other people's readers share: stores of real channels, and values that show every lost bit."""

from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import LatentStore, StoreFormat

from .miniatures.store import TINY, create, key

Dtype = Literal["float16", "bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")

SPEC = LatentSpec(channels=16, spatial_stride=8, temporal_stride=4, mean=(0.0,) * 16, std=(1.0,) * 16)
SHAPE = (16, 5, 4, 6)


def store_of(cache: Path, dtype: Dtype, format: StoreFormat) -> LatentStore:
    """A store of latents of SHAPE, 4 a shard."""
    recipe = Recipe(world=TINY.world, height=32, width=48, rollout_steps=4, dtype=dtype)
    return create(cache, recipe=recipe, spec=SPEC, format=format)


def every_number(dtype: Dtype) -> NDArray[Any]:
    """(34, *SHAPE): every finite number of a 2-byte type, among them -0.0 and the subnormal; of float32, as many."""
    if dtype == "float32":
        patterns = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32)
        patterns[:4] = 0x80000000, 1, 0x807FFFFF, 0x7F7FFFFF  # -0.0, subnormals, the largest
        patterns = patterns.view(np.float32)
    else:
        patterns = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    with np.errstate(invalid="ignore"):
        finite = patterns[np.isfinite(patterns)]
    values = np.zeros((34, *SHAPE), finite.dtype)
    values.reshape(-1)[: len(finite)] = finite[: values.size]
    return values


def write_all(store: LatentStore, values: NDArray[Any]) -> None:
    """Sample n of `values` under key(n)."""
    for start in range(0, len(values), store.shard_size):
        with store.new_shard() as shard:
            for number in range(start, min(start + store.shard_size, len(values))):
                shard.add(key(number), values[number])
            shard.commit({})
    store.publish()


def same_bits(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    bits = [np.ascontiguousarray(values).view(np.uint8) for values in (found, wanted)]
    np.testing.assert_array_equal(*bits)

"""What both formats promise of a row in memory, whatever its shape."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.store.folder import StoreFormat
from theworld.pipeline.store.formats.base import STORED_DTYPES, _finite
from theworld.pipeline.store.formats.layouts import layout_of

from ....miniatures.store import SPEC, TINY


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@given(steps=st.integers(0, 4), read=st.integers(0, 4), height=st.integers(1, 24), width=st.integers(1, 24))
def test_rows_in_memory_are_aligned_and_hold_all_that_is_read_without_a_gap_or_an_overlap(
    format: StoreFormat, steps: int, read: int, height: int, width: int
) -> None:
    recipe = TINY.model_copy(update={"height": 16 * height, "width": 16 * width, "rollout_steps": steps})
    layout = layout_of(recipe, SPEC, 4, format)
    reads = layout.reads(1 + min(read, steps))
    assert reads.memory_bytes % 64 == 0
    end = 0
    for offset, place, size in reads.segments:
        assert (place, size > 0) == (end, True)
        assert offset + size <= layout.row_bytes
        end += size
    assert end <= reads.memory_bytes < end + 64


@pytest.mark.parametrize("dtype", sorted(STORED_DTYPES))
def test_a_value_that_is_not_finite_is_found_by_its_bits_whichever_it_is(dtype: str) -> None:
    stored = STORED_DTYPES[dtype]
    bits = stored.itemsize * 8
    every = np.arange(2**16, dtype=np.uint64) << (bits - 16)  # float32: sign, exponent and the first bits of the rest
    values = every.astype(f"u{stored.itemsize}").view(stored)
    with np.errstate(invalid="ignore"):
        assert [_finite(values[at : at + 1], dtype) for at in range(len(values))] == np.isfinite(values).tolist()
    limit = ml_dtypes.finfo(stored).max
    assert _finite(np.array([limit, -limit, 0], stored), dtype)
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        assert not _finite(np.array([0, bad, -1], stored), dtype)

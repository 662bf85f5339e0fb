"""zarr-python knows bfloat16 as the zarr-extensions registry defines it."""

import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from ml_dtypes import bfloat16
from zarr.dtype import data_type_registry

from theworld.pipeline.store.formats.zarr_bfloat16 import BFloat16

from ....patience import patience

ROOT = Path(__file__).parents[4]
FILL_VALUES = [
    (0.0, 0x0000),
    (-0.0, 0x8000),
    (1, 0x3F80),
    (3.14159, 0x4049),
    (1e39, 0x7F80),  # beyond the largest
    ("NaN", 0x7FC0),
    ("Infinity", 0x7F80),
    ("-Infinity", 0xFF80),
    ("0xffc1", 0xFFC1),
    ("0x3f81", 0x3F81),
]


def bits(value: object) -> int:
    scalar = np.asarray(value)
    assert scalar.dtype == bfloat16
    return int(scalar.view(np.uint16))


@pytest.mark.parametrize(("written", "expected"), FILL_VALUES)
def test_fill_values_are_written_as_of_other_floats_and_keep_their_bits(written: Any, expected: int) -> None:
    dtype = BFloat16()
    value = dtype.from_json_scalar(written, zarr_format=3)
    assert bits(value) == expected
    again = json.loads(json.dumps(dtype.to_json_scalar(value, zarr_format=3), allow_nan=False))
    assert bits(dtype.from_json_scalar(again, zarr_format=3)) == expected


@pytest.mark.parametrize("written", [None, [1.0], "nan", "1.5", "0x7fc00000", "0x7fc", {}])
def test_what_is_no_fill_value_is_refused(written: Any) -> None:
    with pytest.raises(TypeError, match="a fill value of bfloat16 is a number"):
        BFloat16().from_json_scalar(written, zarr_format=3)


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), np.int8(1), bfloat16(1.5), "1.5", 10**30, math.nan])
def test_numbers_of_every_kind_become_bfloat16(value: Any) -> None:
    np.testing.assert_equal(float(BFloat16().cast_scalar(value)), float(np.float32(value).astype(bfloat16)))


@pytest.mark.parametrize("value", [None, "one", 1j, [1.0]])
def test_what_is_no_number_does_not_become_bfloat16(value: Any) -> None:
    with pytest.raises(TypeError, match="is no number"):
        BFloat16().cast_scalar(value)


@pytest.mark.parametrize("written", ["bfloat16", {"name": "bfloat16"}, {"name": "bfloat16", "configuration": {}}])
def test_every_spelling_of_the_registry_is_read_and_the_short_one_written(written: Any) -> None:
    dtype = data_type_registry.match_json(written, zarr_format=3)
    assert dtype == BFloat16()
    assert dtype.to_json(zarr_format=3) == "bfloat16"


@pytest.mark.parametrize("written", ["float16", {"name": "bfloat16", "configuration": {"endian": "big"}}, 16])
def test_other_names_are_not_bfloat16(written: Any) -> None:
    with pytest.raises(ValueError, match="expected 'bfloat16', got"):
        BFloat16.from_json(written, zarr_format=3)


def test_zarr_v2_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Zarr v2 has no bfloat16; write Zarr v3 \(zarr_format=3\)"):
        zarr.create_array(tmp_path, shape=(2,), chunks=(2,), dtype=bfloat16, zarr_format=2)
    with pytest.raises(ValueError, match="Zarr v2 has no bfloat16"):
        BFloat16.from_json({"name": "bfloat16", "object_codec_id": None}, zarr_format=2)
    for dtype in ("|V2", ">f2"):  # what a v2 array may say of two bytes
        assert not isinstance(
            data_type_registry.match_json({"name": dtype, "object_codec_id": None}, zarr_format=2), BFloat16
        )


def test_a_numpy_dtype_is_taken_for_bfloat16_only_if_it_is() -> None:
    for byte_order, endianness in (("<", "little"), (">", "big"), ("=", sys.byteorder)):
        dtype = np.dtype(bfloat16).newbyteorder(byte_order)
        found = data_type_registry.match_dtype(dtype)
        assert isinstance(found, BFloat16)
        assert found.endianness == endianness
        assert found.to_native_dtype() == dtype
    for other in ("V2", "<f2", "<u2", np.dtype(ml_dtypes.float8_e5m2)):
        with pytest.raises(ValueError, match="expected the numpy dtype bfloat16"):
            BFloat16.from_native_dtype(np.dtype(other))


@pytest.mark.filterwarnings("ignore:invalid value encountered in equal")  # signalling NaNs
@pytest.mark.parametrize("endian", ["little", "big"])
def test_an_array_zarr_writes_is_read_by_tensorstore_bit_for_bit(
    tmp_path: Path, endian: Literal["little", "big"]
) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(bfloat16)  # every bfloat16 there is, each NaN too
    array = zarr.create_array(
        tmp_path,
        shape=(2**16 + 8,),
        chunks=(2**12,),
        dtype=bfloat16,
        fill_value=np.nan,
        serializer=zarr.codecs.BytesCodec(endian=endian),
    )
    array[: 2**16] = values
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path)}}
    read = tensorstore.open(spec, read=True).result().read().result()
    assert read.dtype == bfloat16
    np.testing.assert_array_equal(read[: 2**16].view(np.uint16), values.view(np.uint16))
    np.testing.assert_array_equal(read[2**16 :].view(np.uint16), np.full(8, 0x7FC0, np.uint16))
    again = zarr.open_array(tmp_path, mode="r")
    assert again.dtype == bfloat16
    np.testing.assert_array_equal(np.asarray(again[:]).view(np.uint16), read.view(np.uint16))


@pytest.mark.parametrize(
    "code", ["zarr.open(path, mode='r')['values']", "zarr.open_array(path + '/values')"]
)  # fmt: skip
def test_zarr_knows_it_once_the_module_is_imported(tmp_path: Path, code: str) -> None:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(tmp_path / "values")},
        "metadata": {"shape": [3], "data_type": "bfloat16"},
    }
    tensorstore.open(spec, create=True).result().write(np.array([1, 2.5, -3], bfloat16)).result()
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    script = f"""
import zarr, theworld.pipeline.store.formats.zarr_bfloat16
path = {str(tmp_path)!r}
array = {code}
print(array.dtype, array[:].astype(float).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patience(120))
    assert (done.returncode, done.stdout, done.stderr) == (0, "bfloat16 [1.0, 2.5, -3.0]\n", "")


def test_theworld_registers_nothing_that_zarr_would_load_for_everybody() -> None:
    """A broken install of ours must not break the stores of others: zarr loads all entry points of its groups."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [group for group in project.get("entry-points", {}) if group.partition(".")[0] == "zarr"] == []

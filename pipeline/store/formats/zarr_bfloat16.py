"""The Zarr data type `bfloat16`, so that anyone's `zarr.open` reads our stores of it.

The type is that of the zarr-extensions registry (Zarr v3; 2 bytes; fill values as for other floats), over
`ml_dtypes.bfloat16`. Importing this module registers it: `LatentStore.as_zarr()` does, and so may anybody. There is no
entry point for it: zarr-python loads all entry points with the first array that anybody opens (`zarr.buffer` in every
release, `zarr.data_type` from 3.4 on), so that one left behind by a broken install would break every store there is.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Self, SupportsFloat, SupportsIndex, TypeGuard, overload

import numpy as np
from ml_dtypes import bfloat16
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import ZDType, data_type_registry

if TYPE_CHECKING:
    from zarr.core.dtype.common import DataTypeValidationError
else:
    try:  # where zarr 3.4 keeps it
        from zarr.errors import DataTypeValidationError
    except ImportError:
        from zarr.dtype import DataTypeValidationError

if TYPE_CHECKING:
    from zarr.core.common import JSON, ZarrFormat
    from zarr.core.dtype.common import DTypeJSON
    from zarr.core.dtype.wrapper import TBaseDType

_NAME = "bfloat16"
_DTYPE = np.dtype(bfloat16)
_NAN_BITS = 0x7FC0
_HEX = re.compile(r"0x[0-9a-fA-F]{4}")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[np.dtype[np.generic], np.generic], HasEndianness, HasItemSize):
    """`bfloat16` of Zarr v3. Zarr v2 has no such type: asked for there, it raises ValueError."""

    dtype_cls = type(_DTYPE)
    _zarr_v3_name = _NAME

    @property
    def item_size(self) -> int:
        """Bytes a value takes."""
        return _DTYPE.itemsize

    @classmethod
    def from_native_dtype(cls, dtype: TBaseDType) -> Self:
        """The type of a numpy dtype, `ml_dtypes.bfloat16` of either byte order."""
        if not cls._check_native_dtype(dtype):
            raise DataTypeValidationError(f"expected the numpy dtype {_NAME} of ml_dtypes, got {dtype}")
        if dtype.byteorder == "=":
            return cls(endianness=sys.byteorder)
        return cls(endianness="big" if dtype.byteorder == ">" else "little")

    def to_native_dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype, of this byte order."""
        return _DTYPE.newbyteorder(">" if self.endianness == "big" else "<")

    @classmethod
    def _from_json_v2(cls, data: DTypeJSON) -> Self:
        raise DataTypeValidationError(f"{data!r}: {_no_v2()}")  # zarr asks every type; this one is never a v2 one

    @classmethod
    def _from_json_v3(cls, data: DTypeJSON) -> Self:
        if data in (_NAME, {"name": _NAME}, {"name": _NAME, "configuration": {}}):
            return cls()
        raise DataTypeValidationError(f"expected {_NAME!r}, got {data!r}")

    @overload
    def to_json(self, zarr_format: Literal[2]) -> NoReturn: ...
    @overload
    def to_json(self, zarr_format: Literal[3]) -> str: ...
    def to_json(self, zarr_format: ZarrFormat) -> str:
        """`data_type` in a `zarr.json`."""
        _refuse_v2(zarr_format)
        return _NAME

    def _check_scalar(self, data: object) -> TypeGuard[SupportsFloat | SupportsIndex | str]:
        if isinstance(data, str):
            try:
                float(data)
            except ValueError:
                return False
            return True
        return isinstance(data, SupportsFloat | SupportsIndex)

    def cast_scalar(self, data: object) -> np.generic:
        """A number as a bfloat16, rounded to nearest; one that is bfloat16 keeps its bits."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} ({type(data).__name__}) is no number, so no {_NAME} either")
        return bfloat16(float(data) if isinstance(data, int) else data)

    def default_scalar(self) -> np.generic:
        """Zero."""
        return bfloat16(0)

    def from_json_scalar(self, data: JSON, *, zarr_format: ZarrFormat) -> np.generic:
        """A `fill_value`: a number, "NaN", "Infinity", "-Infinity", or the bits as "0x" and four digits."""
        _refuse_v2(zarr_format)
        if isinstance(data, str):
            if data in _SPECIAL:
                return bfloat16(_SPECIAL[data])
            if _HEX.fullmatch(data):
                return np.uint16(int(data, 16)).view(_DTYPE)
        elif isinstance(data, int | float):
            return bfloat16(float(data))
        raise TypeError(
            f"a fill value of {_NAME} is a number, NaN, Infinity, -Infinity, or 0x and four digits; got {data!r}"
        )

    def to_json_scalar(self, data: object, *, zarr_format: ZarrFormat) -> float | str:
        """What `from_json_scalar` reads as the same bits; a NaN of unusual bits goes as its bits."""
        _refuse_v2(zarr_format)
        scalar = self.cast_scalar(data)
        value = _number(scalar)
        if math.isfinite(value):
            return value
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        bits = int(scalar.view(np.uint16))
        return "NaN" if bits == _NAN_BITS else f"0x{bits:04x}"


def _number(scalar: np.generic) -> float:
    return float(np.asarray(scalar).astype(np.float64))


def _no_v2() -> str:
    return f"Zarr v2 has no {_NAME}; write Zarr v3 (zarr_format=3), or float16 or float32"


def _refuse_v2(zarr_format: ZarrFormat) -> None:
    if zarr_format != 3:
        raise ValueError(_no_v2())


data_type_registry.register(_NAME, BFloat16)

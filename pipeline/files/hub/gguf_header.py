"""Check the header of a GGUF file, llama.cpp's format, before a library reads it: no count in it is believed.

    magic "GGUF", version, tensor count, count of settings
    settings: name, type, value      tensors: name, dimensions, type, offset

Source: the GGUF specification of ggml (docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from .. import limits
from ..plain import open_file

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_MAX_ELEMENTS_PER_BYTE = 8
"""The densest quantisation has 1.56 bits an element."""


def check_gguf(path: Path) -> None:
    """Raise an error unless the header is whole and states no more than the file can hold.

    Raises:
        ValueError: it does not.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with open_file(path, limits.MAX_WEIGHT_BYTES) as file:
        header = _Header(path.name, file, min(size, limits.MAX_GGUF_HEADER_BYTES))
        magic, version = file.read(4), header.number("<I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path.name} is no GGUF file of version 2 or 3")
        tensors, settings = header.count(limits.MAX_GGUF_ENTRIES), header.count(limits.MAX_GGUF_ENTRIES)
        for _ in range(settings):
            header.skip_string()
            header.skip_value(header.number("<I"))
        elements = 0
        for _ in range(tensors):
            header.skip_string()
            dimensions = [header.number("<Q") for _ in range(header.count(8, "<I"))]
            elements += math.prod(dimensions)
            header.number("<I")
            header.number("<Q")
        if elements > _MAX_ELEMENTS_PER_BYTE * size:
            raise ValueError(f"{path.name} states {elements:,} weights, more than its {size:,} bytes can hold")


class _Header:
    def __init__(self, name: str, file: BinaryIO, end: int) -> None:
        self._name, self._file, self._end = name, file, end

    def number(self, form: str) -> int:
        content = self._file.read(struct.calcsize(form))
        if len(content) < struct.calcsize(form) or self._file.tell() > self._end:
            raise ValueError(f"the header of {self._name} is cut short, or larger than any model's")
        return int(struct.unpack(form, content)[0])

    def count(self, most: int, form: str = "<Q") -> int:
        value = self.number(form)
        if value > most:
            raise ValueError(f"{self._name} states {value:,} entries; the limit is {most:,}")
        return value

    def skip(self, size: int) -> None:
        if self._file.tell() + size > self._end:
            raise ValueError(f"{self._name} states a value of {size:,} bytes, beyond the end of its header")
        self._file.seek(size, 1)

    def skip_string(self) -> None:
        self.skip(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == _STRING:
                if count > limits.MAX_GGUF_STRINGS:
                    raise ValueError(
                        f"{self._name} states a list of {count:,}; the limit is {limits.MAX_GGUF_STRINGS:,}"
                    )
                for _ in range(count):
                    self.skip_string()
            else:
                self.skip(count * self._size_of(inner))
        else:
            self.skip(self._size_of(kind))

    def _size_of(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"{self._name} holds a value of type {kind}, which GGUF does not have in this place")
        return _SIZES[kind]

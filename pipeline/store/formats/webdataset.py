"""The bytes of one WebDataset shard: a plain tar of `<key>.npy` and `<key>.json` in turn, every row of the same size.

    row = tar header, npy (C, T, H, W), padding,  tar header, json, padding       payload = rows, two empty blocks

The json states the CRC-32C of each frame, and so does the commit record from format 2 on. As the size of the json is
fixed, a sample is found by arithmetic, and random access costs what it costs in Zarr. `webdataset`, `datasets` and
`tar` read the rows in order. A prefix of k steps is one piece per channel here, or the whole row where those pieces
would be smaller than a page.

Sources: POSIX.1-1988 ustar; NEP 1 (the npy format).
"""

import json
import re
import tarfile
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...latents.keys import KEY_DIGITS
from . import StoreVersion
from .base import RowReads, ShardLayout, crc32c, round_up

_BLOCK = tarfile.BLOCKSIZE
_SUM = slice(148, 156)
"""Of a tar header: the sum of its bytes, in octal digits."""
_PAGE_BYTES = 4096
_NO_KEY = "0" * KEY_DIGITS
_NAME = re.compile(r"([0-9]{6,9})\.tar")
_KEY_FIELD = '{"key":"'
_NPY_TYPES = {"float16": "<f2", "float32": "<f4", "bfloat16": "<V2"}
"""npy has no name for bfloat16. Two raw bytes fail loudly in arithmetic; an integer type would be silently wrong."""


class WebDatasetLayout(ShardLayout):
    """Tars under shards/; decode them without pickle."""

    def __init__(
        self,
        *,
        sample_shape: tuple[int, int, int, int],
        dtype: str,
        shard_size: int,
        version: StoreVersion,
        recipe_id: str,
    ) -> None:
        super().__init__(sample_shape=sample_shape, dtype=dtype, shard_size=shard_size, version=version)
        self.recipe_id = recipe_id

    @property
    def row_bytes(self) -> int:
        return self._json_at + round_up(_BLOCK, len(self._json))

    @property
    def payload_folder(self) -> str:
        return "shards"

    def payload_name(self, shard: int) -> str:
        return f"shards/{shard:06d}.tar"

    def number_of(self, name: str) -> int | None:
        match = _NAME.fullmatch(name)
        return int(match[1]) if match and self.payload_name(int(match[1])).endswith(f"/{name}") else None

    def trailer(self, rows: int) -> bytes:  # noqa: ARG002 - every tar ends alike
        return bytes(2 * _BLOCK)

    def reads(self, frames: int) -> RowReads:
        channels, all_frames, _, _ = self.sample_shape
        checksums = 8 * frames
        if self._in_one_piece(frames):
            read_bytes = self._checksums_at - self._numbers_at + checksums
            return RowReads(segments=((self._numbers_at, 0, read_bytes),), memory_bytes=round_up(64, read_bytes))
        plane = self.frame_bytes // channels
        pieces = [
            (self._numbers_at + channel * all_frames * plane, channel * frames * plane, frames * plane)
            for channel in range(channels)
        ]
        pieces.append((self._checksums_at, frames * self.frame_bytes, checksums))
        return RowReads(segments=tuple(pieces), memory_bytes=round_up(64, frames * self.frame_bytes + checksums))

    def values(self, memory: NDArray[np.uint8], frames: int) -> NDArray[Any]:
        channels, all_frames, height, width = self.sample_shape
        frames_in_memory = all_frames if self._in_one_piece(frames) else frames
        numbers = memory[:, : frames_in_memory * self.frame_bytes].view(self.dtype)
        return numbers.reshape(len(memory), channels, frames_in_memory, height, width)[:, :, :frames]

    def checksums(self, memory: NDArray[np.uint8], frames: int) -> list[int] | None:
        one_piece = self._in_one_piece(frames)
        at = self._checksums_at - self._numbers_at if one_piece else frames * self.frame_bytes
        try:
            stated = np.frombuffer(bytes.fromhex(memory[at : at + 8 * frames].tobytes().decode("ascii")), ">u4")
        except ValueError:
            return None
        computed = _frame_checksums(self.values(memory[None], frames)[0])
        return computed if computed == stated.tolist() else None

    def new_row(self) -> NDArray[np.uint8]:
        return self._template.copy()

    def is_row(self, row: NDArray[np.uint8], key: str, checksums: Sequence[int]) -> bool:
        """As of every layout; and the headers of the tar and the json are those of this key."""
        expected = self.new_row()
        self._fill_around(expected, key, checksums)
        numbers = slice(self._numbers_at, self._numbers_at + self.sample_shape[1] * self.frame_bytes)
        expected[numbers] = row[numbers]
        return np.array_equal(expected, row) and super().is_row(row, key, checksums)

    def _fill(self, row: NDArray[np.uint8], key: str, latent: NDArray[Any]) -> list[int]:
        crcs = _frame_checksums(latent)
        self._fill_around(row, key, crcs)
        numbers = row[self._numbers_at : self._numbers_at + latent.nbytes].view(self.dtype)
        numbers.reshape(latent.shape)[...] = latent
        return crcs

    def _fill_around(self, row: NDArray[np.uint8], key: str, crcs: Sequence[int]) -> None:
        """All of a row that depends on its sample, but for the numbers."""
        for at in (0, self._json_at - _BLOCK):
            _name(row[at : at + _BLOCK], key, self._template[at : at + _BLOCK])
        for at, text in (
            (self._checksums_at, "".join(f"{crc:08x}" for crc in crcs)),
            (self._json_at + len(_KEY_FIELD), key),
        ):
            row[at : at + len(text)] = np.frombuffer(text.encode(), np.uint8)

    def _in_one_piece(self, frames: int) -> bool:
        """Whether the whole row is read for its first frames: pieces smaller than a page would cost more."""
        channels, all_frames, _, _ = self.sample_shape
        return frames == all_frames or frames * self.frame_bytes // channels < _PAGE_BYTES

    @cached_property
    def _template(self) -> NDArray[np.uint8]:
        """A row but for its key, numbers and checksums."""
        row = np.zeros(self.row_bytes, np.uint8)
        for at, content in (
            (0, _tar_header(f"{_NO_KEY}.npy", len(self._npy_header) + self.sample_shape[1] * self.frame_bytes)),
            (_BLOCK, self._npy_header),
            (self._json_at - _BLOCK, _tar_header(f"{_NO_KEY}.json", len(self._json))),
            (self._json_at, self._json),
        ):
            row[at : at + len(content)] = np.frombuffer(content, np.uint8)
        return row

    @cached_property
    def _npy_header(self) -> bytes:
        header = BytesIO()
        fields = {"descr": _NPY_TYPES[self.dtype_name], "fortran_order": False, "shape": self.sample_shape}
        npy.write_array_header_1_0(header, fields)
        return header.getvalue()

    @cached_property
    def _json(self) -> bytes:
        """The json of any row; only digits differ."""
        fields = {
            "key": _NO_KEY,
            "frames_crc32c": "0" * 8 * self.sample_shape[1],
            "dtype": self.dtype_name,
            "shape": self.sample_shape,
            "axes": "channel,time,y,x",
            "recipe_id": self.recipe_id,
        }
        return json.dumps(fields, separators=(",", ":")).encode()

    @cached_property
    def _numbers_at(self) -> int:
        return _BLOCK + len(self._npy_header)

    @cached_property
    def _json_at(self) -> int:
        return _BLOCK + round_up(_BLOCK, len(self._npy_header) + self.sample_shape[1] * self.frame_bytes) + _BLOCK

    @cached_property
    def _checksums_at(self) -> int:
        return self._json_at + self._json.index(b'"frames_crc32c":"') + len(b'"frames_crc32c":"')


def _tar_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _name(header: NDArray[np.uint8], key: str, template: NDArray[np.uint8]) -> None:
    """Give a tar header its key, and the sum of its bytes; `TarInfo.tobuf` would cost as much as writing the row."""
    name = np.frombuffer(key.encode(), np.uint8)
    total = int(bytes(template[_SUM]).rstrip(b"\0 "), 8) + int(name.sum()) - ord("0") * KEY_DIGITS
    header[:KEY_DIGITS] = name
    header[_SUM] = np.frombuffer(b"%06o\0 " % total, np.uint8)


def _frame_checksums(latent: NDArray[Any]) -> list[int]:
    frames = np.ascontiguousarray(latent.transpose(1, 0, 2, 3)).view(np.uint8).reshape(latent.shape[1], -1)
    return [crc32c(frame) for frame in frames]

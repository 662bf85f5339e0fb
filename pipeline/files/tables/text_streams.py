"""Open a text file to be read as UTF-8: gzip, bzip2 and UTF-16 are undone while it is read, up to a limit."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from ..limits import TABLE_EXPANSION, TABLE_FREE_BYTES

_PACKINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}
_UTF16 = frozenset({codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE})
_BUFFER_BYTES = 2**20


def packing_of(head: bytes) -> str | None:
    """How a file that begins like this is compressed: `gzip` or `bzip2`; None where it is not, or otherwise."""
    return next((name for magic, name in _PACKINGS.items() if head.startswith(magic)), None)


def is_utf16(head: bytes) -> bool:
    """Whether a file that begins like this is text in UTF-16, by its mark."""
    return head[:2] in _UTF16


def open_text(file: Path) -> BinaryIO:
    """Open a file to be read as bytes; a compressed one gives what it unpacks to, and UTF-16 becomes UTF-8.

    Raises:
        OSError: it cannot be read; reading raises it too where the compression is damaged or hides too much.
    """
    raw: io.BufferedReader = file.open("rb")
    try:
        packing = packing_of(raw.read(6))
        raw.seek(0)
    except OSError:
        raw.close()
        raise
    plain = raw if packing is None else io.BufferedReader(_Unpacking(raw, packing), _BUFFER_BYTES)
    try:
        wide = is_utf16(plain.peek(2))
    except OSError:
        plain.close()
        raise
    return io.BufferedReader(_FromUtf16(plain), _BUFFER_BYTES) if wide else plain


class _Unpacking(io.RawIOBase):
    """What a compressed file unpacks to, up to a limit: a file of 10 MB can unpack to 70 GB of nothing."""

    def __init__(self, raw: BinaryIO, packing: str) -> None:
        super().__init__()
        self._raw, self._packing = raw, packing
        self._inner: Any = gzip.GzipFile(fileobj=raw) if packing == "gzip" else bz2.BZ2File(raw)
        self._size = os.fstat(raw.fileno()).st_size
        self._left = TABLE_FREE_BYTES + TABLE_EXPANSION * self._size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            part: bytes = self._inner.read(min(len(view), _BUFFER_BYTES))
        except (EOFError, zlib.error, OSError) as error:  # gzip and bz2 have no error of their own
            raise OSError(f"its {self._packing} data are damaged ({error})") from error
        self._left -= len(part)
        if self._left < 0:
            raise OSError(
                f"it unpacks to more than {TABLE_FREE_BYTES + TABLE_EXPANSION * self._size:,} bytes, the limit for a "
                f"compressed list of {self._size:,} bytes. Unpack it, and name the file that comes out"
            )
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            self._raw.close()
        super().close()


class _FromUtf16(io.RawIOBase):
    """A file in UTF-16, as Excel's "Unicode text" and PowerShell write it, as UTF-8."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw, self._decoder = raw, codecs.getincrementaldecoder("utf-16")()
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._waiting:
            part = self._raw.read(_BUFFER_BYTES)
            try:
                self._waiting = self._decoder.decode(part, final=not part).encode()
            except UnicodeDecodeError as error:
                raise OSError(f"it begins as UTF-16 text, and is none ({error.reason}). Save it as UTF-8") from error
            if not part:
                break
        size = min(len(view), len(self._waiting))
        view[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

"""Messages between a worker and its decoding process: text that says what it is, and bytes.

A message is an anonymous memory file (memfd) handed over a socket pair: 8 bytes of length, that many bytes of JSON,
then the bytes. Nothing in it can run code, and neither side maps what the other could cut short.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import WorldModelError

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 2**22


def send(to: socket.socket, header: Mapping[str, Any], content: Any = b"") -> None:
    """Send a message.

    Raises:
        OSError: the other side is gone.
    """
    fd = os.memfd_create("theworld-decoder")
    try:
        text = json.dumps(header).encode()
        for part in (_LENGTH.pack(len(text)), text, content):
            rest = memoryview(part).cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
        socket.send_fds(to, [b"m"], [fd])
    finally:
        os.close(fd)


def receive(source: socket.socket) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """The next message: its header and its bytes.

    Raises:
        EOFError: the other side is gone.
        OSError, ValueError: it is not a valid message.
        WorldModelError: too many files are open here.
    """
    _, fds, flags, _ = socket.recv_fds(source, 1, 1)
    if flags & socket.MSG_CTRUNC:
        raise WorldModelError(
            "this process has no file descriptor left for an answer (Too many open files). Raise ulimit -n, or use "
            "fewer --decoders"
        )
    if not fds:
        raise EOFError("the other side is gone")
    [fd] = fds
    try:
        length = _LENGTH.unpack(_read(fd, 0, _LENGTH.size).tobytes())[0]
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(_read(fd, _LENGTH.size, length).tobytes())
        start = _LENGTH.size + length
        return cast(dict[str, Any], header), _read(fd, start, os.fstat(fd).st_size - start)
    except struct.error as error:
        raise ValueError(str(error)) from error
    finally:
        os.close(fd)


def _read(fd: int, start: int, size: int) -> NDArray[np.uint8]:
    if size < 0:
        raise ValueError("a message is cut short")
    memory = np.empty(size, np.uint8)
    at = 0
    while at < size:
        if (read := os.preadv(fd, [memory[at:].data], start + at)) == 0:
            raise ValueError("a message is cut short")
        at += read
    return memory

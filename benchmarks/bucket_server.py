"""The S3 server of the tests as a process of its own, for benchmarks/bucket.py: it serves the files of a folder.

Files are mapped, so an answer is a copy of pages by the kernel and no more. It is Python: it takes one core at most,
and 0.2 to 0.3 ms of it a request. What it took is counted, so that a figure says whether the server was the limit.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.s3_server import BUCKET, KEY_ID, SECRET, Stored, environment, s3_server

__all__ = ["BUCKET", "KEY_ID", "SECRET", "Counts", "ServerProcess", "server_of"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server was asked for, and what it took, since the counts were last read."""

    requests: int
    payload_bytes: int
    """Of the answers to GET."""
    cpu_s: float
    wall_s: float

    @property
    def busy(self) -> float:
        """The share of one core that the server took: near 1, and a figure is the server's."""
        return self.cpu_s / self.wall_s


class ServerProcess:
    """A server in another process, steered by lines of JSON."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: whose files are the bucket's objects, as they are now.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.variables: dict[str, str] = self._answer()

    def set_latency(self, seconds: float) -> None:
        """How long each request waits before it is answered."""
        self._ask({"latency_s": seconds})

    def counts(self) -> Counts:
        """Since the last call."""
        return Counts(**self._ask({"counts": True}))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def server_of(folder: Path) -> Iterator[ServerProcess]:
    """A server for the block, in whose environment this process is."""
    server = ServerProcess(folder)
    try:
        with environment(server.variables):
            yield server
    finally:
        server.close()


def _mapped(path: Path) -> Any:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if path.stat().st_size else b""


def _serve(folder: Path) -> None:
    def say(what: Any) -> None:
        print(json.dumps(what), flush=True)

    sys.setswitchinterval(0.001)
    with s3_server() as server:
        for file in folder.rglob("*"):
            if file.is_file():
                stored = Stored(_mapped(file), {}, file.stat().st_mtime)
                server.objects[file.relative_to(folder).as_posix()] = stored
                _ = stored.etag  # now, not in somebody's first request
        say(server.variables())
        cpu, wall = time.process_time(), time.perf_counter()
        for line in sys.stdin:
            asked = json.loads(line)
            if "latency_s" in asked:
                server.faults.latency_s = asked["latency_s"]
                say(True)
                continue
            before, (cpu, wall) = (cpu, wall), (time.process_time(), time.perf_counter())
            counts = Counts(
                requests=len(server.asked),
                payload_bytes=server.payload_bytes(),
                cpu_s=cpu - before[0],
                wall_s=wall - before[1],
            )
            server.asked.clear()
            say(asdict(counts))
    os._exit(0)  # mappings are in use by threads that answer


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

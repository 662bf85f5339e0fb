"""Payloads that are read as those of a bucket are, with a count of what is asked for."""

from collections.abc import Callable
from pathlib import Path

from theworld.pipeline.files.places import Entry


class FolderSource:
    """Files of a folder, by requests; `before_read` runs before each that reads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reads, self.bytes, self.looks = folder, 0, 0, 0
        self.before_read: Callable[[], None] = lambda: None

    def entry(self, name: str) -> Entry | None:
        self.looks += 1
        try:
            status = (self.folder / name).stat()
        except FileNotFoundError:
            return None
        return Entry(name, status.st_size, status.st_mtime_ns, status.st_mtime)

    def read_into(self, name: str, offset: int, memory: memoryview) -> int:
        self.reads += 1
        self.before_read()
        with (self.folder / name).open("rb") as file:
            file.seek(offset)
            read = file.readinto(memory)
        self.bytes += read
        return read

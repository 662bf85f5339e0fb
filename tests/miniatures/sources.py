"""Files that are read as those of a bucket are, with a count of what is asked for."""

from collections.abc import Callable
from pathlib import Path

from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.files.places.place import Entry


class FolderSource(Folder):
    """Files of a folder, by requests; `before_read` runs before each that reads."""

    is_local = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads, self.bytes, self.looks = 0, 0, 0
        self.before_read: Callable[[], None] = lambda: None

    def entry(self, name: str) -> Entry | None:
        self.looks += 1
        found = super().entry(name)
        return None if found is None else found._replace(tag=(self.path / name).stat().st_mtime_ns)

    def read_into(self, name: str, offset: int, memory: memoryview) -> int:
        self.reads += 1
        self.before_read()
        read = super().read_into(name, offset, memory)
        self.bytes += read
        return read

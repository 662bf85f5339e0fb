"""Texts in one piece of memory: each takes its bytes and eight more."""

from __future__ import annotations

from array import array


class Texts:
    """Texts in one piece of memory: each takes its bytes and eight more. Any str comes back as it was."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, at: int) -> str:
        return self._bytes[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogatepass")

    @property
    def size(self) -> int:
        """Bytes of all texts."""
        return len(self._bytes)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def cut(self, count: int) -> None:
        """Forget all but the first so many."""
        del self._ends[count + 1 :]
        del self._bytes[self._ends[-1] :]

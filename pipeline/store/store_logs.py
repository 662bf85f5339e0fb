"""What became of the inputs of a store: which is which key, which failed, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..files.places.place import Place
from .ledger import Failure, FailureLog
from .sources.table import SourceRow, read_prompts, read_source_rows, read_sources, read_starts, write_sources


class StoreLogs:
    """The part of an open store that keeps its logs. Nothing in it decides whether a latent exists."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._failures = FailureLog(place)

    def record_sources(
        self,
        rows: Iterable[tuple[str, str]],
        prompts: Mapping[str, str] | None = None,
        starts: Mapping[str, float] | None = None,
    ) -> int:
        """Keep which input is which key: rows of (source, key). Those kept already are not written again.

        Args:
            prompts: key -> the prompt that is part of it, where samples have their own.
            starts: key -> the second of a video at which its clip or picture is, where one was chosen.
        Returns:
            How many rows were new.
        """
        with self.place.writing():
            return write_sources(self.place, rows, prompts, starts)

    def source_rows(self) -> Iterator[SourceRow]:
        """What is kept of every input, some perhaps twice, without holding it all in memory."""
        return read_source_rows(self.place)

    def prompts(self) -> dict[str, str]:
        """Key -> the prompt that is part of it, where samples have their own."""
        return read_prompts(self.place)

    def starts(self) -> dict[str, float]:
        """Key -> the second of a video at which its clip or picture is, where one was chosen."""
        return read_starts(self.place)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Source -> its keys, over all runs. Of millions of inputs, take `source_rows`.

        More than one key means that the input changed between runs. No run is "the last" (clocks decide nothing here):
        whoever needs one key hashes the input as it is now, or refuses.
        """
        return read_sources(self.place)

    def record_failure(self, failure: Failure) -> None:
        """`record_failures` of one."""
        self.record_failures([failure])

    def record_failures(self, failures: Iterable[Failure]) -> None:
        """Keep that inputs failed, in one file; an earlier row of the same input (key, else source) gives way."""
        with self.place.writing():
            self._failures.record(failures)

    def failures(self) -> list[Failure]:
        """The inputs that failed, by source."""
        return self._failures.failures()

    def clear_failure(self, failure: Failure) -> None:
        """`clear_failures` of one."""
        self.clear_failures([failure])

    def clear_failures(self, failures: Iterable[Failure]) -> None:
        """Forget failures: their inputs have a latent now, or are no longer wanted."""
        with self.place.writing():
            self._failures.clear(failures)

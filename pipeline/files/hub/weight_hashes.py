"""Hashes of weights, gigabytes of them: read once, and remembered for the next command.

They are kept as those of inputs are (hash_cache.py), in a folder of the user's (`machine.own_folder`), since one folder
of weights serves many stores and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from ...machine import own_folder
from ...messages import format_bytes
from ...progress import Progress
from ..file_facts import FileFacts, facts_of
from ..hashing import digest_of_file, hash_files

MANY_BYTES = 2**28
"""So much takes long enough to be said."""
_MIB = 2**20


def hash_weights(folder: Path, files: Iterable[Path], *, progress: Progress | None = None, trust: bool = True) -> str:
    """Return `hash_files` of weights; a file that has not changed since it was hashed is not read again.

    Args:
        files: inside `folder`, in any order.
        progress: is told what is read, where that takes long; None is `Progress.to_logger()`.
        trust: False reads all of them.
    Raises:
        OSError: a file cannot be read.
    """
    paths = list(files)
    with _digests(folder, paths, progress or Progress.to_logger(), trust=trust) as digest_of:
        return hash_files(folder, paths, digest_of)


def digest_of_weights(file: Path, *, progress: Progress | None = None) -> bytes:
    """Return the SHA-256 of one file of weights, 32 bytes; read and remembered as by `hash_weights`.

    Raises:
        OSError: the file cannot be read.
    """
    with _digests(file.parent, [file], progress or Progress.to_logger(), trust=True) as digest_of:
        return digest_of(file)


@contextmanager
def _digests(
    folder: Path, files: list[Path], progress: Progress, *, trust: bool
) -> Generator[Callable[[Path], bytes], None, None]:
    """What gives the digest of each of the files; an interruption keeps those that were read whole."""
    from ..hash_cache import HashCache  # numpy: a command that only counts tokens loads none

    hash_cache = HashCache.load(own_folder(), folder, "weights", trust=trust)
    facts = {path: facts_of(str(path.absolute())) for path in files}
    digests = {
        path: hash_cache.find(str(path.absolute()), stat, "") for path, stat in facts.items() if stat is not None
    }
    new_bytes = sum(stat.size for path, stat in facts.items() if stat is not None and digests.get(path) is None)
    title = f"reading the weights in {folder}, {format_bytes(new_bytes)}"
    many = new_bytes >= MANY_BYTES
    if many:
        progress.say(f"{title}: once, as long as they do not change")
    with (progress if many else Progress.silent()).bar("reading", total=new_bytes // _MIB, unit="MiB") as bar:
        reported = read = 0

        def count(size: int) -> None:
            nonlocal reported, read
            read += size
            if (more := read // _MIB - reported) > 0:
                reported += more
                bar.advance(more)

        def digest_of(path: Path) -> bytes:
            if (digest := digests.get(path)) is not None:
                return digest
            digest = digest_of_file(path, on_read=count)
            before: FileFacts | None = facts[path]
            if before is not None and before == facts_of(str(path.absolute())):
                hash_cache.put(str(path.absolute()), before, digest)
            return digest

        try:
            yield digest_of
        finally:
            hash_cache.save(keep_others=True)

"""Links and special files among inputs: what leads out of its folder, or would block, is refused."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ....pipeline.errors import ImageError
from ....pipeline.failures import FailureReason
from ....pipeline.files.inside import blobs_of


def refuse_link(path: str, root: str, source: str) -> None:
    """Refuse the file of a row that leads out of the list's folder by links.

    The links of a snapshot in the Hub's cache lead to the `blobs` of its repository, and may.
    """
    real = os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))  # noqa: PTH118, PTH119, PTH120
    if os.path.islink(path):  # noqa: PTH114
        real = os.path.realpath(path)
    if not real.startswith(_homes(root)):
        raise ImageError(
            FailureReason.NOT_A_FILE,
            f"{source} is a link that leads out of {root}, and what a list names stays in its folder. Write the path "
            "that it leads to into the list, or name the folder itself: there links are followed",
        )


def refuse_special(file: Path, name: str) -> None:
    """Refuse a list, table or tar that is not a regular file: opening a pipe would wait for ever."""
    with suppress(OSError):  # reading will say why
        if not stat.S_ISREG(file.stat().st_mode):
            raise ImageError(FailureReason.NOT_A_FILE, f"{name} is not a regular file")


def broken_link(name: str, leads_to: str) -> ImageError:
    """The problem of a link that leads to nothing."""
    return ImageError(
        FailureReason.MISSING, f"{name} is a link to {leads_to}, which is not there or cannot be looked at"
    )


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """A folder without links."""
    return os.path.realpath(folder)


@lru_cache(maxsize=4096)
def _homes(root: str) -> tuple[str, ...]:
    home = f"{real_folder(root).rstrip('/')}/"
    return (home, *blobs_of(home))


def forget_links() -> None:
    """Look anew where links lead: they may have changed since the last listing."""
    real_folder.cache_clear()
    _homes.cache_clear()

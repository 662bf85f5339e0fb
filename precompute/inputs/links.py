"""Links and special files among inputs: what leads out of its folder, or would block, is refused."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason


def refuse_link(path: str, root: str, source: str) -> None:
    """Refuse a file that does not lie inside the root, links resolved."""
    real_root = real_folder(root)
    folder = real_folder(os.path.dirname(path))  # noqa: PTH120
    inside = folder == real_root or folder.startswith(real_root.rstrip("/") + "/")
    if inside and os.path.islink(path):  # noqa: PTH114
        inside = os.path.realpath(path).startswith(real_root.rstrip("/") + "/")
    if not inside:
        raise ImageError(FailureReason.NOT_A_FILE, f"{source} is a link that leads out of {root}")


def refuse_special(file: Path, name: str) -> None:
    """Refuse a list, table or tar that is not a regular file: opening a pipe would wait for ever."""
    with suppress(OSError):  # reading will say why
        if not stat.S_ISREG(file.stat().st_mode):
            raise ImageError(FailureReason.NOT_A_FILE, f"{name} is not a regular file")


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    return os.path.realpath(folder)

"""Where the files of the tests are: in memory if the machine allows, as a store waits for its disk some 75 times.

What a passed test left there goes at once, and what a failed one left with the next run (pyproject.toml).
"""

import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 2**30


def holds_the_tests(folder: Path) -> bool:
    """Whether a folder may be written to, has room for the tests' files, and programs among them may be run there."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    has_room = disk.f_bavail * disk.f_frsize >= _ROOM_BYTES
    return os.access(folder, os.W_OK) and has_room and not disk.f_flag & os.ST_NOEXEC

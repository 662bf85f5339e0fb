"""Whether machines can be made of namespaces here, for tests of several hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path


def why_none(what: str, needed: Sequence[str], packages: str) -> str:
    """Why none are made here; empty where they are.

    Args:
        what: they are for. needed: programs, found in these Debian packages.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return f"{what} made of namespaces: takes Linux and root"
    if missing := [name for name in needed if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)} (Debian: {packages})"
    if not _are_permitted():
        return "namespaces are not permitted here"
    if any(str(Path(place).resolve()).startswith("/tmp/") for place in (sys.prefix, sys.base_prefix, __file__)):
        return "Python or the checkout lies in /tmp, which each of them has of its own"
    return ""


@cache
def _are_permitted() -> bool:
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0

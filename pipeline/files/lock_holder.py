"""Who holds a lock: a process, described so that its machine can tell whether it still runs."""

from __future__ import annotations

import os
import platform
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Holder(BaseModel):
    """The process that a lock speaks of."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Of this holding of the lock, by chance."""
    host: str
    boot: str
    """The kernel's name for the time since the machine was started; empty where it gives none."""
    pids: str
    """The space that `pid` is a number of: containers have their own."""
    pid: int
    started: int
    """When the process began, in ticks since `boot`: its number may have been given out again."""
    since: str
    """For people."""

    @classmethod
    def this(cls) -> Holder:
        """This process, holding another lock each time."""
        pid = os.getpid()
        return cls(
            id=secrets.token_hex(8),
            host=platform.node(),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            pids=_link("/proc/self/ns/pid"),
            pid=pid,
            started=_started(pid) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def is_gone(self) -> bool:
        """Whether the process has certainly ended."""
        return self._is_alive() is False

    def is_alive(self) -> bool:
        """Whether the process certainly runs."""
        return self._is_alive() is True

    def _is_alive(self) -> bool | None:
        """None of another machine or container, and where the kernel does not say."""
        this = Holder.this()
        if self.host != this.host or not self.boot or not this.boot:
            return None
        if self.boot != this.boot:
            return False
        if self.pids != this.pids:
            return None
        try:
            os.kill(self.pid, 0)  # only asks
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            pass
        started = _started(self.pid)
        return None if started is None else started == self.started


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _link(name: str) -> str:
    try:
        return str(Path(name).readlink())
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Field 22 of proc_pid_stat(5), which a step of the clock leaves alone; None where it is not shown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None

"""Hosts of a small network on one machine: each has its own addresses, processes, host name, /tmp and /dev/shm.

They are namespaces, which takes Linux, root and iproute2. No way leads out of the network, as on a closed cluster, and
/dev/shm holds 64 MB, as in a container. What the hosts share is the rest of the file system.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.namespaces import why_none
from tests.patience import eventually, patience

NEIGHBOUR = 65534
"""User id of somebody else on the hosts, who owns nothing."""
_NETWORK = "10.78.0"
_HOST = """
set -e
hostname "$1"
mount --make-rprivate /
mount -t tmpfs -o mode=1777,size=64m none /dev/shm
mount -t tmpfs -o mode=1777 none /tmp
mount -t proc none /proc
mount --bind "$2" /etc/hosts
touch "/tmp/.made"
exec 3<> <(:)
while :; do read -t 3600 -u 3 || true; done  # without a process of its own; bash also reaps what loses its parent
"""


@dataclass
class Hosts:
    """A running network; hosts are numbered from 1.

    Attributes:
        shared: a folder all hosts see, and their home.
    """

    shared: Path
    _first: list[int] = field(default_factory=list[int])
    """Process id, outside, of the first process of each host."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def address(self, number: int) -> str:
        return f"{_NETWORK}.{number}"

    def command(self, number: int, script: str, user: int = 0, **environment: str) -> list[str]:
        """What runs a script of bash on a host. It knows the names `theworld`, `ray` and `python`."""
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        values = {"PATH": path, "HOME": str(self.shared), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        values["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        words = ["nsenter", "-t", str(self._first[number - 1]), "--all", f"--wd={self.shared if user == 0 else '/'}"]
        words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "env", "-i"]
        words += [f"{name}={value}" for name, value in (values | environment).items()]
        return [*words, "bash", "-c", script]

    def run(self, number: int, script: str, user: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = self.command(number, script, user, **environment)
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=patience(180))

    def processes(self, number: int) -> list[psutil.Process]:
        """All that run on a host, except for its first one."""
        home, found = _namespace(self._first[number - 1]), list[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != self._first[number - 1]
                if is_alive and _namespace(process.pid) == home:
                    found.append(process)
        return found

    def kill_all(self, number: int) -> None:
        """Every process of a host ends at once; what it has in /tmp stays."""
        for process in self.processes(number):
            with suppress(psutil.Error):
                process.kill()
        assert eventually(lambda: not self.processes(number))

    def start(self, count: int) -> None:
        names = "".join(f"{self.address(number)} host{number}\n" for number in range(1, count + 1))
        (self.shared / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for number in range(1, count + 1):
            words = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
            words += ["bash", "-c", _HOST, "host", f"host{number}", str(self.shared / "hosts")]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
            self._processes.append(process)
            assert eventually(lambda process=process: bool(psutil.Process(process.pid).children()))
            self._first.append(psutil.Process(process.pid).children()[0].pid)
            first = self._first[-1]
            assert eventually(lambda first=first: Path(f"/proc/{first}/root/tmp/.made").exists())
        # the first host's bridge connects them all, and has its address
        self._ip(1, "link add net0 type bridge")
        for number in range(2, count + 1):
            self._ip(1, f"link add to{number} type veth peer name net0 netns {self._first[number - 1]}")
            self._ip(1, f"link set to{number} master net0 up")
        for number in range(1, count + 1):
            for words in ("link set lo up", "link set net0 up", f"addr add {self.address(number)}/24 dev net0"):
                self._ip(number, words)

    def stop(self) -> None:
        for first in self._first:
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait(patience(30))

    def _ip(self, number: int, words: str) -> None:
        inside = ["nsenter", "--net", "-t", str(self._first[number - 1])]
        subprocess.run([*inside, "ip", *words.split()], check=True, capture_output=True)


def why_not() -> str:
    """Why no hosts are made here; empty where they are."""
    return why_none("hosts", ("ip", "unshare", "nsenter", "setpriv"), "iproute2, util-linux")


@contextmanager
def network(count: int) -> Iterator[Hosts]:
    """So many hosts; removed at the end."""
    hosts = Hosts(Path(tempfile.mkdtemp(prefix="theworld-hosts-", dir="/var/tmp")))
    try:
        hosts.start(count)
        yield hosts
    finally:
        hosts.stop()
        shutil.rmtree(hosts.shared, ignore_errors=True)


def _namespace(process: int) -> Path:
    return Path(f"/proc/{process}/ns/pid").readlink()

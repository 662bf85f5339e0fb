"""A small SLURM cluster on one machine: each node has its own network, processes, host name, /tmp, /run and /dev/shm.

Takes root, the kernel's namespaces, and Debian's slurm-wlm, munge and iproute2. What the nodes share is one folder, as
a cluster shares its file system. The daemons are the real ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.namespaces import why_none
from tests.patience import patience

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter", "setpriv")
RESEARCHER, NEIGHBOUR = 4241, 4242
"""User ids: of whom the jobs are, and of somebody else on the nodes."""
_NETWORK = "10.77.0"

_CONFIG = """
ClusterName=test
SlurmctldHost=n1({network}.1)
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket,cred_expire=15
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/run/state
SlurmdSpoolDir=/run/spool
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={base}/log/slurmctld
SlurmdLogFile={base}/log/slurmd.%n
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=30
SlurmdTimeout=15
ReturnToService=2
JobRequeue=1
MailProg=/bin/true
LaunchParameters=use_interactive_step
NodeName=n[1-{count}] CPUs={cores} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""

_NODE = """
set -e
name=$1 base=$2 closed=$3 python=$4 first=$5
hostname "$name"
mount --make-rprivate /
mount -t tmpfs -o mode=1777 none /dev/shm
mkdir -p "$base/hold/$name"
mount --bind "$python" "$base/hold/$name"
if [ -n "$closed" ]; then  # others may not enter it, and Python lies within
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$python"
    mount --bind "$base/hold/$name" "$python"
fi
mount -t tmpfs -o mode=1777 none /tmp
mount -t tmpfs -o mode=755 none /run
mount -t proc none /proc
for file in hosts passwd group; do mount --bind "$base/etc/$file" "/etc/$file"; done
mount --bind "$base/etc/slurm" /etc/slurm
mkdir -p /run/state /run/spool
until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.1; done
munged --force --key-file="$base/etc/munge.key" --socket=/run/munge.socket --pid-file=/run/munged.pid \
    --log-file="$base/log/munged.$name" --seed-file=/run/munged.seed
[ "$first" = 0 ] || slurmctld -i
slurmd -D -N "$name" > "$base/log/slurmd.$name.out" 2>&1 &  # below bash, which reaps what loses its parent
while kill -0 $!; do wait $! || true; done
"""


@dataclass
class Slurm:
    """A running cluster.

    Attributes:
        shared: the folder all nodes see, and the researcher's home.
        nodes: name -> process id, outside, of the first process in the node.
    """

    base: Path
    cores: int
    nodes: dict[str, int] = field(default_factory=dict[str, int])
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    _switch: int = 0

    @property
    def shared(self) -> Path:
        return self.base / "shared"

    def start(self, count: int) -> None:
        """Start the nodes and wait until SLURM calls them idle."""
        self._lay_out(count)
        switch = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._processes.append(switch)
        self._switch = switch.pid
        _until(lambda: _namespace(switch.pid, "net") != _namespace("self", "net"), 20, "a network")
        self._in_switch("ip", "link", "add", "br0", "type", "bridge")
        self._in_switch("ip", "link", "set", "br0", "up")
        for number in range(1, count + 1):
            self._start_node(number)
        _until(lambda: self.sinfo().count("idle") == count, 90, "all nodes to be idle", self.logs)

    def install(self) -> None:
        """Put the commands of this environment on the researcher's PATH, and give them everything in the folder."""
        (self.shared / "bin").mkdir()
        ray = shutil.which("ray") or str(Path(sys.executable).parent / "ray")
        torchrun = "-m torch.distributed.run"
        for name, words in {"theworld": "-m theworld", "python": "", "ray": ray, "torchrun": torchrun}.items():
            script = self.shared / "bin" / name
            script.write_text(f'#!/bin/sh\nexport OMP_NUM_THREADS=1\nexec {sys.executable} {words} "$@"\n')
            script.chmod(0o755)
        for path in self.shared.rglob("*"):
            os.chown(path, RESEARCHER, RESEARCHER)

    def start_node_again(self, name: str) -> None:
        """Boot a node that was killed."""
        self._start_node(int(name[1:]))

    def kill_node(self, name: str) -> None:
        """Everything on a node ends at once, as when its power fails."""
        pid = self.nodes.pop(name)
        os.kill(pid, signal.SIGKILL)
        _until(lambda: not psutil.pid_exists(pid), 20, f"{name} to end")

    def run(self, *words: object, node: str = "n1", user: int = RESEARCHER, **environment: str) -> str:
        """Run a command on a node; what it prints. Raises CalledProcessError where it fails."""
        done = subprocess.run(
            self._command(node, user, words, environment), capture_output=True, text=True, timeout=patience(120)
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr + self.logs())
        return done.stdout

    def sinfo(self) -> str:
        """The states of the nodes, a line each."""
        with suppress(subprocess.CalledProcessError):
            return self.run("sinfo", "-h", "-N", "-o", "%T", user=0)
        return ""

    def submit(self, *words: object, **environment: str) -> int:
        """`sbatch` some words; the job's id."""
        return int(self.run("sbatch", "--parsable", *words, **environment).strip())

    def job(self, number: int | str) -> dict[str, str]:
        """What SLURM says of a job: JobState, ExitCode, Restarts and the like."""
        words = self.run("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: int | str, *states: str, limit_s: float = 400) -> dict[str, str]:
        """The job once it is in one of these states; it has ended by default."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        return _until(
            lambda: (said := self.job(number))["JobState"] in wanted and said, limit_s, f"job {number}", self.logs
        )

    def processes(self, name: str, user: int = RESEARCHER) -> list[str]:
        """The command lines of a user's processes on a node."""
        pids = _namespace(self.nodes[name], "pid")
        found: list[str] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                is_users = process.uids().real == user and process.status() != psutil.STATUS_ZOMBIE
                if is_users and _namespace(process.pid, "pid") == pids:
                    found.append(" ".join(process.cmdline()))
        return found

    def left(self) -> list[str]:
        """The processes, folders and tokens of jobs, on all nodes."""
        found = [str(path) for path in self.shared.glob(".theworld-*")]
        for node in self.nodes:
            found += [line for line in self.processes(node) if "sbatch" not in line]
            found += self.run("find", "/tmp", "-mindepth", "1", "-user", RESEARCHER, node=node).split()
        return found

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        texts = [f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in self.base.glob("log/*")]
        return "\n".join(texts)

    def stop(self) -> None:
        """End every process and remove every file."""
        for pid in self.nodes.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait(patience(30))
        shutil.rmtree(self.base, ignore_errors=True)

    def _lay_out(self, count: int) -> None:
        for folder in ("etc/slurm", "log", "hold", "shared"):
            (self.base / folder).mkdir(parents=True)
        self.base.chmod(0o755)
        etc = self.base / "etc"
        text = _CONFIG.format(network=_NETWORK, base=self.base, count=count, cores=self.cores)
        (etc / "slurm" / "slurm.conf").write_text(text)
        (etc / "munge.key").write_bytes(os.urandom(128))
        (etc / "munge.key").chmod(0o400)
        nodes = "".join(f"{_NETWORK}.{number} n{number}\n" for number in range(1, count + 1))
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{nodes}")
        for file, line in (("passwd", "{name}:x:{id}:{id}::{home}:/bin/bash\n"), ("group", "{name}:x:{id}:\n")):
            users = (("researcher", RESEARCHER, self.shared), ("neighbour", NEIGHBOUR, "/tmp"))
            more = "".join(line.format(name=name, id=user, home=home) for name, user, home in users)
            (etc / file).write_text(Path("/etc", file).read_text() + more)
        os.chown(self.shared, RESEARCHER, RESEARCHER)

    def _start_node(self, number: int) -> None:
        name = f"n{number}"
        python = Path(sys.base_prefix).resolve()
        closed = next((one for one in reversed(python.parents) if one.stat().st_mode & 0o005 != 0o005), "")
        words = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        words += ["bash", "-c", _NODE, name, name, self.base, closed, python, int(number == 1)]
        with (self.base / "log" / name).open("ab") as log:
            node = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(node)
        [first] = _until(lambda: psutil.Process(node.pid).children(), 20, f"{name} to start", self.logs)
        self.nodes[name] = first.pid
        port = f"p{number}"
        with suppress(subprocess.CalledProcessError):  # of the node that was killed
            self._in_switch("ip", "link", "del", port)
        self._in_switch("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(first.pid))
        self._in_switch("ip", "link", "set", port, "master", "br0", "up")
        inside = ["nsenter", "--net", "-t", str(first.pid)]
        for words in ("link set lo up", "link set eth0 up", f"addr add {_NETWORK}.{number}/24 dev eth0"):
            subprocess.run([*inside, "ip", *words.split()], check=True)

    def _in_switch(self, *words: str) -> None:
        command = ["nsenter", "--net", "-t", str(self._switch), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _command(self, node: str, user: int, words: tuple[object, ...], more: Mapping[str, str]) -> list[str]:
        home = self.shared if user == RESEARCHER else "/tmp"
        environment = {"PATH": f"{self.shared}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "LC_ALL": "C.UTF-8"}
        settings = [f"{name}={value}" for name, value in (environment | dict(more)).items()]
        inside = ["nsenter", "-t", self.nodes[node], "--all", f"--wd={home if user != 0 else '/'}"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        return list(map(str, [*inside, *become, "env", "-i", *settings, *words]))


def why_not() -> str:
    """Why a cluster is not made here; empty where it is."""
    if not os.environ.get("THEWORLD_TEST_SLURM"):
        return "takes half an hour: make slurm, or THEWORLD_TEST_SLURM=1"
    return why_none("a SLURM cluster", NEEDED, "slurm-wlm, munge, iproute2")


@contextmanager
def slurm_cluster(count: int = 2, cores: int = 1) -> Iterator[Slurm]:
    """A cluster of so many nodes; removed at the end."""
    slurm = Slurm(Path(tempfile.mkdtemp(prefix="theworld-slurm-", dir="/var/tmp")), cores)
    try:
        slurm.start(count)
        yield slurm
    finally:
        slurm.stop()


def until(condition: Callable[[], bool], say: Callable[[], str], limit_s: float = 300) -> None:
    """Wait until something is so; says why it failed where it never is."""
    end = time.monotonic() + patience(limit_s)
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.3)


def _namespace(process: int | str, kind: str) -> Path:
    return Path(f"/proc/{process}/ns/{kind}").readlink()


def _until(condition, limit_s: float, what: str, logs=lambda: ""):  # type: ignore[no-untyped-def]
    end = time.monotonic() + patience(limit_s)
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {patience(limit_s):.0f} s for {what}\n{logs()}")

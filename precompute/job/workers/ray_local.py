"""A private Ray for one job: loopback only, token on, inside a 0700 folder, gone at the end. The door to `ray`.

Why each setting: a default `ray.init()` listens on every interface with ports that run code for whoever connects. It
also makes its folder writable for everybody (0777), whatever it was before, so another user could put files of theirs
in place of its sockets and logs: the folder it is given lies in one of ours that only this user may enter. Nothing here
joins or leaves anything behind for another cluster.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from ....pipeline.credentials import bucket_names, secret_names
from ....pipeline.errors import ConfigError, Interrupted
from ..signals import before_the_end, held

_log = logging.getLogger(__name__)

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    # despite its name, on Linux this binds every service to loopback; checked after start below
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # what the command has: at Ray's 15 a worker got 1/30 of the time of another busy program in the same session
    "RAY_worker_niceness": "0",
    # of seconds; where the driver was killed, the last of Ray's helpers otherwise stays for a minute
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_OBJECT_STORE_BYTES = 128 * 2**20
"""Receipts and names pass through it, never latents; Ray's least are 75 MiB."""
_SHARED_MEMORY = Path("/dev/shm")
_MAX_SOCKET_FOLDER = 23
"""The path of a Unix socket has 107 bytes; ours and Ray's names below the folder take 84: `tw-PID-xxxxxx/r/
session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store`."""
_RAYS = "r"
"""What Ray is given, inside a session's folder: one letter, for the same reason."""
_HOST = "host"
"""File with the name of a session's machine: on another, which may share TMPDIR, its process's number says nothing."""
STOP_S = 20.0
"""For Ray to stop by itself; without its raylet it may wait for ever."""
LEAVE_S = 1.0
"""For this process to leave its own Ray, in which nothing of use is left."""
PUT_S = 5.0
"""For a stop sign to be put up."""
_LOOK_S = 0.2
"""Between looks at a stop sign, each of which asks another process."""
_OF_THE_GROUP = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""What a closing terminal or a batch system may send to all processes of a job: the driver alone acts on it, else
Ray's processes would take the workers' batches with them. Ray itself does the same with SIGINT."""


@dataclass(frozen=True)
class Session:
    """A private Ray that is running."""

    ray: Any
    """The module."""
    check: Callable[[], None]
    """Raises Interrupted where Ray's own processes are gone: no answer will come any more. Takes microseconds."""


class StopSign:
    """Tells the workers of one pool, wherever they run, to end after their current batch: a key in Ray's table."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._looked_at = 0.0
        self._is_up = False

    def put_up(self) -> None:
        """For the driver. Where Ray does not answer, nobody is left to be told."""
        from ray.experimental import internal_kv

        def put() -> None:
            with suppress(Exception):
                internal_kv._internal_kv_put(self._name, b"1")

        # in a thread: where Ray's table is gone, this tries for a minute
        putting = threading.Thread(target=put, daemon=True)
        putting.start()
        putting.join(PUT_S)

    def is_up(self) -> bool:
        """For a worker."""
        if not self._is_up and time.monotonic() - self._looked_at > _LOOK_S:
            from ray.experimental import internal_kv

            with suppress(Exception):  # Ray's table may be starting anew; Ray ends the worker where it is gone
                self._is_up = bool(internal_kv._internal_kv_exists(self._name))
            self._looked_at = time.monotonic()
        return self._is_up


@contextmanager
def ray_session(*, cpus: int, gpus: int = 0, with_buckets: bool = False) -> Generator[Session, None, None]:
    """Start Ray on this machine, yield it, and stop it again.

    Args:
        with_buckets: its workers get the credentials of buckets that this process has, by their environment alone.
    Raises:
        ConfigError: Ray listens beyond this machine in spite of its settings, or opened our folder to other users.
    """
    base = new_folder()
    token = base / "token"
    children_before = {child.pid for child in psutil.Process().children()}

    def rays_own() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in children_before]

    def leave_nothing() -> None:
        _kill(rays_own())
        shutil.rmtree(base, ignore_errors=True)

    before_the_end.append(leave_nothing)
    old_umask = os.umask(0o077)
    try:
        token.write_text(_token())
        # a leftover address must never make a local job join a cluster
        settings = environment(**_SETTINGS, RAY_AUTH_TOKEN_PATH=str(token), RAY_ADDRESS=None, RAY_AUTH_TOKEN=None)
        # Ray prints its news, a lost worker say, among our results
        with settings, redirect_stdout(sys.stderr):
            import ray

            # workers need no token or password of yours: the world model's files are here by now
            kept = set(bucket_names(os.environ) if with_buckets else ())
            no_secrets = environment(**dict.fromkeys(set(secret_names(os.environ)) - kept, None))
            # held: an exception from within would leave a Ray behind that is half up
            with no_secrets, held(), _blocked(_OF_THE_GROUP), _fewer_processes():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=str(base / _RAYS),
                    _plasma_directory=str(_room_for_objects(base)),
                )
            started = rays_own()
            try:
                os.umask(old_umask)
                _refuse_open_ports()
                _refuse_open_files(base, token)
                with kept_to_the_log():
                    yield Session(ray, check=watch(started))
            finally:
                stop(ray, started)
    finally:
        os.umask(old_umask)
        shutil.rmtree(base, ignore_errors=True)
        before_the_end.remove(leave_nothing)


@contextmanager
def kept_to_the_log() -> Generator[None, None, None]:
    """Ray's messages of lost nodes and workers go to the log, not to the screen: the pool says what became of them."""
    from ray._private import worker

    show = worker.print_to_stdstream
    worker.print_to_stdstream = lambda message, *_, **__: _log.debug("Ray: %s", message)
    try:
        yield
    finally:
        worker.print_to_stdstream = show


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Generator[None, None, None]:
    """Signals of this thread wait until the end of the block; what it starts inside never gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _fewer_processes() -> Generator[None, None, None]:
    """Keep Ray from starting three processes of its own that a job has no use for.

    Without a dashboard, the dashboard's is there for the report of usage alone. It asks the addresses of three clouds
    where it runs, by HTTP and DNS, even if nothing is to be reported. One hands to the driver what workers print, which
    `log_to_driver=False` refuses; one adds nodes to a cluster that grows, and this one has its only node.
    """
    from ray._private import services
    from ray._private.node import Node

    before = services.start_api_server, Node.start_monitor, Node.start_log_monitor
    services.start_api_server = lambda *_, **__: (None, None)  # what it answers where it cannot start one
    Node.start_monitor = Node.start_log_monitor = lambda self: None  # noqa: ARG005
    try:
        yield
    finally:
        services.start_api_server, Node.start_monitor, Node.start_log_monitor = before


def _room_for_objects(base: Path) -> Path:
    """Where Ray keeps its objects: in shared memory, or in our folder where a container has too little of it.

    Left to itself, Ray then warns of slow work and advises to ask for gigabytes, neither of which holds for a job.
    """
    with suppress(OSError):
        if shutil.disk_usage(_SHARED_MEMORY).free >= _OBJECT_STORE_BYTES:
            return _SHARED_MEMORY
    return base


def new_folder() -> Path:
    """Make a private folder for one session, and remove folders that killed jobs of this user left behind."""
    temp = tempfile.gettempdir()
    parent = Path(temp if len(os.fsencode(temp)) <= _MAX_SOCKET_FOLDER else "/tmp")
    _sweep(parent)
    while True:  # `mkdtemp` would take two letters more, which Ray's sockets need
        folder = parent / f"tw-{os.getpid()}-{secrets.token_hex(3)}"
        with suppress(FileExistsError):  # never one that somebody else made
            folder.mkdir(mode=0o700)
            (folder / _HOST).write_text(socket.gethostname())
            return folder


@cache
def _token() -> str:
    """The same for all sessions of this process: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


@contextmanager
def environment(**values: str | None) -> Generator[None, None, None]:
    """Variables of this process, and of what it starts, for the length of a block; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def stop(ray: Any, started: list[psutil.Process]) -> None:
    """Shut Ray down, by force where it does not stop by itself: without a raylet or a GCS it may not.

    Args:
        started: processes of a Ray of ours, which get no SIGTERM: killed once this process has taken its leave.
    """
    stopping = threading.Thread(target=ray.shutdown, daemon=True)
    stopping.start()
    if started:
        stopping.join(LEAVE_S)
        _kill(started)
    stopping.join(STOP_S)
    if stopping.is_alive() or any(map(_is_running, started)):
        _kill(started)


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes of ours and all below them."""
    for process in processes:
        with suppress(psutil.Error):
            for child in process.children(recursive=True):
                child.kill()
            process.kill()


def watch(started: Iterable[psutil.Process]) -> Callable[[], None]:
    """What raises Interrupted once Ray's own processes among these have died: Ray itself would end this process."""
    essential = [(process.name(), process) for process in started if process.name() in ("raylet", "gcs_server")]

    def check() -> None:
        for name, process in essential:
            if not _is_running(process):
                raise Interrupted(
                    f"Ray's {name} died (was it killed, or is the machine out of memory?), and with it the workers. "
                    "Committed latents are kept: run the same command again, with --in-process if Ray is the cause"
                )

    return check


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def open_ports() -> list[str]:
    """Addresses beyond loopback on which this process or a child of it listens, as `name ip:port`."""
    addresses: list[str] = []
    this_process = psutil.Process()
    for process in (this_process, *this_process.children(recursive=True)):
        try:
            for connection in process.net_connections(kind="inet"):
                address = connection.laddr
                if connection.status != psutil.CONN_LISTEN or not address:
                    continue
                ip = ip_address(address.ip)
                mapped = getattr(ip, "ipv4_mapped", None)
                if not (mapped or ip).is_loopback:
                    addresses.append(f"{process.name()} {address.ip}:{address.port}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return addresses


def _sweep(parent: Path) -> None:
    """Remove the session folders of jobs of ours on this machine that were killed before they could."""
    for folder in parent.glob("tw-[0-9]*-*"):
        with suppress(OSError, ValueError, OverflowError):  # another job sweeps too; or it was never a job's
            pid = int(folder.name.split("-")[1])
            is_ours = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if is_ours and not psutil.pid_exists(pid) and (folder / _HOST).read_text() == socket.gethostname():
                shutil.rmtree(folder, ignore_errors=True)


def _refuse_open_files(*paths: Path) -> None:
    for path in paths:
        status = path.lstat()
        if status.st_mode & 0o077 or status.st_uid != os.getuid():
            raise ConfigError(
                f"{path} became accessible to other users (mode {status.st_mode & 0o777:o}) when Ray started, and they "
                "could run code in this job. Run with --in-process, set TMPDIR to a folder of a file system that keeps "
                "the rights of files, or install the tested version of ray"
            )


def _refuse_open_ports() -> None:
    if ports := open_ports():
        raise ConfigError(
            f"Ray listens beyond this machine ({', '.join(ports)}), where anyone could run code in this job. "
            "This version of Ray ignores the settings that keep it on loopback; run with --in-process, "
            "or install the tested version of ray"
        )

"""A private Ray for one job: loopback only, token on, its own 0700 folder, gone at the end. The one door to `ray`.

Why each setting: a default `ray.init()` listens on every interface with ports that run code for whoever connects, and
writes its session world-readable. Nothing here joins or leaves anything behind for another cluster.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from ..pipeline.errors import ConfigError

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    # despite its name, on Linux this binds every service to loopback; checked after start below
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_OBJECT_STORE_BYTES = 128 * 2**20
"""Receipts and names pass through it, never latents."""
_MAX_SOCKET_FOLDER = 50
"""Unix sockets have 107 characters; Ray's own names below the folder take the rest."""


@contextmanager
def ray_session(*, cpus: int, gpus: int = 0) -> Generator[Any, None, None]:
    """Start Ray on this machine, yield the `ray` module, and stop it again.

    Raises:
        ConfigError: Ray listens beyond this machine in spite of its settings.
    """
    parent = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < _MAX_SOCKET_FOLDER else "/tmp")
    _sweep(parent)
    base = Path(tempfile.mkdtemp(prefix=f"tw-{os.getpid()}-", dir=parent))
    token = base / "token"
    before = {name: os.environ.get(name) for name in (*_SETTINGS, "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")}
    os.environ.update(_SETTINGS, RAY_AUTH_TOKEN_PATH=str(token))
    os.environ.pop("RAY_ADDRESS", None)  # a leftover address must never make a local job join a cluster
    old_umask = os.umask(0o077)
    try:
        token.write_text(secrets.token_hex(32))
        with redirect_stdout(sys.stderr):  # Ray prints its news, a lost worker say, among our results
            import ray

            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(base),
            )
            try:
                os.umask(old_umask)
                _refuse_open_ports()
                yield ray
            finally:
                ray.shutdown()
    finally:
        os.umask(old_umask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(base, ignore_errors=True)


def open_ports() -> list[str]:
    """Addresses beyond loopback on which this process or a child of it listens, as `name ip:port`."""
    found: list[str] = []
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            for connection in process.net_connections(kind="inet"):
                address = connection.laddr
                if connection.status != psutil.CONN_LISTEN or not address:
                    continue
                ip = ip_address(address.ip)
                mapped = getattr(ip, "ipv4_mapped", None)
                if not (mapped or ip).is_loopback:
                    found.append(f"{process.name()} {address.ip}:{address.port}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _sweep(parent: Path) -> None:
    """Remove the session folders of jobs of ours that were killed before they could."""
    for folder in parent.glob("tw-[0-9]*-*"):
        pid = int(folder.name.split("-")[1])
        if not psutil.pid_exists(pid) and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_open_ports() -> None:
    if ports := open_ports():
        raise ConfigError(
            f"Ray listens beyond this machine ({', '.join(ports)}), where anyone could run code in this job. "
            "This version of Ray ignores the settings that keep it on loopback; run with --in-process, "
            "or install the tested version of ray"
        )

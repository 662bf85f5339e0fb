"""Joining a Ray cluster that somebody started: only by its address, only where it asks for a token.

A Ray without token auth runs code for whoever reaches its ports (CVE-2023-48022), so such a cluster is refused. The
token comes from where Ray looks for it (RAY_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN, ~/.ray/auth_token) and never enters a
runtime_env, whose values Ray logs in clear. This package travels with the job; what the nodes need is Python with its
dependencies, and the same folders of inputs and cache. How to start such a cluster: docs/cluster.md.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from .... import pipeline
from ....pipeline.credentials import hide_passwords
from ....pipeline.errors import ConfigError, Interrupted
from ....pipeline.messages import name_some
from ....pipeline.progress import Progress
from .ray_local import Session, environment, kept_to_the_log, new_folder, stop, watch

_PROBE_S, _CONNECT_S = 60.0, 5.0
_CHECK_EVERY_S = 10.0
_MISSED_CHECKS = 3
_FIRST_NODE_S = 30.0
LOOK_S = 1.0
"""Between two looks for nodes that have joined, before the job begins."""
NODES_S = 300.0
"""To wait for the nodes of a cluster; starting Ray on a cold shared disk takes a minute or two."""
_ROOMS = ("pipeline", "precompute", "train")


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """How many workers a cluster has room for, and what each takes."""

    device: str
    workers: int
    cpus: float
    """Of one worker, and its threads on a CPU."""
    gpus: float
    cores: int
    """Of the smallest machine, for each worker there."""


def knock(address: str) -> None:
    """Check that this process may join the cluster at HOST:PORT, in seconds, before anything is done for a job.

    Raises:
        ConfigError: not an address, nothing there, no token auth there, no or an unsafe token here, or this machine is
            none of the cluster's.
    """
    host, port = _parse(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # a dot too many is no name at all
        cause = getattr(error, "strerror", None) or error
        raise ConfigError(f"--address {address}: nothing answers there ({cause})") from error
    _require_auth(address)
    deadline = time.monotonic() + _FIRST_NODE_S
    while not (nodes := _require_token(address)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)  # a head answers before its own node has joined
    _require_membership(address, nodes)


@contextmanager
def ray_cluster(address: str) -> Generator[Session, None, None]:
    """Join the cluster at HOST:PORT, yield it, and leave it again.

    Raises:
        ConfigError: as `knock`, which is asked again: hours may lie between; or Ray refuses.
    """
    host, port = _parse(address)
    knock(address)
    settings = environment(RAY_AUTH_MODE="token", RAY_ADDRESS=None, RAY_USAGE_STATS_ENABLED="0")
    with settings, redirect_stdout(sys.stderr):
        import ray

        folder = new_folder()
        try:
            package = _package(folder / "theworld")
            _join(ray, address, package)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # by now the cluster has the package
        try:
            with kept_to_the_log():
                yield Session(ray, check=_cluster_check(ray, host, port))
        finally:
            stop(ray, [])


def _join(ray: Any, address: str, package: Path) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"py_modules": [str(package)]},
        )
    except Exception as error:  # Ray raises half a dozen classes here, builtin ones among them
        answer = hide_passwords(str(error)).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"--address {address}: Ray does not let this process join: {answer[0][:300]}. Run this on a "
            "machine of the cluster, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH, "
            "and the cluster's versions of Python and ray"
        ) from error


def wait_for_nodes(
    session: Session, wanted: int | None, progress: Progress, check: Callable[[], None], limit_s: float = NODES_S
) -> list[dict[str, Any]]:
    """The nodes of a cluster, once there are as many as wanted, or nobody joins any more.

    Args:
        wanted: None takes those that are there.
        check: raises what should end the wait, such as a signal.
    Returns:
        As `ray.nodes()`, those that are alive.
    """
    started = time.monotonic()
    reported = -1
    while True:
        nodes = [node for node in session.ray.nodes() if node["Alive"]]
        waited = time.monotonic() - started
        if wanted is None or len(nodes) >= wanted:
            return nodes
        if waited > limit_s:
            progress.warn(
                f"warning: {len(nodes)} of {wanted} nodes joined within {limit_s:.0f} s. The job begins on these; a "
                "node that joins later is given work while there is some"
            )
            return nodes
        if reported != len(nodes):
            reported = len(nodes)
            progress.say(f"{reported} of {wanted} nodes have joined; waiting up to {limit_s:.0f} s for the others …")
        check()
        session.check()
        time.sleep(LOOK_S)


def plan_workers(nodes: Iterable[Mapping[str, Any]], *, device: str, workers: int | None, small: bool) -> WorkerPlan:
    """Workers for the nodes that are alive: one a GPU; without GPUs one a core, or one a node of a large model.

    Args:
        nodes: as `ray.nodes()` gives them.
        device: "auto", "cpu" or "cuda". workers: at most so many. small: several world models fit on a node.
    Raises:
        ConfigError: there is no room for one.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in resources))
    cores = [int(node.get("CPU", 0)) for node in resources if node.get("CPU", 0) >= 1]
    if device == "cuda" and not gpus:
        raise ConfigError("--device cuda: no node of this cluster has a GPU. Use --device cpu")
    if gpus and device != "cpu":
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in resources if node.get("GPU", 0) >= 1]
        count = min(gpus, workers or gpus)
        return WorkerPlan(device="cuda", workers=count, cpus=1, gpus=1, cores=min(shares, default=1))
    if not cores:
        raise ConfigError("no node of this cluster offers a CPU or a GPU")
    cores_per_worker = 1 if small else min(cores)
    room = sum(count // cores_per_worker for count in cores)
    return WorkerPlan(
        device="cpu", workers=min(room, workers or room), cpus=cores_per_worker, gpus=0, cores=cores_per_worker
    )


def node_of(error: BaseException) -> str:
    """The machine Ray says an actor's error comes from; empty where it does not say."""
    match = re.search(r"\bip=([0-9a-fA-F.:]+)", str(error))
    return match[1] if match else ""


def _parse(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})", address)
    if match is None:
        raise ConfigError(
            f"--address must be HOST:PORT of the cluster's head, such as 10.0.0.1:6379; got {address!r}. "
            "Anything vaguer could join another's cluster"
        )
    return match[1], int(match[2])


_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()
    print("open", *(node.node_manager_address for node in nodes if node.state == 0))
except AuthenticationError:
    print("closed")
"""


def _probe(address: str, **settings: str) -> str:
    """Whether a cluster lets one in: open and its nodes' addresses, closed, or why it cannot be told.

    In a process of its own: Ray fixes its mode and token once a process, and a driver with a wrong token waits for
    minutes.
    """
    command = [sys.executable, "-c", _PROBE, address]
    try:
        answer = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        return f"nothing that listens there answers as Ray does in {_PROBE_S:.0f} s"
    return answer.stdout.strip() or (answer.stderr.strip().splitlines() or ["no reason given"])[-1][:300]


def _require_auth(address: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    answer = _probe(address, **{**clean, "RAY_AUTH_MODE": "disabled"})
    if answer.split()[:1] == ["open"]:
        raise ConfigError(
            f"--address {address}: this cluster asks for no token, so whoever reaches its ports can run code in it "
            "and in this job (CVE-2023-48022). Start it with RAY_AUTH_MODE=token, as docs/cluster.md says"
        )
    if answer != "closed":
        raise ConfigError(f"--address {address}: cannot tell whether this cluster asks for a token: {answer}")


def _require_token(address: str) -> list[str]:
    """The addresses of the cluster's nodes."""
    if not os.environ.get("RAY_AUTH_TOKEN"):
        _require_private_token()
    answer = _probe(address, **{**os.environ, "RAY_AUTH_MODE": "token"})
    if answer.split()[:1] != ["open"]:
        problem = "is not the cluster's token" if answer == "closed" else f"may not be the cluster's token ({answer})"
        raise ConfigError(f"--address {address}: the token here {problem}: copy it from the cluster's head")
    return answer.split()[1:]


def _require_membership(address: str, nodes: Iterable[str]) -> None:
    nic_addresses = chain.from_iterable(psutil.net_if_addrs().values())
    own_addresses = {nic_address.address.partition("%")[0] for nic_address in nic_addresses}
    with suppress(OSError):
        own_addresses |= set(socket.gethostbyname_ex(socket.gethostname())[2])
    nodes = sorted(nodes)
    if not nodes:
        raise ConfigError(f"--address {address}: no node has joined this cluster. Wait until its first one has started")
    if not own_addresses & set(nodes):
        raise ConfigError(
            f"--address {address}: this machine is none of the cluster's, whose nodes are {name_some(nodes)}. "
            "A driver has to run on one of them: log in there, or start Ray here as one more node (docs/cluster.md)"
        )


def _require_private_token() -> None:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        rights = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(
            f"the cluster asks for a token and there is none in {path}: copy it there from the cluster's head, "
            "readable by you alone (chmod 600)"
        ) from error
    if rights:
        raise ConfigError(f"others can read the cluster's token in {path}; chmod 600 it, and better make a new one")


def _package(folder: Path) -> Path:
    """The three rooms under the name they are imported by, wherever they are installed from."""
    [root] = {Path(place).parent for place in pipeline.__path__}
    for room in _ROOMS:
        shutil.copytree(root / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return folder


def _cluster_check(ray: Any, host: str, port: int) -> Callable[[], None]:
    check_raylet, check_head = watch(_raylet_of(ray)), _head_check(host, port)

    def check() -> None:
        check_raylet()
        check_head()

    return check


def _raylet_of(ray: Any) -> list[psutil.Process]:
    """The raylet of this node that the driver talks to; none where it cannot be seen from here."""
    node = getattr(ray._private.worker, "_global_node", None)
    place = getattr(node, "raylet_socket_name", None)
    processes = psutil.process_iter(["name", "cmdline"])
    wanted = f"--raylet_socket_name={place}"
    return [
        process
        for process in processes
        if process.info["name"] == "raylet" and wanted in (process.info["cmdline"] or ())
    ]


def _head_check(host: str, port: int) -> Callable[[], None]:
    last, missed = time.monotonic(), 0

    def check() -> None:
        nonlocal last, missed
        if time.monotonic() - last < _CHECK_EVERY_S:
            return
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            missed = 0
        except OSError:
            missed += 1
        last = time.monotonic()
        if missed >= _MISSED_CHECKS:
            raise Interrupted(
                f"the cluster's head at {host}:{port} does not answer any more. Committed latents are "
                "kept: run the same command again once the cluster is back"
            )

    return check

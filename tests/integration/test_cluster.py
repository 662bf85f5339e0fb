"""A job on somebody's Ray cluster: a head on this machine, a token, an environment that does not have us."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.faults.toy import toy_latent
from tests.integration.test_precompute import make_images
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.store import open_store
from theworld.precompute.cluster import crew_of, ray_cluster

ROOT = Path(__file__).parents[2]
LIMIT_S = 300


@dataclass
class Machines:
    """A head with room for two workers, on loopback."""

    folder: Path
    address: str
    token: Path


def start_ray(folder: Path, port: int, **environment: str) -> None:
    """With an environment that knows nothing of us. One node: Ray lets no second one join over loopback."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--node-ip-address=127.0.0.1"]
    options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    subprocess.run(
        [*map(str, command), f"--port={port}", f"--temp-dir={folder / 'ray'}", *options],
        env=clean | environment,
        cwd=folder,
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )


def stop_ray(folder: Path) -> None:
    """Of our own only: their command lines name the folder."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid():
            process.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="twc-", dir="/tmp"))  # Ray's sockets want short names
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    try:
        start_ray(folder, int(address[10:]), **auth)
        yield Machines(folder, address, token)
    finally:
        stop_ray(folder)
        shutil.rmtree(folder, ignore_errors=True)


def toy(machines: Machines, images: Path, cache: Path, code: int) -> dict[str, Any]:
    """The job on the cluster, with the toy of the fault suite as its world model; what it prints at its end."""
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(machines.token), "HOME": str(machines.folder)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-m", "tests.faults.toy", images, cache, cache.parent / "events", 4]
    done = subprocess.run(
        [*map(str, command), "--address", machines.address],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_cluster_does_a_job_with_the_package_that_is_sent_to_it(machines: Machines, tmp_path: Path) -> None:
    images, cache = make_images(machines.folder / "in", 40), tmp_path / "cache"
    said = toy(machines, images, cache, 0)
    assert (said["written"], said["failed"]) == (40, 0)
    store = open_store(cache)
    for key, latent in zip(store.keys, store.read(store.keys), strict=True):
        np.testing.assert_array_equal(latent, toy_latent(key))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    [places] = [event["where"] for event in events if event["event"] == "started"]
    assert len(places) == 2
    # each has it from Ray, and neither from this checkout nor from an installed one
    assert all(str(machines.folder) in place["package"] for place in places), places
    # the token is in no log, and in no runtime_env
    logs = [path for path in (machines.folder / "ray").rglob("*") if path.is_file() and path.stat().st_size < 2**24]
    assert len(logs) > 5
    assert not [path for path in logs if machines.token.read_bytes() in path.read_bytes()]


JOIN = """
import sys
from theworld.pipeline.errors import ConfigError
from theworld.precompute.cluster import ray_cluster
try:
    with ray_cluster(sys.argv[1]):
        print("joined")
except ConfigError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "rights", "words"),
    [("f" * 64, 0o600, "cluster's token"), (None, 0o600, "chmod 600"), ("f" * 64, 0o644, "others can read")],
)
def test_nobody_joins_with_a_token_that_is_wrong_missing_or_in_others_sight(
    machines: Machines, tmp_path: Path, content: str | None, rights: int, words: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
        token.chmod(rights)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", JOIN, machines.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert words in done.stdout, (done.stdout, done.stderr)
    assert "joined" not in done.stdout


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_refused_with_the_reason() -> None:
    folder = Path(tempfile.mkdtemp(prefix="twc-", dir="/tmp"))
    address = f"127.0.0.1:{free_port()}"
    try:
        start_ray(folder, int(address[10:]), RAY_AUTH_MODE="disabled")
        with pytest.raises(ConfigError, match=r"asks for no token.*RAY_AUTH_MODE=token"), ray_cluster(address):
            pass
    finally:
        stop_ray(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1", "ray://10.0.0.1:10001", ""])
def test_only_a_full_address_names_a_cluster(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"), ray_cluster(address):
        pass


def test_where_nothing_listens_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="nothing answers"), ray_cluster(f"127.0.0.1:{free_port()}"):
        pass


def test_workers_follow_the_resources_of_the_nodes() -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": one} for one in resources] + [{"Alive": False, "Resources": {"GPU": 9}}]

    two = nodes({"CPU": 32, "GPU": 8}, {"CPU": 32, "GPU": 4})
    crew = crew_of(two, device="auto", workers=None, small=False)
    assert (crew.device, crew.workers, crew.gpus) == ("cuda", 12, 1)
    assert crew_of(two, device="auto", workers=3, small=False).workers == 3
    small, large = (crew_of(two, device="cpu", workers=None, small=small) for small in (True, False))
    assert (small.device, small.workers, small.cpus) == ("cpu", 64, 1)
    assert (large.workers, large.cpus) == (2, 32)
    with pytest.raises(ConfigError, match="no node of this cluster has a GPU"):
        crew_of(nodes({"CPU": 4}), device="cuda", workers=None, small=True)


def test_the_slurm_script_is_a_script_and_asks_for_a_token() -> None:
    script = ROOT / "configs" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True, timeout=30)
    text = script.read_text()
    assert all(words in text for words in ("RAY_AUTH_MODE=token", "umask 077", "private network", "--address"))


@pytest.mark.slow
def test_one_process_may_run_one_job_after_another() -> None:
    # Ray reads its token once a process
    code = """
from theworld.precompute.ray_session import ray_session
for _ in range(2):
    with ray_session(cpus=1) as session:
        seven = session.ray.get(session.ray.remote(lambda: 7).remote())
    print(seven)  # inside, what is printed goes to stderr
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.split() == ["7", "7"], done.stderr

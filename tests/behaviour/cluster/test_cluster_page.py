"""docs/cluster.md by trial: its two `ray start` lines make a cluster of two hosts, on which every kind of end is tried.

The hosts are namespaces of this machine (hosts.py). Where they cannot be made, the tests are skipped and say why.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.behaviour.cluster.hosts import NEIGHBOUR, Hosts, network, why_not
from tests.behaviour.cluster.test_cluster import ROOT, assert_holds
from tests.behaviour.precompute.test_precompute import make_images
from tests.patience import eventually, patience

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TAKES_MINUTES = pytest.mark.skipif(not os.environ.get("THEWORLD_TEST_HOSTS"), reason="takes minutes: make hosts")

PAGE = (ROOT / "docs" / "cluster.md").read_text()


def commands(title: str) -> list[str]:
    """The blocks of shell below a title of the page."""
    [section] = re.findall(rf"^### {title}$(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


@dataclass
class Cluster:
    """A Ray cluster of hosts 1 and 2, started as the page says; host 3 is none of its nodes."""

    hosts: Hosts

    @property
    def address(self) -> str:
        return f"{self.hosts.address(1)}:6379"

    def start(self, number: int) -> None:
        """Start Ray on a host."""
        _, everywhere, start = commands("Start one by hand")
        line = start.splitlines()[min(number, 2) - 1]
        script = f"rm -rf /tmp/mine\n{everywhere}\n{line}".replace("10.0.0.1", self.hosts.address(1))
        for _ in range(3):  # Ray gives up after 30 s, which a busy machine may take
            # not on the path of Python: the package comes with the job
            done = self.hosts.run(number, f"set -e\n{script}", PYTHONPATH="")
            if done.returncode == 0:
                break
            self.hosts.kill_all(number)
        assert done.returncode == 0, done.stderr

    def is_up(self, number: int) -> bool:
        return any(process.name() == "raylet" for process in self.hosts.processes(number))

    def workers(self, number: int) -> list[psutil.Process]:
        return [one for one in self.hosts.processes(number) if one.name().startswith("ray::FaultWork")]

    @contextmanager
    def job(
        self, images: Path, cache: Path, *, host: int = 1, nodes: int = 2, pause_s: float = 1
    ) -> Iterator[subprocess.Popen[str]]:
        """The driver, with the fault suite's worker in place of a world model; what it says is in CACHE.log."""
        words = f"exec python -m tests.faults.fault_store {images} {cache} {cache}.events 8"
        script = f"cd {ROOT} && {words} --address {self.address} --nodes {nodes} --pause {pause_s}"
        command = self.hosts.command(host, script, RAY_AUTH_TOKEN_PATH=f"{self.hosts.shared}/token")
        with (
            Path(f"{cache}.log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as driver,
        ):
            try:
                yield driver
            finally:
                self.signal_drivers(signal.SIGKILL)

    def signal_drivers(self, number: signal.Signals) -> None:
        for process in self.hosts.processes(1):
            if "tests.faults.fault_store" in process.cmdline():
                process.send_signal(number)


def said(cache: Path) -> str:
    return Path(f"{cache}.log").read_text()


def events(cache: Path, kind: str) -> list[dict[str, Any]]:
    file = Path(f"{cache}.events")
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def wait_for(driver: subprocess.Popen[str], cache: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patience(180)
    while not condition():
        assert driver.poll() is None, (driver.communicate(), said(cache))
        assert time.monotonic() < deadline, said(cache)
        time.sleep(0.05)


def wait_for_shards(driver: subprocess.Popen[str], cache: Path, count: int = 4) -> None:
    wait_for(driver, cache, lambda: len(events(cache, "shard")) >= count)


def end_of(driver: subprocess.Popen[str], cache: Path, code: int) -> dict[str, Any]:
    """What it prints at its end."""
    out, _ = driver.communicate(timeout=patience(180))
    assert driver.returncode == code, (out, said(cache))
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with network(3) as hosts:
        done = hosts.run(1, commands("Start one by hand")[0])
        assert done.returncode == 0, done.stderr
        yield hosts


@pytest.fixture
def cluster(hosts: Hosts) -> Cluster:
    """Ray is up on hosts 1 and 2, and there alone."""
    cluster = Cluster(hosts)
    if cluster.is_up(3) or not cluster.is_up(1):
        for number in (3, 2, 1):
            hosts.kill_all(number)
    for number in (1, 2):
        if not cluster.is_up(number):
            cluster.start(number)
    return cluster


@pytest.fixture(scope="module")
def at_work(hosts: Hosts) -> Iterator[tuple[Cluster, Path]]:
    """A cluster, and the store of a job that is at work on it."""
    cluster, folder = Cluster(hosts), hosts.shared / "at-work"
    for number in (1, 2):
        cluster.start(number)
    folder.mkdir()
    with cluster.job(make_images(folder / "in", 400), folder / "cache") as driver:
        wait_for_shards(driver, folder / "cache")
        yield cluster, folder / "cache"


@pytest.fixture
def shared(hosts: Hosts, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own that all hosts see."""
    folder = hosts.shared / request.node.name
    folder.mkdir()
    return folder


def test_the_lines_of_the_page_start_two_nodes_that_do_a_job_and_no_words_of_ray_are_on_the_screen(
    at_work: tuple[Cluster, Path],
) -> None:
    _, cache = at_work
    [started] = events(cache, "started")
    assert {place["host"] for place in started["where"]} == {"host1", "host2"}
    # the package came with the job
    assert all(place["package"].startswith("/tmp/mine/ray/") for place in started["where"])
    assert "4 workers on 2 nodes: host1, host2" in said(cache)
    # no way leads to a resolver, and /dev/shm is small: Ray would say so to whoever runs a job
    assert not re.search(r"8\.8\.8\.8|/dev/shm|object.store|WARN|raylet", said(cache)), said(cache)


def test_what_listens_on_a_node_is_what_the_page_says(at_work: tuple[Cluster, Path]) -> None:
    hosts = at_work[0].hosts
    [section] = re.findall(r"^### What listens$(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)[1:]
    seen: set[int] = set()
    for number in (1, 2):
        for line in hosts.run(number, "ss -ltnpH").stdout.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            name = line.split('"')[1].replace("python", "theworld")
            place = "every network" if address == "*" else "the node's address"
            assert address in ("*", hosts.address(number)), line
            [row] = [row for row in rows if fits(row, name, int(port), place)]
            seen.add(rows.index(row))
    assert seen == set(range(len(rows)))
    assert "no dashboard and no port for clients" in section


def fits(row: tuple[str, str, str], name: str, port: int, place: str) -> bool:
    process, ports, on = row
    numbers = [int(number) for number in re.findall(r"\d+", ports)]
    is_port = ports == "any" or (min(numbers) <= port <= max(numbers) if " to " in ports else port in numbers)
    is_process = name[:12] in process or (name.startswith("ray::Fault") and "each worker" in process)
    return is_port and is_process and on.startswith(place)


def test_another_user_of_a_node_reaches_no_folder_of_ray_and_cannot_exchange_the_package(
    at_work: tuple[Cluster, Path],
) -> None:
    hosts = at_work[0].hosts
    for number in (1, 2):
        kinds = r"\( -type d -o -type s \)"
        inside = hosts.run(number, f"find /tmp/mine -mindepth 1 {kinds}").stdout.split()
        assert {Path(path).name for path in inside} >= {"ray", "sockets", "logs", "py_modules_files", "raylet"}
        others = hosts.run(number, f"find /tmp /dev/shm -mindepth 1 {kinds} -not -path '/tmp/mine*'").stdout.split()
        assert others == []
        [package] = [path for path in inside if re.search(r"/_ray_pkg_\w+$", path)]
        exchange = f"mv {package} /tmp/theirs; mkdir {package}; touch {package}/theworld.py; ls {' '.join(inside)}"
        tried = hosts.run(number, exchange, user=NEIGHBOUR)
        assert tried.stdout == ""
        assert tried.stderr.count("Permission denied") == 3 + len(inside), tried.stderr
    # the exchange is no idle threat: with the door open it works
    hosts.run(2, "chmod 755 /tmp/mine")
    folder = "/tmp/mine/ray/session_latest/runtime_resources/"
    assert hosts.run(2, f"mv {folder}/py_modules_files {folder}/theirs", user=NEIGHBOUR).returncode == 0
    hosts.run(2, f"mv {folder}/theirs {folder}/py_modules_files; chmod 700 /tmp/mine")


@TAKES_MINUTES
def test_a_node_that_dies_is_done_without_and_is_given_work_when_it_is_back(cluster: Cluster, shared: Path) -> None:
    images, cache = make_images(shared / "in", 300), shared / "cache"
    with cluster.job(images, cache) as driver:
        wait_for_shards(driver, cache)
        cluster.hosts.kill_all(2)
        wait_for(driver, cache, lambda: "a worker on host2 died" in said(cache))
        cluster.start(2)
        done = end_of(driver, cache, 0)
    assert done["written"] == 300
    assert_holds(cache, 300)
    assert "a worker on host2 is at work in place of the one that died: 4 of 4 workers" in said(cache)
    assert "raylet" not in said(cache), said(cache)
    # the job left nothing
    assert cluster.hosts.run(1, "ls -A /tmp").stdout.split() == [".made", "mine"]


@TAKES_MINUTES
def test_a_node_that_joins_late_is_given_work_and_one_that_sees_no_inputs_is_not(
    cluster: Cluster, shared: Path
) -> None:
    cluster.hosts.kill_all(2)
    images, cache = make_images(shared / "in", 800), shared / "cache"
    cluster.hosts.run(3, f"mount -t tmpfs none {images}")
    with cluster.job(images, cache, nodes=1, pause_s=5) as driver:
        wait_for_shards(driver, cache)
        for number in (2, 3):
            cluster.start(number)
        wait_for(driver, cache, lambda: said(cache).count("a worker on host2 has joined") == 2)
        wait_for(driver, cache, lambda: f"a worker on {cluster.hosts.address(3)}, which was" in said(cache))
        cluster.signal_drivers(signal.SIGTERM)
        end_of(driver, cache, 75)
    assert "is left out, as it does not see the inputs" in said(cache)
    assert not events(cache, "failure")


@TAKES_MINUTES
def test_a_job_that_is_asked_to_wait_for_a_node_says_so_and_begins_when_it_is_there(
    cluster: Cluster, shared: Path
) -> None:
    cluster.hosts.kill_all(2)
    images, cache = make_images(shared / "in", 40), shared / "cache"
    with cluster.job(images, cache) as driver:
        wait_for(driver, cache, lambda: "1 of 2 nodes have joined" in said(cache))
        cluster.start(2)
        assert end_of(driver, cache, 0)["written"] == 40
    assert "4 workers on 2 nodes" in said(cache)


@TAKES_MINUTES
def test_where_the_driver_is_killed_its_workers_end_on_all_nodes_and_the_same_command_goes_on(
    cluster: Cluster, shared: Path
) -> None:
    images, cache = make_images(shared / "in", 100), shared / "cache"
    with cluster.job(images, cache, pause_s=2) as driver:
        wait_for_shards(driver, cache)
        assert all(cluster.workers(number) for number in (1, 2))
        cluster.signal_drivers(signal.SIGKILL)
        assert eventually(lambda: not any(cluster.workers(number) for number in (1, 2)), 60)
    with cluster.job(images, cache) as driver:
        done = end_of(driver, cache, 0)
    assert 0 < done["written"] <= 84
    assert_holds(cache, 100)


@TAKES_MINUTES
@pytest.mark.usefixtures("hears_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_job_on_all_nodes_in_order(cluster: Cluster, shared: Path, number: signal.Signals) -> None:
    images, cache = make_images(shared / "in", 200), shared / "cache"
    with cluster.job(images, cache) as driver:
        wait_for_shards(driver, cache)
        cluster.signal_drivers(number)
        done = end_of(driver, cache, 75)
    assert "remain" in done["error"]
    assert eventually(lambda: not any(cluster.workers(number) for number in (1, 2)), 60)
    assert cluster.hosts.run(1, "ls -A /tmp").stdout.split() == [".made", "mine"]


@TAKES_MINUTES
def test_a_driver_on_a_host_that_is_no_node_is_told_so_at_once(cluster: Cluster, shared: Path) -> None:
    images, cache = make_images(shared / "in", 4), shared / "cache"
    with cluster.job(images, cache, host=3) as driver:
        done = end_of(driver, cache, 2)
    assert "this machine is none of the cluster's" in done["error"]
    assert not cache.exists()


@TAKES_MINUTES
def test_where_the_head_dies_the_job_ends_with_75_and_says_what_to_do(cluster: Cluster, shared: Path) -> None:
    images, cache = make_images(shared / "in", 400), shared / "cache"
    with cluster.job(images, cache, pause_s=2) as driver:
        wait_for_shards(driver, cache)
        for process in cluster.hosts.processes(1):
            if process.name() in ("gcs_server", "raylet"):
                process.kill()
        done = end_of(driver, cache, 75)
    assert "run the same command again" in done["error"].lower()
    assert eventually(lambda: not cluster.workers(2), 90)

"""A job on somebody's Ray cluster: a head on this machine, a token, an environment that does not have us."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.behaviour.cluster.two_nodes import NOT_PERMITTED
from tests.behaviour.precompute.test_precompute import make_images
from tests.faults.fault_store import latent_of
from tests.patience import patience
from theworld.pipeline.errors import ConfigError, Interrupted
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.workers import ray_cluster as ray_cluster_module
from theworld.precompute.job.workers.ray_cluster import _require_membership, plan_workers, ray_cluster, wait_for_nodes

ROOT = Path(__file__).parents[3]
LIMIT_S = patience(300)


@dataclass
class Machines:
    """A head and a second node on loopback, with room for a worker each."""

    folder: Path
    address: str
    token: Path
    raylets: list[int]
    """Their process ids; the head's first."""
    hidden: Path | None
    """A folder that the second node does not see."""


class NotPermittedError(Exception):
    """A mount namespace of its own, which hides a folder."""


def clean_environment(folder: Path, **more: str) -> dict[str, str]:
    """That knows nothing of us."""
    ray = {"RAY_TMPDIR": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return {"PATH": os.environ["PATH"], "HOME": str(folder), **ray, **more}


@contextmanager
def two_nodes(hidden: Path | None = None, auth: str = "token") -> Iterator[Machines]:
    folder = Path(tempfile.mkdtemp(prefix="twc-", dir="/tmp"))  # Ray's sockets want short names
    (folder / "ray").mkdir()
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    environment = clean_environment(folder, RAY_AUTH_MODE=auth, RAY_AUTH_TOKEN_PATH=str(token))
    command = [sys.executable, Path(__file__).with_name("two_nodes.py")]
    command += [hidden] if hidden else []
    with (folder / "log").open("wb") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        cluster = subprocess.Popen(list(map(str, command)), env=environment, cwd=folder, **pipes)
    try:
        assert cluster.stdout is not None
        line = cluster.stdout.readline()
        if not line and cluster.wait(LIMIT_S) == NOT_PERMITTED:
            raise NotPermittedError
        assert line, (folder / "log").read_text()
        yield Machines(folder, token=token, hidden=hidden, **json.loads(line))
    finally:
        cluster.kill()
        cluster.wait(LIMIT_S)
        stop_ray(folder)
        shutil.rmtree(folder, ignore_errors=True)


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
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(two_nodes(hidden=tmp_path_factory.mktemp("hidden")))
        except NotPermittedError:
            yield stack.enter_context(two_nodes())


@contextmanager
def fault_job(machines: Machines, images: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """The job on the cluster, with the fault suite's worker in place of a world model."""
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(machines.token), "HOME": str(machines.folder)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    command = [sys.executable, "-m", "tests.faults.fault_store", images, cache, cache.parent / "events", 4]
    command += ["--address", machines.address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT, **pipes) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def said(driver: subprocess.Popen[str], code: int) -> dict[str, Any]:
    """What it prints at its end."""
    out, err = driver.communicate(timeout=LIMIT_S)
    assert driver.returncode == code, err
    return json.loads(out.splitlines()[-1])


def assert_holds(cache: Path, count: int) -> None:
    store = open_store(cache)
    assert len(store.keys) == count
    for key, latent in zip(store.keys, store.read(store.keys), strict=True):
        np.testing.assert_array_equal(latent, latent_of(key))


@pytest.mark.slow
def test_a_node_that_does_not_see_the_inputs_is_found_before_anything_is_done(
    machines: Machines, tmp_path: Path
) -> None:
    if machines.hidden is None:
        pytest.skip("a mount namespace of its own is not permitted here")
    images, cache = make_images(machines.hidden / "in", 8), tmp_path / "cache"
    with fault_job(machines, images, cache) as driver:
        error = said(driver, 2)["error"]
    for words in ("the workers on 127.0.0.1 could not start", str(images), "the same paths", "all share"):
        assert words in error, error
    assert not open_store(cache).keys


JOIN = """
import sys
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.workers.ray_cluster import ray_cluster
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
def test_two_nodes_do_a_job_with_the_package_that_is_sent_to_them_and_it_outlives_one(
    machines: Machines, tmp_path: Path
) -> None:
    """The last one of this cluster: it has one node less afterwards."""
    images, cache = make_images(tmp_path / "in", 400), tmp_path / "cache"
    with fault_job(machines, images, cache) as driver:
        deadline = time.monotonic() + LIMIT_S
        events = tmp_path / "events"
        while not (events.exists() and '"event": "shard"' in events.read_text()):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raylet = psutil.Process(machines.raylets[1])
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        done = said(driver, 0)
    assert (done["written"], done["failed"]) == (400, 0)
    assert done["retries"] >= 1
    assert_holds(cache, 400)
    lines = map(json.loads, events.read_text().splitlines())
    [places] = [event["where"] for event in lines if event["event"] == "started"]
    assert sorted(int(place["raylet"]) for place in places) == sorted(machines.raylets)
    # each has it from Ray, and neither from this checkout nor from an installed one
    assert all(str(machines.folder) in place["package"] for place in places), places
    # the token is in no log, and in no runtime_env
    logs = [path for path in (machines.folder / "ray").rglob("*") if path.is_file() and path.stat().st_size < 2**24]
    assert len(logs) > 5
    assert not [path for path in logs if machines.token.read_bytes() in path.read_bytes()]


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_refused_with_the_reason() -> None:
    with two_nodes(auth="disabled") as machines:
        refused = pytest.raises(ConfigError, match=r"asks for no token.*RAY_AUTH_MODE=token")
        with refused, ray_cluster(machines.address):
            pass


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1", "ray://10.0.0.1:10001", ""])
def test_only_a_full_address_names_a_cluster(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"), ray_cluster(address):
        pass


def test_where_nothing_listens_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="nothing answers"), ray_cluster(f"127.0.0.1:{free_port()}"):
        pass


@pytest.mark.parametrize("address", ["10.0.0..1:6379", f"{'a' * 70}:6379"])
def test_what_is_no_host_s_name_is_said_as_plainly(address: str) -> None:
    with pytest.raises(ConfigError, match="nothing answers"), ray_cluster(address):
        pass


def test_a_machine_outside_of_the_cluster_is_told_so_before_anything_else() -> None:
    with pytest.raises(ConfigError, match=r"none of the cluster's, whose nodes are 203\.0\.113\.1, 203\.0\.113\.2"):
        _require_membership("203.0.113.1:6379", ["203.0.113.2", "203.0.113.1"])
    _require_membership("127.0.0.1:6379", ["203.0.113.1", "127.0.0.1"])


class Nodes:
    """A session whose cluster grows by a node at each look."""

    def __init__(self, most: int) -> None:
        self.ray, self.most, self.looks = self, most, 0

    def nodes(self) -> list[dict[str, object]]:
        self.looks += 1
        return [{"Alive": number < min(self.looks, self.most)} for number in range(self.most + 1)]

    def check(self) -> None: ...


@pytest.mark.parametrize(("wanted", "there"), [(None, 1), (1, 1), (3, 3), (5, 4)])
def test_a_job_waits_for_its_nodes_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wanted: int | None, there: int
) -> None:
    monkeypatch.setattr(ray_cluster_module, "LOOK_S", 0.01)
    caplog.set_level("INFO")
    nodes = wait_for_nodes(Nodes(4), wanted, Progress.to_logger(), lambda: None, limit_s=0.5)  # type: ignore[arg-type]
    assert len(nodes) == there
    assert ("4 of 5 nodes joined within" in caplog.text) == (wanted == 5)


def test_a_signal_ends_the_wait_for_nodes() -> None:
    def stop() -> None:
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        wait_for_nodes(Nodes(1), 2, Progress.to_logger(), stop)  # type: ignore[arg-type]


def test_workers_follow_the_resources_of_the_nodes() -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": one} for one in resources] + [{"Alive": False, "Resources": {"GPU": 9}}]

    two = nodes({"CPU": 32, "GPU": 8}, {"CPU": 32, "GPU": 4})
    crew = plan_workers(two, device="auto", workers=None, small=False)
    assert (crew.device, crew.workers, crew.gpus, crew.cores) == ("cuda", 12, 1, 4)
    assert plan_workers(two, device="auto", workers=3, small=False).workers == 3
    small, large = (plan_workers(two, device="cpu", workers=None, small=small) for small in (True, False))
    assert (small.device, small.workers, small.cpus, small.cores) == ("cpu", 64, 1, 1)
    assert (large.workers, large.cpus, large.cores) == (2, 32, 32)
    with pytest.raises(ConfigError, match="no node of this cluster has a GPU"):
        plan_workers(nodes({"CPU": 4}), device="cuda", workers=None, small=True)


TRIED = {
    "a worker dies, or its process runs out of memory": (
        "faults/test_jobs.py::test_workers_drivers_and_parts_of_ray_that_are_killed_lose_and_double_nothing",
        "faults/test_jobs.py::test_an_input_that_kills_its_worker_is_found_and_no_stale_cluster_is_joined",
        "precompute/job/test_scheduler.py"
        "::test_a_machine_out_of_memory_halves_the_batch_of_every_device_for_this_run_alone",
    ),
    "a node dies": (
        "behaviour/cluster/test_cluster.py::test_two_nodes_do_a_job_with_the_package_that_is_sent_to_them_and_it_outlives_one",
        "behaviour/cluster/test_cluster_page.py::test_a_node_that_dies_is_done_without_and_is_given_work_when_it_is_back",
    ),
    "a node joins late": (
        "behaviour/cluster/test_cluster_page.py::test_a_node_that_joins_late_is_given_work_and_one_that_sees_no_inputs_is_not",
    ),
    "a batch does not fit": (
        "behaviour/precompute/test_job.py::test_the_batch_that_fitted_is_remembered_by_later_shards_and_later_runs",
    ),
    "a signal": (
        "faults/test_jobs.py::test_a_signal_ends_a_run_in_order_and_the_same_command_goes_on",
        "behaviour/cluster/test_cluster_page.py::test_a_signal_ends_a_job_on_all_nodes_in_order",
    ),
    "the driver is killed (SIGKILL)": (
        "faults/test_jobs.py::test_workers_drivers_and_parts_of_ray_that_are_killed_lose_and_double_nothing",
        "precompute/job/workers/test_ray_local.py"
        "::test_folders_of_jobs_that_are_gone_are_removed_and_foreign_names_harm_nobody",
        "behaviour/cluster/test_cluster_page.py"
        "::test_where_the_driver_is_killed_its_workers_end_on_all_nodes_and_the_same_command_goes_on",
    ),
    "the head or the raylet dies": (
        "faults/test_jobs.py::test_workers_drivers_and_parts_of_ray_that_are_killed_lose_and_double_nothing",
        "behaviour/cluster/test_cluster_page.py::test_where_the_head_dies_the_job_ends_with_75_and_says_what_to_do",
    ),
    "a node cannot read the files": (
        "behaviour/cluster/test_cluster.py::test_a_node_that_does_not_see_the_inputs_is_found_before_anything_is_done",
    ),
}
"""Line of the table of failures in docs/cluster.md -> the tests that try it."""


def test_every_line_of_the_table_of_failures_is_tried() -> None:
    [table] = re.findall(r"^## Failures$(.*?)^##", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[1:]
    assert lines == list(TRIED)
    for tests in TRIED.values():
        for place in tests:
            file, name = place.split("::")
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), place


def test_the_slurm_script_is_a_script_and_asks_for_a_token() -> None:
    script = ROOT / "configs" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True, timeout=patience(30))
    text = script.read_text()
    assert all(words in text for words in ("RAY_AUTH_MODE=token", "umask 077", "mkdir -m 700", "--address"))

"""What a job of ours left behind is removed, whatever else bears such a name."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.behaviour.cluster.hosts import why_not
from tests.patience import patience
from tests.permissions import as_another_user, open_folder
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.workers.ray_local import _refuse_open_files, _sweep, ray_session

NOBODY = 4_194_304
"""Beyond what Linux numbers processes with."""


def session(folder: Path, host: str) -> Path:
    folder.mkdir()
    (folder / "host").write_text(host)
    return folder


def test_folders_of_jobs_that_are_gone_are_removed_and_foreign_names_harm_nobody(tmp_path: Path) -> None:
    here = socket.gethostname()
    names = (f"tw-{NOBODY}-x", f"tw-{os.getpid()}-x", "tw-1a-x", f"tw-{10**30}-x")
    left, works, odd, huge = (session(tmp_path / name, here) for name in names)
    elsewhere = session(tmp_path / f"tw-{NOBODY}-y", f"not {here}")  # TMPDIR may be a folder that machines share
    _sweep(tmp_path)
    assert [folder.exists() for folder in (left, works, odd, huge, elsewhere)] == [False, True, True, True, True]


@pytest.mark.slow
def test_sessions_follow_one_another_whatever_the_length_of_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = {
        "HF_TOKEN": "a token",
        "RAY_AUTH_TOKEN": "of another cluster",
        "HTTPS_PROXY": "http://me:word@127.0.0.1:9",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for length in (23, 60):  # in one process, which reads Ray's token once
        with open_folder() as short:
            folder = short / ("t" * (length - len(str(short)) - 1))
            folder.mkdir()
            assert len(str(folder)) == length
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            with ray_session(cpus=1) as session:
                print("inside")
                commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
                assert not [words for words in commands if "monitor.py" in words], "a job has no use for these"
                niceness = session.ray.get(session.ray.remote(lambda: os.nice(0)).remote())
                assert niceness == os.nice(0), "on a busy machine a job gets what its command would"
                assert os.environ["HF_TOKEN"] == secrets["HF_TOKEN"], "the caller still has it"
    assert {name: os.environ.get(name) for name in secrets} == secrets
    assert "inside" not in capsys.readouterr().out, "only results are printed there"


@pytest.mark.slow
def test_another_user_reaches_no_folder_and_no_socket_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as temp:
        monkeypatch.setattr(tempfile, "tempdir", str(temp))
        shared = {path for place in ("/tmp", "/dev/shm") for path in Path(place).iterdir()}
        with ray_session(cpus=1) as session:
            session.ray.get(session.ray.remote(lambda: None).remote())  # what a worker makes is there, too
            [outer] = temp.iterdir()
            files = [outer / "token", outer / "host"]
            inside = [path for path in outer.rglob("*") if path.is_dir() or path.is_socket()]
            assert {path.name for path in inside} >= {"r", "sockets", "logs", "raylet", "plasma_store"}

            def reach() -> None:
                for path in [*files, *inside]:
                    with pytest.raises(PermissionError):
                        path.lstat()
                with pytest.raises(PermissionError):
                    (outer / "mine").touch()

            as_another_user(reach)
            assert stat.S_IMODE(outer.stat().st_mode) == 0o700
            assert stat.S_IMODE((outer / "token").stat().st_mode) == 0o600
            # nor is there anything elsewhere: sockets without a path are open to everybody
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            sockets = {str(one.laddr) for process in processes for one in process.net_connections(kind="unix")}
            assert not [address for address in sockets if address.startswith(("@", "\0"))]
            new = {path for place in ("/tmp", "/dev/shm") for path in Path(place).iterdir()} - shared
            of_ray = [path for path in new if path.name.startswith(("ray", "plasma", "tw-")) and path.exists()]
            # the session of a neighbouring test is there, too, as closed as this one
            assert [path for path in of_ray if not path.is_dir() or path.stat().st_mode & 0o077] == []
        assert list(temp.iterdir()) == []


SMALL_CONTAINER = """
mount -t tmpfs -o size=64m none /dev/shm
ip link set lo up
ip link add outside type veth peer name beyond
ip link set outside addrgenmode none up
ip link set beyond addrgenmode none up
ip address add 192.0.2.1/24 dev outside
ip route add default dev outside
"$@"
ip -statistics -json link show outside
"""
SESSION = """
import os, time
from theworld.precompute.job.workers.ray_local import ray_session
with ray_session(cpus=1) as session:
    large = session.ray.put(bytes(2**20))
    session.ray.get(session.ray.remote(lambda data: len(data)).remote(large))
    time.sleep(3)  # for what Ray's processes do once they are up
"""


@pytest.mark.slow
def test_in_a_container_with_64_mb_of_shared_memory_ray_says_nothing_and_sends_nothing_out() -> None:
    if why := why_not():
        pytest.skip(why)
    command = ["unshare", "--net", "--mount", "bash", "-ec", SMALL_CONTAINER, "bash", sys.executable, "-c", SESSION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # neither to a resolver nor to a cloud's address for its machines
    assert json.loads(done.stdout)[0]["stats64"]["tx"]["packets"] == 0


def test_a_folder_that_was_opened_to_others_ends_the_job_in_words(tmp_path: Path) -> None:
    (tmp_path / "session").mkdir(mode=0o700)
    _refuse_open_files(tmp_path / "session")
    (tmp_path / "session").chmod(0o770)
    with pytest.raises(ConfigError, match=r"accessible to other users \(mode 770\)"):
        _refuse_open_files(tmp_path / "session")


def test_two_jobs_may_sweep_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        session(tmp_path / f"tw-{NOBODY}-{number}", socket.gethostname())

    def swept_by_another(_: int) -> bool:
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        return False

    monkeypatch.setattr(psutil, "pid_exists", swept_by_another)
    _sweep(tmp_path)

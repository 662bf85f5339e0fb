"""What a job of ours left behind is removed, whatever else bears such a name."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.permissions import as_another_user, open_folder
from theworld.pipeline.errors import ConfigError
from theworld.precompute.job.ray_local import _refuse_open_files, _sweep, ray_session

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
    secrets = {"HF_TOKEN": "a token", "RAY_AUTH_TOKEN": "of another cluster", "HTTPS_PROXY": "http://me:word@127.0.0.1:9"}
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
                assert session.ray.get(session.ray.remote(lambda: 7).remote()) == 7
                assert os.environ["HF_TOKEN"] == secrets["HF_TOKEN"], "the caller still has it"
    assert {name: os.environ.get(name) for name in secrets} == secrets
    assert "inside" not in capsys.readouterr().out, "only results are printed there"


@pytest.mark.slow
def test_another_user_reaches_nothing_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as temp:
        monkeypatch.setattr(tempfile, "tempdir", str(temp))
        shared = {path for place in ("/tmp", "/dev/shm") for path in Path(place).iterdir()}
        with ray_session(cpus=1):
            [outer] = temp.iterdir()
            inside = [outer / "token", outer / "host", outer / "r", *(outer / "r").glob("session_2*/sockets")]
            assert len(inside) == 4

            def reach() -> None:
                for path in inside:
                    with pytest.raises(PermissionError):
                        path.lstat()
                with pytest.raises(PermissionError):
                    (outer / "mine").touch()

            as_another_user(reach)
            assert stat.S_IMODE(outer.stat().st_mode) == 0o700
            assert stat.S_IMODE((outer / "token").stat().st_mode) == 0o600
            new = {path for place in ("/tmp", "/dev/shm") for path in Path(place).iterdir()} - shared
            open_ones = [path for path in new if path.name.startswith(("ray", "plasma", "tw-"))]
            assert open_ones == []
        assert list(temp.iterdir()) == []


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

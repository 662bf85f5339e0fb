"""A command whose standard streams fail: its log, its reader and its terminal end nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..miniatures.store import create, fill

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""What a stream could not write stays in its buffer, and would be written when Python ends."""
COMMAND = (sys.executable, "-m", "theworld.pipeline.cli", "cache")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    fill(create(folder), 8)
    return folder


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of the shell in which "$@" is the command of these words."""
    command = ["sh", "-c", script, "sh", *COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, timeout=120, env=ENVIRONMENT)


def test_a_log_on_a_full_disk_ends_no_command(cache: Path) -> None:
    done = run('"$@" 2>/dev/full', "verify", cache)  # which shows its progress
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no damage" in done.stdout


def test_a_reader_of_the_log_that_ended_ends_no_command(cache: Path) -> None:
    reader, log = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "verify", cache], stdout=subprocess.PIPE, stderr=log, timeout=120)
    os.close(log)
    assert done.returncode == 0
    assert b"no damage" in done.stdout


def test_a_result_that_cannot_be_written_is_an_error_in_words(cache: Path) -> None:
    for command in ("info", "list"):  # lines, and a table
        done = run('"$@" >/dev/full', command, cache)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: the result cannot be written to stdout: No space left on device")
        assert b"Traceback" not in done.stderr


def test_a_reader_of_the_result_that_has_read_enough_is_no_error(cache: Path) -> None:
    reader, result = os.pipe()
    os.close(reader)
    command = [*COMMAND, "info", cache]
    done = subprocess.run(command, stdout=result, stderr=subprocess.PIPE, timeout=120, env=ENVIRONMENT)
    os.close(result)
    assert (done.returncode, done.stderr) == (1, b"")


def test_streams_that_are_closed_are_no_obstacle_and_progress_is_no_result(cache: Path) -> None:
    done = run('"$@" 2>&-', "verify", cache)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1, done.stdout
    done = run('"$@" <&- >&- 2>&-', "verify", cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    """Or a line for a terminal, or a library's warning, would be written into a shard."""
    file = tmp_path / "shard"
    code = (
        "import os, sys; from theworld.pipeline.streams import secure_streams; "
        "from theworld.pipeline.progress import print_at_once; secure_streams(); "
        "files = [open(sys.argv[1], 'ab') for _ in range(3)]; print_at_once('stopping'); os.write(1, b'!'); "
        "sys.exit(min(file.fileno() for file in files))"
    )
    line = f'"{sys.executable}" -c "{code}" "{file}" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line], timeout=60).returncode > 2
    assert file.read_bytes() == b""


def test_nor_does_a_file_of_a_worker(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from theworld.pipeline.streams import secure_streams; secure_streams(); "
        "worker = 'import os, sys; os.write(2, bytes(1)); sys.exit(open(sys.argv[1], str(chr(97))).fileno())'; "
        "sys.exit(subprocess.call([sys.executable, '-c', worker, sys.argv[1]]))"
    )
    line = f'"{sys.executable}" -c "{code}" "{tmp_path / "shard"}" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", line], timeout=60).returncode > 2


def test_a_log_that_is_full_for_a_moment_is_waited_for() -> None:
    """A program that shares the terminal may have made it non-blocking, for all who write there."""
    reader, log = os.pipe()
    os.set_blocking(log, False)
    code = (
        "import sys; from theworld.pipeline.streams import secure_streams; from theworld.pipeline.progress import *; "
        "secure_streams(); [print_error('x' * 99) for _ in range(3000)]"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=log)
    os.close(log)
    with os.fdopen(reader, "rb") as read:
        assert read.read().count(b"x" * 99 + b"\n") == 3000
    assert child.wait(60) == 0

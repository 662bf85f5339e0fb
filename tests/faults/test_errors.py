"""A disk that refuses: the error surfaces and says what to do, whole shards stay, and the job resumes."""

import ctypes
import errno
import os
import re
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import StoreError
from theworld.pipeline.files import atomic
from theworld.pipeline.store.folder import StoreFormat

from .harness import FaultyFileLayer, FileLayer, amount, broken, check, check_resumes, in_child, job, layer, operations

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
NEEDS_SPACE = frozenset({"write", "mkdir", "link", "replace", "fsync"})


class FullDisk(FileLayer):
    """From the n-th file operation on, nothing that takes space succeeds."""

    def __init__(self, full_at: int, number: int) -> None:
        self.count, self.full_at, self.number = 0, full_at, number

    def operate(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.count += 1
        takes_space = name in NEEDS_SPACE or (name == "open" and arguments[1] & os.O_CREAT)
        if self.count >= self.full_at and takes_space:
            raise OSError(self.number, os.strerror(self.number))
        return real(*arguments, **options)


TEMPORARY = re.compile(r"\d+-[0-9a-f]{16}")
"""The name of an unfinished file, whose folder may be held open while it is written."""


def outcome(action: Callable[[], object]) -> StoreError | None:
    try:
        action()
    except StoreError as error:
        return error
    return None


def held_open(folder: Path) -> list[str]:
    """Unfinished files of a store that this process holds open."""
    held = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
    return [path for path in held if path.startswith(f"{folder}/") and TEMPORARY.search(path)]


def fail_everywhere(
    cache: Path, plan: range, format: StoreFormat, errors: int = 1, only: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """What the checker finds wrong, error by error, of a job that has one at each of its file operations."""
    found = []
    for fail_at, name in enumerate(operations(cache / "counted", plan, format), 1):
        for turn in range(errors * only(name)):
            number = ERRORS[(fail_at + turn) % len(ERRORS)]
            here = cache / f"{fail_at}-{turn}"

            def judge(here: Path = here, fail_at: int = fail_at, number: int = number) -> None:
                at_times: list[bool] = []

                def fail() -> None:
                    at_times.append("publish_at_times" in {frame.name for frame in traceback.extract_stack()})
                    raise OSError(number, os.strerror(number))

                faulty, acknowledged = FaultyFileLayer(fail_at, fail), list[str]()
                with layer(faulty):
                    error = outcome(lambda: job(here, plan, format=format, tell=acknowledged.append))
                assert held_open(here) == []
                if error is None:
                    name, arguments = faulty.hit or ("nothing", ())
                    # only closing and removing what is no longer needed may fail quietly, and what is tried again:
                    # to publish while a job runs
                    is_cleaning = name == "unlink" and TEMPORARY.fullmatch(Path(arguments[0]).name)
                    may_fail = name == "close" or is_cleaning or any(at_times)
                    assert may_fail, f"an error of {name} {arguments} was swallowed"
                else:
                    assert os.strerror(number) in str(error)
                    assert "run the same command again" in str(error)
                check(here, plan, format=format, acknowledged=acknowledged, complete=error is None)
                check_resumes(here, plan, format=format, twice=fail_at % 4 == 0)

            found.append(broken(judge))
    return found


@pytest.mark.slow
def test_an_error_in_any_file_operation_surfaces_and_leaves_whole_shards(
    cache: Path, format: StoreFormat, figure: Callable[[str], None]
) -> None:
    errors = amount("ERRORS", 1)
    found = fail_everywhere(cache, range(1 + errors), format, errors)
    broken_promises = sum(map(bool, found))
    figure(f"injected EIO, ENOSPC, EDQUOT, {format}: {len(found)}, swallowed or broken promises {broken_promises}")
    assert len(found) > 100
    assert [fault for fault in found if fault] == []


@contextmanager
def fsync_errors_ignored() -> Iterator[None]:
    """Break the writer: an fsync that failed does not stop it."""
    finish = atomic.TempFile.finish

    def go_on(temp: atomic.TempFile) -> None:
        with suppress(OSError):
            finish(temp)

    atomic.TempFile.finish = go_on  # type: ignore[method-assign]
    try:
        yield
    finally:
        atomic.TempFile.finish = finish  # type: ignore[method-assign]


def test_the_errors_notice_a_writer_that_swallows_them(cache: Path, format: StoreFormat) -> None:
    with fsync_errors_ignored():
        found = fail_everywhere(cache, range(1), format, only="fsync".__eq__)
    assert any("an error of fsync" in fault and "was swallowed" in fault for fault in found)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_a_disk_that_stays_full_leaves_whole_shards_and_resumes(cache: Path, format: StoreFormat, number: int) -> None:
    plan = range(3)
    for full_at in range(1, len(operations(cache / "counted", plan, format)), 7):
        here, acknowledged = cache / str(full_at), list[str]()
        with layer(FullDisk(full_at, number)):
            error = outcome(lambda here=here, told=acknowledged: job(here, plan, format=format, tell=told.append))
        if error is not None:
            assert "Free some" in str(error)
        check(here, plan, format=format, acknowledged=acknowledged, complete=error is None)
        check_resumes(here, plan, format=format)


def mount_small_disk(folder: Path) -> None:
    """Give this process alone a file system of 1 MiB at `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private = 0x00020000, 1 << 18 | 1 << 14  # CLONE_NEWNS, MS_PRIVATE | MS_REC
    if (
        libc.unshare(new_mounts)
        or libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1m")
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def grow_small_disk(folder: Path) -> None:
    remount = 1 << 5  # MS_REMOUNT
    assert ctypes.CDLL(None).mount(b"tmpfs", os.fsencode(folder), b"tmpfs", remount, b"size=8m") == 0


def test_a_disk_that_is_really_full_leaves_whole_shards_and_resumes_when_it_grew(
    cache: Path, format: StoreFormat
) -> None:
    plan = range(400)
    if refusal := broken(lambda: in_child(lambda: mount_small_disk(cache))):
        pytest.skip(f"this user may not mount a file system: {refusal}")

    def fill_and_grow() -> None:
        mount_small_disk(cache)
        acknowledged: list[str] = []
        error = outcome(lambda: job(cache, plan, format=format, tell=acknowledged.append))
        assert error is not None, "1 MiB was enough"
        assert "No space left" in str(error)
        assert "Free some space, then run the same command again" in str(error)
        store = check(cache, plan, format=format, acknowledged=acknowledged)
        assert store is not None
        assert 20 < len(store) < len(plan)
        grow_small_disk(cache)
        check_resumes(cache, plan, format=format)

    in_child(fill_and_grow)


def test_a_file_size_limit_is_named_and_leaves_whole_shards(cache: Path, format: StoreFormat) -> None:
    """RLIMIT_FSIZE, as batch systems set it: the kernel answers EFBIG."""
    plan = range(6)

    def hit_the_limit() -> None:
        acknowledged: list[str] = []
        job(cache, plan[:2], format=format, tell=acknowledged.append)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        error = outcome(lambda: job(cache, plan[2:], format=format, tell=acknowledged.append))
        assert error is not None
        assert "File too large" in str(error)
        assert "ulimit -f" in str(error)
        assert "run the same command again" in str(error)
        check(cache, plan, format=format, acknowledged={word for word in acknowledged if word != "sources"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        check_resumes(cache, plan, format=format)

    in_child(hit_the_limit)

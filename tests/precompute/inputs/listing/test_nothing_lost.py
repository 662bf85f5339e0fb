"""Every entry of a place is taken, or a row of the ledger with its reason, or counted by what it is.

LISTING_TREES=10000 tries so many random trees; the default takes seconds.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.permissions import as_another_user, open_folder
from theworld.pipeline.errors import ConfigError
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs

TREES = int(os.environ.get("LISTING_TREES", "300"))
AS_MANY = settings(
    max_examples=TREES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
PNG = b"\x89PNG\r\n\x1a\n"

NAMES = st.sampled_from(
    [
        *(
            "a.png",
            "A.png",
            "a.PNG",
            "b.jpg",
            "c.heic",
            "notes.txt",
            "bare",
            "x.tar",
            "l.jsonl",
            "clip.mp4",
            "t.parquet",
        ),
        *(".hidden.png", ".git", "._a.png", "é.png", "e\u0301.png", "new\nline.png", "\udcff.png", "a b.png", "-n.png"),
        *(
            "[x].png",
            "*.png",
            "~",
            "100%.png",
            "dot.",
            "v1.0",
            "a.png.download",
            "..png",
            "long" * 50 + ".png",
            "\\.png",
        ),
    ]
)
KINDS = st.sampled_from(
    [
        *["file"] * 4,
        *["folder"] * 4,
        *["link"] * 4,
        "dangling",
        "self",
        "pipe",
        "socket",
        "hard link",
        "closed",
        "empty",
    ]
)
TREE = st.lists(st.tuples(st.integers(0, 30), NAMES, KINDS, st.integers(0, 30)), max_size=25)


def grow(root: Path, tree: list[tuple[int, str, str, int]], content: bytes = PNG) -> list[Path]:
    """Make a tree; each entry is in a folder made before it. Returns the folders to close when all is made."""
    folders, entries, closed = [root], [root], list[Path]()
    for parent, name, kind, target in tree:
        path = folders[parent % len(folders)] / name
        aim = entries[target % len(entries)]
        with suppress(FileExistsError, IsADirectoryError):
            if os.path.lexists(path):
                continue
            match kind:
                case "file":
                    path.write_bytes(content + os.fsencode(name))
                case "empty":
                    path.touch()
                case "folder" | "closed":
                    path.mkdir()
                    folders.append(path)
                    if kind == "closed":
                        closed.append(path)
                case "link":
                    path.symlink_to(aim if target % 2 else os.path.relpath(aim, path.parent))
                case "dangling":
                    path.symlink_to("nowhere")
                case "self":
                    path.symlink_to(name)
                case "pipe":
                    os.mkfifo(path)
                case "socket":
                    with suppress(OSError), socket.socket(socket.AF_UNIX) as listener:  # the path may be too long
                        listener.bind(os.fspath(path))
                case _:
                    with suppress(OSError):  # of a folder, or of a link to nothing
                        os.link(aim, path)
            if os.path.lexists(path):
                entries.append(path)
    return closed


def entries_below(folder: str, above: tuple[tuple[int, int], ...] = ()) -> int:
    """How many entries there are to be named, links followed: a second, simple reading of the rule."""
    status = os.stat(folder)  # noqa: PTH116 - names of any bytes
    above = (*above, (status.st_dev, status.st_ino))
    count = 0
    for name in os.listdir(folder):  # noqa: PTH208
        path = os.path.join(folder, name)  # noqa: PTH118
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            count += 1
            continue
        is_open = stat.S_ISDIR(status.st_mode) and os.access(path, os.R_OK | os.X_OK)
        if name.startswith(".") or not is_open or (status.st_dev, status.st_ino) in above:
            count += 1
        else:
            count += entries_below(path, above)
    return count


def named(listing: Listing) -> int:
    return len(listing.samples) + len(listing.refused) + listing.left_out.total() + sum(listing.others.values())


def run_as_nobody(action: Callable[[], None]) -> None:
    """As root every folder is open."""
    as_another_user(action) if os.geteuid() == 0 else action()


def each_tree(root: Path, check: Callable[[Path], None]) -> Callable[[list[tuple[int, str, str, int]]], None]:
    numbers = iter(range(10**9))

    def one(tree: list[tuple[int, str, str, int]]) -> None:
        place = root / str(next(numbers))
        place.mkdir()
        (place / "one.png").write_bytes(PNG)
        closed = grow(place, tree)
        for folder in reversed(closed):
            folder.chmod(0)
        try:
            check(place)
        except ConfigError as error:
            assert "in more than 100 ways" in str(error)  # noqa: PT017
        finally:
            for folder in closed:
                folder.chmod(0o700)

    return one


def test_every_entry_of_a_random_tree_is_taken_or_a_row_or_counted() -> None:
    def check(place: Path) -> None:
        listing = list_inputs(place, "rollout")
        assert named(listing) == entries_below(str(place))
        assert all(failure.source in failure.message for failure in listing.refused)

    with open_folder() as root:
        root.chmod(0o777)
        run_as_nobody(lambda: given(TREE)(AS_MANY(each_tree(root, check)))())


def test_every_name_that_a_pattern_stands_for_is_taken_or_a_row_or_counted() -> None:
    def check(place: Path) -> None:
        names = [path.name for path in place.iterdir() if not path.name.startswith(".")]
        if any(name.endswith((".mp4", ".tar", ".jsonl", ".parquet")) for name in names):
            with suppress(ConfigError):  # a pattern is of one kind of place
                list_inputs(place / "*", "rollout")
            return
        assert named(list_inputs(place / "*", "rollout")) == len(names)

    with open_folder() as root:
        root.chmod(0o777)
        run_as_nobody(lambda: given(TREE)(AS_MANY(each_tree(root, check)))())


MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from([*[tarfile.REGTYPE] * 4, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])),
    max_size=20,
)


@settings(AS_MANY, max_examples=min(TREES, 1000))
@given(MEMBERS)
def test_every_member_of_a_tar_is_taken_or_a_row_or_counted(members: list[tuple[str, bytes]]) -> None:
    with open_folder() as root:
        with tarfile.open(root / "x.tar", "w") as tar:
            for name, kind in [("one.png", tarfile.REGTYPE), ("folder.png", tarfile.DIRTYPE), *members]:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, "one.png", 3 * (kind == tarfile.REGTYPE)
                tar.addfile(info, io.BytesIO(b"abc"))
        assert named(list_inputs(root / "x.tar", "rollout")) == 1 + len(members)


def test_links_that_multiply_are_refused_in_words(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.png").write_bytes(PNG)
        for way in "xy":
            (tmp_path / f"{number}" / way).symlink_to(f"../{number + 1}")
    with pytest.raises(ConfigError, match=r"links lead to .* in more than 100 ways"):
        list_inputs(tmp_path, "rollout")

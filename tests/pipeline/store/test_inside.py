"""What is read of a store lies in it, and what is written or moved stays in it, also while others swap folders."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from theworld.pipeline.errors import StoreError, TheWorldError
from theworld.pipeline.files import atomic
from theworld.pipeline.files.inside import held_folder, require_inside
from theworld.pipeline.files.plain import has_content, read_file
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.transfer import export, merge
from theworld.pipeline.store.upkeep.verify import verify

from ...miniatures.store import create, expected, fill, flip, key, write
from ...permissions import listing
from ..files.test_atomic import PatchedOs

FILES = {
    "theworld.json": "theworld.json",
    "record": "commits/0.json",
    "payload": "latents/c/0/0/0/0/0",
    "metadata": "latents/zarr.json",
    "failure": "failed/*.jsonl",
    "sources": "sources/*.jsonl",
}


@pytest.fixture
def store(cache: Path) -> LatentStore:
    store = create(cache)
    fill(store, 10)
    store.record_sources((f"{n}.png", key(n)) for n in range(10))
    store.record_failure(Failure(source="x.png", key=None, reason="decode", message="no image", attempts=1))
    return store


def read_all(path: Path) -> None:
    store = open_store(path)
    store.read(store.keys)
    store.failures()
    store.sources()


def become_a_link(path: Path) -> None:
    """To the same content elsewhere, so that nothing but the link itself is wrong."""
    outside = path.parents[len(path.parents) - 4] / f"outside-{path.name}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def become_a_link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@contextmanager
def at_once(seconds: float = 20) -> Iterator[None]:
    """Whoever blocks on a pipe or reads a device without end is found out."""
    done = threading.Event()

    def wait() -> None:
        if not done.wait(seconds):
            os.write(2, b"a reader hangs\n")
            os._exit(70)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        done.set()


@pytest.mark.parametrize("harm", [become_a_link, become_a_link_to_a_device, become_a_pipe, become_a_socket])
@pytest.mark.parametrize("what", FILES)
def test_no_reader_takes_a_file_of_elsewhere_or_one_that_is_none(
    store: LatentStore, what: str, harm: Callable[[Path], None]
) -> None:
    [file] = store.path.glob(FILES[what])
    harm(file)
    with at_once():
        with pytest.raises(TheWorldError):
            read_all(store.path)
        with suppress(StoreError):
            assert verify(store.path).damage
        with suppress(StoreError):
            repair(store.path, apply=True)
    outside = list(store.path.parent.rglob("outside-*"))
    assert all(path.is_file() for path in outside), "a link is moved, never what it leads to"


def test_a_snapshot_of_elsewhere_is_not_used(cache: Path) -> None:
    store = create(cache, shard_size=1)
    fill(store, 70)
    snapshot = store.path / "index.safetensors"
    shutil.move(snapshot, cache / "outside")
    for harm in (lambda: snapshot.symlink_to(cache / "outside"), lambda: os.mkfifo(snapshot)):
        harm()
        with at_once():
            assert len(open_store(store.path)) == 70
        snapshot.unlink()


def test_a_prompt_of_elsewhere_is_not_copied(store: LatentStore, cache: Path) -> None:
    (cache / "private").write_bytes(save({"prompt": np.ones(3, np.float32)}))
    (store.path / "prompt.safetensors").symlink_to(cache / "private")
    target, copied = export(store, cache / "b")
    assert "link out of its folder" in copied.damaged[0]
    assert not (target.path / "prompt.safetensors").exists()
    np.testing.assert_array_equal(target.read(store.keys), expected(store, range(10)))


def test_a_link_to_the_whole_store_is_fine(store: LatentStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.path)
    read_all(tmp_path / "link")
    assert verify(tmp_path / "link", level="deep").damage == ()


def test_a_store_in_the_hubs_cache_is_read(store: LatentStore, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "abc" / "data"
    shutil.copytree(store.path, snapshot)
    (tmp_path / "hub" / "blobs").mkdir()
    for number, file in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        blob = tmp_path / "hub" / "blobs" / str(number)
        shutil.move(file, blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    read_all(snapshot)
    (tmp_path / "hub" / "blobs").rename(tmp_path / "blobs")


def test_a_link_within_a_folder_is_read_and_one_out_of_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "inside").write_bytes(b"beside it, with a name that begins alike")
    (tmp_path / "in" / "file").write_bytes(b"x")
    (tmp_path / "in" / "deep" / "link").symlink_to("../file")
    (tmp_path / "in" / "out").symlink_to("../inside")
    assert read_file(tmp_path / "in" / "deep" / "link", 9, within=tmp_path / "in") == b"x"
    assert has_content(tmp_path / "in" / "file", b"x", within=tmp_path / "in")
    assert not has_content(tmp_path / "in" / "out", (tmp_path / "inside").read_bytes(), within=tmp_path / "in")
    with pytest.raises(ValueError, match="link out of its folder"):
        require_inside(tmp_path / "in", tmp_path / "in" / "out")


def test_a_held_folder_stays_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "b").mkdir(parents=True)
    with held_folder(tmp_path / "root", tmp_path / "root" / "a" / "b") as held:
        (tmp_path / "root" / "a").rename(tmp_path / "moved")
        (tmp_path / "root" / "a").symlink_to(tmp_path / "outside")
        (held / "file").touch()
    assert (tmp_path / "moved" / "b" / "file").exists()
    with (
        pytest.raises(NotADirectoryError),
        held_folder(tmp_path / "root", tmp_path / "root" / "a" / "b"),
    ):
        pytest.fail("held")


def twin(store: LatentStore, name: str, cache: Path) -> Path:
    """A folder outside that looks as one of the store, down to its files."""
    outside = cache / "outside" / name.replace("/", "-")
    shutil.copytree(store.path / name, outside)
    return outside


def swap(folder: Path, outside: Path) -> None:
    """Put a link in place of a folder, as somebody who may write to the store could at any moment."""
    with suppress(OSError):
        folder.rename(folder.with_name(f"{folder.name}.real"))
        folder.symlink_to(outside)


def swapping(monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], folder: Path, outside: Path) -> None:
    """Swap right before each of these system calls, after all that was checked."""

    def before(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            swap(folder, outside)
            return getattr(os, name)(*arguments, **options)

        return call

    monkeypatch.setattr(atomic, "os", PatchedOs(**{name: before(name) for name in calls}))


@pytest.mark.parametrize("name", ["commits", "latents", "latents/c", "latents/c/1", "latents/c/1/0", "lost+found"])
def test_a_repair_stays_in_the_store_whoever_swaps_its_folders(
    store: LatentStore, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(store.payload_path(1), 3)
    outside = twin(store, name, cache)
    before = listing(outside)
    swapping(monkeypatch, ("link", "unlink"), store.path / name, outside)
    with suppress(TheWorldError):
        repair(store.path, apply=True)
    assert listing(outside) == before
    assert (store.path / name).is_symlink(), "it was swapped"


@pytest.mark.parametrize("name", ["tmp", "latents", "latents/c", "latents/c/7", "latents/c/7/0/0"])
def test_a_gc_stays_in_the_store_whoever_swaps_its_folders(
    store: LatentStore, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.payload_path(7).parent.mkdir(parents=True)
    store.payload_path(7).write_bytes(b"left")
    (store.path / "tmp" / "left").touch()
    outside = twin(store, name, cache)
    before = listing(outside)
    swapping(monkeypatch, ("unlink",), store.path / name, outside)
    with suppress(TheWorldError):
        gc(store.path, apply=True, grace_s=-60)
    assert listing(outside) == before
    assert (store.path / name).is_symlink(), "it was swapped"


@pytest.mark.parametrize("name", ["tmp", "commits", "latents", "latents/c", "sources", "failed"])
@pytest.mark.parametrize("calls", [("link",), ("mkdir",), ("replace",)])
def test_a_copy_stays_in_its_target_whoever_swaps_its_folders(
    store: LatentStore, cache: Path, name: str, calls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = create(cache / "target")
    write(target, [20])
    outside = twin(target, name, cache)
    before = listing(outside)
    swapping(monkeypatch, calls, target.path / name, outside)
    with suppress(TheWorldError):
        merge(target.path, [store])
    assert listing(outside) == before


def test_a_thread_that_swaps_all_the_time_gains_nothing(store: LatentStore, cache: Path) -> None:
    folders = [store.path / name for name in ("commits", "latents/c/1", "latents/c/7")]
    store.payload_path(7).parent.mkdir(parents=True)
    store.payload_path(7).write_bytes(b"left")
    outside = {folder: twin(store, str(folder.relative_to(store.path)), cache) for folder in folders}
    before = listing(cache / "outside")
    over = threading.Event()

    def swap_on_and_on() -> None:
        while not over.is_set():
            for folder in folders:
                real = folder.with_name(f"{folder.name}.real")
                with suppress(OSError):
                    swap(folder, outside[folder])
                    folder.unlink()
                    real.rename(folder)

    swapper = threading.Thread(target=swap_on_and_on)
    swapper.start()
    try:
        for turn in range(24):
            with suppress(TheWorldError, OSError):
                flip(store.path / "latents" / "c" / "1" / "0" / "0" / "0" / "0", turn)
            with suppress(TheWorldError, OSError):
                repair(store.path, apply=True)
            with suppress(TheWorldError, OSError):
                gc(store.path, apply=True, grace_s=-60)
            with suppress(TheWorldError, OSError):
                write(create(cache), [turn + 100])
    finally:
        over.set()
        swapper.join()
    now = listing(cache / "outside")
    changed = {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
    assert not {name for name in changed if not name.startswith("latents-c-1")}, changed

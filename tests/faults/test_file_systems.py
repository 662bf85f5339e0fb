"""A store on file systems that refuse what local disks do: written all the same, or an error that says what it is."""

from __future__ import annotations

import errno
import os
import random
from glob import glob
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import DamagedShardError, StoreError
from theworld.pipeline.files import atomic
from theworld.pipeline.store.folder import StoreFormat, find_stores, open_store
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.verify import verify

from .file_systems import AWKWARD, NOTHING, Refusal, file_system
from .harness import (
    SEED,
    Cut,
    FaultyFileLayer,
    amount,
    broken,
    check,
    check_resumes,
    create,
    files,
    flip_bit,
    job,
    latent,
    layer,
    operations,
)

PLAN = range(3)


@pytest.fixture(autouse=True)
def fresh_refusals() -> None:
    for refusal in (*NOTHING, *(refusal for refusals in AWKWARD.values() for refusal in refusals)):
        refusal.met.clear()


@pytest.mark.parametrize("name", AWKWARD)
def test_a_store_is_written_read_repaired_and_grown_where_files_link_only_within_a_folder(
    cache: Path, format: StoreFormat, name: str
) -> None:
    with file_system(cache, *AWKWARD[name]):
        job(cache, PLAN, format=format)
        store = check_resumes(cache, PLAN, format=format)
        assert not [file for file in files(store.path) if "placing" in file or file.startswith("tmp/")]
        flip_bit(store.payload_path(0), random.Random(SEED))
        assert len(repair(store.path, apply=True).moved) == 2
        assert not [file for file in files(store.path) if "placing" in file]
        check_resumes(cache, PLAN, format=format)
    assert AWKWARD[name][0].met
    check_resumes(cache, PLAN, format=format)  # on another mount of the same disk


@pytest.mark.parametrize("name", AWKWARD)
def test_two_writers_never_replace_each_other_where_files_link_only_within_a_folder(cache: Path, name: str) -> None:
    (cache / "tmp").mkdir()
    (cache / "there").mkdir()
    with file_system(cache, *AWKWARD[name]):
        temps = [atomic.TempFile(cache / "tmp") for _ in range(2)]
        for number, temp in enumerate(temps):
            temp.write(bytes([number]))
            temp.finish()
        assert [atomic.place(temp.path, cache / "there" / "name") for temp in temps] == [True, False]
        assert temps[1].path.read_bytes() == b"\1", "the second one goes on to the next number"
        assert atomic.place(temps[1].path, cache / "there" / "next")
        for temp in temps:
            temp.discard()
    contents = {path.name: path.read_bytes() for path in (cache / "there").iterdir()}
    assert contents == {"name": b"\0", "next": b"\1"}
    assert list((cache / "tmp").iterdir()) == []


def test_who_comes_between_the_look_and_the_link_keeps_the_name(cache: Path) -> None:
    """Another writer takes the name while the file waits beside it."""
    (cache / "tmp").mkdir()
    target = cache / "target"
    temp = atomic.TempFile(cache / "tmp")
    temp.write(b"mine")
    temp.finish()

    def another_comes(source: Path, _: Path) -> bool:
        if source.parent == target.parent.resolve():
            target.write_bytes(b"theirs")
        return False

    with file_system(cache, Refusal("link", errno.EIO, another_comes), *AWKWARD["BeeGFS"]):
        assert not atomic.place(temp.path, target)
    assert target.read_bytes() == b"theirs"
    assert temp.path.read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BeeGFS", "project quotas"])
def test_a_cut_where_files_link_only_within_a_folder_leaves_whole_shards_and_hidden_leftovers_for_gc(
    cache: Path, format: StoreFormat, name: str
) -> None:
    found, hidden, plan = [], 0, range(1)
    with file_system(cache, *AWKWARD[name]):
        names = operations(cache / "counted", plan, format)
        cuts = [number for number, name in enumerate(names, 1) if name in ("link", "replace", "unlink")]
        for cut_at in cuts[:: amount("CUT_STEP", 4)]:
            here, acknowledged = cache / str(cut_at), list[str]()
            with layer(FaultyFileLayer(cut_at)), pytest.raises(Cut):
                job(here, plan, format=format, tell=acknowledged.append)

            def judge(here: Path = here, acknowledged: list[str] = acknowledged) -> None:
                check(here, plan, format=format, acknowledged=acknowledged)
                store = check_resumes(here, plan, format=format, twice=False)
                nonlocal hidden
                hidden += any("placing" in file for file in files(store.path))
                gc(store.path, apply=True, grace_s=-1)
                left = [file for file in files(store.path) if "placing" in file or file.startswith("tmp/")]
                assert left == [], "gc left something behind"
                check(here, plan, format=format, complete=True)

            found.append(broken(judge))
    assert [fault for fault in found if fault] == []
    assert hidden > 0, "no cut came while a file waited beside its target"


def test_a_leftover_beside_its_target_is_taken_for_nothing_and_named_by_verify(
    cache: Path, format: StoreFormat
) -> None:
    job(cache, PLAN, format=format)
    store = open_store(cache)
    name = f".{os.getpid()}-{'0' * 16}.placing"
    for folder in ("commits", store.layout.payload_folder, "", "latents/c/0/0/0/0" if format == "zarr" else "shards"):
        (store.path / folder / name).write_bytes(b"torn")
    check(cache, PLAN, format=format, complete=True)
    verification = verify(store.path)
    assert verification.damage == ()
    [finding] = [finding for finding in verification.findings if finding.what == "leftover"]
    assert "hidden beside their targets" in finding.message
    assert read_by_others(store.path, format) == [latent(n).tolist() for n in PLAN]
    assert gc(store.path, apply=True).files == (), "a file that young may be in use"
    deleted = gc(store.path, apply=True, grace_s=-1).files
    assert {file.name for file in deleted} == {name}
    check(cache, PLAN, format=format, complete=True)


def read_by_others(store: Path, format: StoreFormat) -> list[object]:
    if format == "zarr":
        import zarr

        array = zarr.open_array(store / "latents", mode="r")
        return [row.astype(np.float32).tolist() for row in array[: len(PLAN)]]
    import webdataset

    tars = sorted(glob(f"{store}/shards/*"))  # noqa: PTH207 - as others do: hidden files are left out
    assert tars == sorted(str(path) for path in (store / "shards").glob("*.tar"))
    rows = webdataset.WebDataset(tars, shardshuffle=False).decode()
    return [row["npy"].astype(np.float32).tolist() for row in rows]


def test_a_file_system_that_can_neither_link_nor_rename_is_refused_at_creation_by_its_name(cache: Path) -> None:
    with file_system(cache, *NOTHING), pytest.raises(StoreError) as caught:
        create(cache, "zarr")
    words = str(caught.value)
    for part in ("hard link", "without replacing", "tmpfs" if "/shm/" in str(cache) else "ext4"):
        assert part in words
    assert files(cache) == {}


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refusal("fsync", errno.EIO), "Check the disk"),
        (Refusal("open", errno.EACCES, lambda path: path.parent.name == "tmp"), "may write to"),
        (Refusal("mkdir", errno.EDQUOT), "quota -s"),
        (Refusal("open", errno.EDQUOT, lambda path: path.parent.name == "tmp"), "quota -s"),
        (Refusal("link", errno.ENOTCONN), "mounted"),
        (Refusal("write", errno.ESTALE), "lost its server"),
        (Refusal("fsync", errno.ENOTCONN), "lost its server"),
        (Refusal("open", errno.ENFILE, lambda path: path.parent.name == "tmp"), "fs.file-max"),
        (Refusal("open", errno.EMFILE, lambda path: path.parent.name == "tmp"), "ulimit -n"),
        (Refusal("mkdir", errno.ENAMETOOLONG), "shorter"),
        (Refusal("mkdir", errno.EROFS), "may write to"),
    ],
    ids=lambda value: f"{value.call} {errno.errorcode[value.number]}" if isinstance(value, Refusal) else "",
)
def test_each_refusal_of_a_write_says_what_it_is_and_the_job_goes_on_when_it_is_over(
    cache: Path, format: StoreFormat, refusal: Refusal, words: str
) -> None:
    job(cache, PLAN[:1], format=format)
    with file_system(cache, refusal), pytest.raises(StoreError, match=words) as caught:
        job(cache / "new" if refusal.call == "mkdir" else cache, PLAN, format=format)
    assert not isinstance(caught.value, DamagedShardError)
    assert os.strerror(refusal.number) in str(caught.value)
    assert "same command" in str(caught.value)
    check_resumes(cache, PLAN, format=format)


def test_a_disk_without_a_free_inode_says_so_and_how_many_there_are(cache: Path) -> None:
    full = Refusal("open", errno.ENOSPC, lambda path: path.parent.name == "tmp")
    with file_system(cache, full, inodes=(65_536, 0)), pytest.raises(StoreError, match="65,536") as caught:
        create(cache, "zarr")
    for part in ("No inode is free", "GiB", "--shard-size", "cache gc"):
        assert part in str(caught.value)
    with file_system(cache, full, inodes=(65_536, 1000)), pytest.raises(StoreError) as caught:
        create(cache, "zarr")
    for part in ("project quota", "1,000 of 65,536 inodes"):
        assert part in str(caught.value)


@pytest.mark.parametrize("call", ["open", "stat", "scandir", "preadv", "listdir"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN], ids=errno.errorcode.get)
def test_a_handle_that_was_lost_is_looked_up_once_more_and_all_is_read(
    cache: Path, format: StoreFormat, call: str, number: int
) -> None:
    job(cache, PLAN, format=format)
    for skipped in range(12):  # the first such call, the second, ...
        seen: list[Path] = []

        def later(path: Path, seen: list[Path] = seen, skipped: int = skipped) -> bool:
            seen.append(path)
            return len(seen) > skipped

        refusal = Refusal(call, number, later, times=1)
        with file_system(cache, refusal):
            store = open_store(cache)
            np.testing.assert_array_equal(store.read(store.keys), [latent(n) for n in PLAN])
            assert (len(store.records()), len(store.sources()), store.failures()) == (2, 3, [])
            assert store.layout.payload_numbers(store.place) == {0, 1}
        if not refusal.met:
            break
    assert skipped > 0


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "preadv", "scandir", "stat"])
def test_a_server_that_stays_away_is_not_damage_and_makes_no_row_vanish(
    cache: Path, format: StoreFormat, call: str, number: int
) -> None:
    job(cache, PLAN, format=format)
    store = open_store(cache)
    keys = store.keys
    with file_system(cache, Refusal(call, number)), pytest.raises(StoreError, match="mounted") as caught:
        store.read(keys) if call in ("open", "preadv") else open_store(store.path)
    assert not isinstance(caught.value, DamagedShardError)
    np.testing.assert_array_equal(store.read(keys), [latent(n) for n in PLAN])


@pytest.mark.parametrize("name", ["theworld.json", "record"])
def test_a_publication_whose_folder_was_lost_before_it_began_is_made_again(cache: Path, name: str) -> None:
    (cache / "tmp").mkdir()
    refusal = Refusal("open", errno.ESTALE, lambda path: path.parent.name == "tmp", times=2)
    with file_system(cache, refusal):
        assert atomic.publish(cache / "tmp", cache / name, b"content", within=cache)
    assert len(refusal.met) == 2
    assert (cache / name).read_bytes() == b"content"
    assert list((cache / "tmp").iterdir()) == []


@pytest.mark.parametrize("call", ["link", "rename", "replace", "unlink", "mkdir"])
def test_an_answer_that_got_lost_is_not_taken_for_somebody_elses_work(
    cache: Path, format: StoreFormat, call: str
) -> None:
    """NFS asks a second time where no answer came, and is told what its first asking has done."""
    number = {"link": errno.EEXIST, "mkdir": errno.EEXIST}.get(call, errno.ENOENT)
    for name in ("BeeGFS", "none"):
        here = cache / name
        here.mkdir()
        refusals = AWKWARD.get(name, ())
        with file_system(here, *refusals, Refusal(call, number, after=True)):
            job(here, PLAN, format=format)
        check_resumes(here, PLAN, format=format)


def test_a_store_whose_server_is_away_is_not_taken_for_none(cache: Path) -> None:
    job(cache, PLAN, format="zarr")
    with file_system(cache, Refusal("stat", errno.ESTALE, lambda path: path.name == "theworld.json", times=1)):
        assert len(find_stores(cache)) == 1
    away = Refusal("stat", errno.ENOTCONN, lambda path: path.name == "theworld.json")
    with file_system(cache, away), pytest.raises(StoreError, match="mounted"):
        find_stores(cache)

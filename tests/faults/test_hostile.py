"""A hostile store is refused with what is wrong and what to do, in bounded memory and time, and harms nothing.

Seals and checksums do not help here: an attacker made them too. Each case runs in a process of its own with little
memory to spare, and an alarm ends it.
"""

import hashlib
import json
import os
import re
import resource
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash

from theworld.pipeline.errors import TheWorldError
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.store.folder import StoreFormat, open_store
from theworld.pipeline.store.upkeep.garbage import gc
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.summary import summarise
from theworld.pipeline.store.upkeep.transfer import export
from theworld.pipeline.store.upkeep.verify import LEVELS, verify

from ..permissions import reseal
from .harness import BAD, create, in_child, job, key, latent, write
from .hostile import CACHES, GROUPS, IN_ANY, IN_ZARR, LINKS, Harm, link, payload, put

MEMORY = 256 * 2**20
SECONDS = 10
NUMBERS = range(6)
TREASURE = b"what a stranger would like to have"


class TooLong(BaseException):
    """The alarm rang."""


def ring(*_: object) -> None:
    raise TooLong


def uses(store: Path, format: StoreFormat) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything one can do with a store, by name."""

    def open_and_read() -> None:
        opened = open_store(store)
        assert [int(visible, 16) for visible in opened.keys] == list(NUMBERS)
        np.testing.assert_array_equal(opened.read(opened.keys), np.stack([latent(number) for number in NUMBERS]))

    def write_more() -> None:
        created = create(store.parent, format)
        missing = [number for number in range(len(NUMBERS) + 4) if key(number) not in created]
        for number in missing:
            write(created, [number])
        created.publish()

    def failures() -> None:
        open_store(store, tolerate_damage=True).failures()

    def sources() -> None:
        open_store(store, tolerate_damage=True).sources()

    def tolerate() -> None:
        opened = open_store(store, tolerate_damage=True)
        for visible in opened.keys:
            with suppress(TheWorldError):
                opened.read([visible])

    yield "read", open_and_read
    yield "tolerate", tolerate
    yield "info", lambda: summarise(open_store(store, tolerate_damage=True)).lines()
    yield "sources", sources
    yield "failures", failures
    yield "verify", lambda: [verify(store, level=level) for level in LEVELS]
    yield "gc, dry", lambda: gc(store, apply=False)
    yield "repair, dry", lambda: repair(store, apply=False)
    yield "export", lambda: export(open_store(store), store.parent / "copy", format="webdataset")
    yield "write", write_more
    yield "gc", lambda: gc(store, grace_s=0, apply=True)
    yield "repair", lambda: repair(store, apply=True)
    yield "write again", write_more


def refusals(store: Path, format: StoreFormat) -> dict[str, str]:
    """Use a store in every way: what was refused and why. Anything but a refusal in our own words is an error."""
    refused = {}
    for name, use in uses(store, format):
        signal.alarm(SECONDS)
        try:
            use()
        except TheWorldError as error:
            refused[name] = str(error)
        except (Exception, TooLong) as error:
            raise AssertionError(f"{name}: {error!r}") from error
        finally:
            signal.alarm(0)
    assert all(len(message) < 4000 for message in refused.values()), "a message as long as a book"
    return refused


def meet(cache: Path, format: StoreFormat, harm: Harm, judge: Callable[[dict[str, str]], None]) -> None:
    """Make a store, harm it, use it in a confined process, and look whether anything outside of it changed."""
    outside = cache / "outside"
    outside.mkdir()
    (outside / "treasure").write_bytes(TREASURE)
    inside = cache / "inside"
    job(inside, NUMBERS, format=format)
    (store,) = inside.iterdir()
    open_store(store).record_failure(BAD)
    harm(store, outside)

    def confined() -> None:
        signal.signal(signal.SIGALRM, ring)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        os.chdir(cache)
        judge(refusals(store, format))

    in_child(confined)
    assert {path.name: path.read_bytes() for path in outside.iterdir() if path.is_file()} == {"treasure": TREASURE}
    assert [path.name for path in outside.iterdir()] == ["treasure"], "something was written outside of the store"
    assert sorted(path.name for path in cache.iterdir()) == ["inside", "outside"]
    kept = [
        path for path in inside.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20
    ]
    assert not any(TREASURE in path.read_bytes() for path in kept), "the store holds what was outside of it"


BOTH = [name for name in IN_ANY if "payload" in name or "frame" in name or "bytes" in name]


@pytest.mark.parametrize(
    ("format", "case"), [("zarr", case) for case in IN_ANY] + [("webdataset", case) for case in BOTH]
)
def test_what_a_store_cannot_be_is_refused(cache: Path, format: StoreFormat, case: str) -> None:
    harm, words = IN_ANY[case]

    def judge(refused: dict[str, str]) -> None:
        said = [message for message in refused.values() if re.search(words, message)]
        assert said, refused
        assert all(
            re.search("theworld|Restore|Upgrade|Choose another|Make a store", message) for message in refused.values()
        ), refused

    meet(cache, format, harm, judge)


@pytest.mark.parametrize("case", IN_ZARR)
def test_what_a_zarr_array_cannot_be_is_refused(cache: Path, case: str) -> None:
    harm, words = IN_ZARR[case]

    def judge(refused: dict[str, str]) -> None:
        assert any(re.search(words, message) for message in refused.values()), refused

    meet(cache, "zarr", harm, judge)


@pytest.mark.parametrize("case", GROUPS)
def test_metadata_of_the_group_that_cannot_be_is_written_anew(cache: Path, case: str) -> None:
    def judge(refused: dict[str, str]) -> None:
        assert refused == {}

    meet(cache, "zarr", GROUPS[case], judge)
    (written,) = cache.glob("inside/*/zarr.json")
    assert written.is_file()
    assert json.loads(written.read_bytes())["node_type"] == "group"


@pytest.mark.parametrize("case", CACHES)
def test_a_snapshot_that_cannot_be_is_not_believed(cache: Path, case: str) -> None:
    def judge(refused: dict[str, str]) -> None:
        assert "read" not in refused, refused
        assert "tolerate" not in refused, refused

    meet(cache, "zarr", CACHES[case], judge)


@pytest.mark.parametrize("case", LINKS)
def test_links_out_of_a_store_are_not_followed_when_writing(cache: Path, case: str) -> None:
    meet(cache, "zarr", link(LINKS[case]), lambda _: None)


def test_a_dangling_link_where_a_file_will_be_written_is_not_followed(cache: Path, format: StoreFormat) -> None:
    def harm(store: Path, outside: Path) -> None:
        for name in ("commits/3.json", "shards/000003.tar", "index.safetensors", "zarr.json", "latents/zarr.json"):
            path = store / name
            if path.parent.is_dir():
                path.unlink(missing_ok=True)
                path.symlink_to(outside / "evil")

    meet(cache, format, harm, lambda _: None)


def test_a_payload_that_is_a_link_out_of_the_store_shows_nothing_of_what_is_there(
    cache: Path, format: StoreFormat
) -> None:
    def harm(store: Path, outside: Path) -> None:
        path = payload(store)
        path.unlink()
        path.symlink_to(outside / "treasure")

    def judge(refused: dict[str, str]) -> None:
        assert "shard 0" in refused["read"]

    meet(cache, format, harm, judge)


@pytest.mark.parametrize("name", ["prompt.safetensors", "index.safetensors", "zarr.json", "commits/9.json"])
def test_a_file_that_is_a_link_to_a_treasure_takes_none_of_it_along(cache: Path, name: str) -> None:
    def harm(store: Path, outside: Path) -> None:
        (store / name).unlink(missing_ok=True)
        (store / name).symlink_to(outside / "treasure")

    meet(cache, "zarr", harm, lambda _: None)


def test_names_in_a_tar_lead_nowhere(cache: Path) -> None:
    """With right checksums all over: our reader goes by arithmetic, and `verify` says that the names are not ours."""

    def harm(store: Path, _: Path) -> None:
        path = payload(store)
        tar = bytearray(path.read_bytes())
        for name in (b"../../evil.npy", b"/outside/evil.npy"):
            header = tarfile.TarInfo(name.decode())
            header.size = tarfile.TarInfo.frombuf(bytes(tar[:512]), "ascii", "strict").size
            tar[:512] = header.tobuf(tarfile.USTAR_FORMAT)
        put(path, bytes(tar))
        reseal(
            store / "commits" / "0.json",
            sha256=hashlib.sha256(tar).hexdigest(),
            xxh3_128=xxhash.xxh3_128(bytes(tar)).hexdigest(),
        )

    def judge(refused: dict[str, str]) -> None:
        assert "read" not in refused

    meet(cache, "webdataset", harm, judge)
    (store,) = cache.glob("inside/tiny-*")
    assert [finding.shard for finding in verify(store, level="deep").damage] == [0]


def test_the_confinement_notices_a_reader_that_takes_what_it_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a reader that believes a file's size, or opens whatever has the right name."""

    def believe(self: Folder, name: str, _: int) -> bytes:
        return (self.path / name).read_bytes()

    monkeypatch.setattr(Folder, "read", believe)
    for number, case in enumerate(("failures beyond all", "failures that are a pipe")):
        (cache / str(number)).mkdir()
        monkeypatch.setattr("tests.faults.test_hostile.SECONDS", 1)
        with pytest.raises(AssertionError, match=r"MemoryError|TooLong"):
            meet(cache / str(number), "zarr", IN_ANY[case][0], lambda _: None)

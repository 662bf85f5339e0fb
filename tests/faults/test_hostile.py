"""A store from a stranger: refused with what is wrong and what to do, in bounded memory and time, harming nothing.

Seals and checksums are no help here, whoever made the store made them too. Each case runs in a process of its own that
may take little more memory than it has, and is ended by an alarm.
"""

import hashlib
import json
import os
import re
import resource
import signal
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from theworld.pipeline import catalog
from theworld.pipeline.errors import TheWorldError
from theworld.pipeline.maintenance import gc, repair
from theworld.pipeline.records import seal, unseal
from theworld.pipeline.store import StoreFormat, open_store
from theworld.pipeline.transfer import export
from theworld.pipeline.verify import LEVELS, verify

from .harness import BAD, RECIPE, create, in_child, job, key, latent, write

MEMORY = 256 * 2**20
SECONDS = 10
NUMBERS = range(6)
HUGE = 2**40
TREASURE = b"what a stranger would like to have"

Harm = Callable[[Path, Path], None]


def body(path: Path) -> dict[str, Any]:
    return json.loads(unseal(path.read_bytes()))


def reseal(path: Path, **changes: Any) -> None:
    path.write_bytes(seal(body(path) | changes))


def payload(store: Path, shard: int = 0) -> Path:
    return open_store(store, tolerate_damage=True).payload_path(shard)


def manifest(**changes: Any) -> Harm:
    return lambda store, _: reseal(store / "theworld.json", **changes)


def a_larger_world(**changes: Any) -> Harm:
    """A manifest that is right in itself, of a world so large that its records cannot be."""

    def harm(store: Path, _: Path) -> None:
        recipe = RECIPE.model_copy(update=changes)
        reseal(store / "theworld.json", recipe=recipe.model_dump(mode="json"), recipe_id=recipe.id)

    return harm


def record(**changes: Any) -> Harm:
    return lambda store, _: reseal(store / "commits" / "0.json", **changes)


def content(name: str, data: bytes) -> Harm:
    return lambda store, _: put(store / name, data)


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def sparse(name: str, size: int) -> Harm:
    """A file of zeros that takes no room on the disk."""

    def harm(store: Path, _: Path) -> None:
        put(store / name, b"")
        os.truncate(store / name, size)

    return harm


def pipe(name: str) -> Harm:
    def harm(store: Path, _: Path) -> None:
        (store / name).unlink()
        os.mkfifo(store / name)

    return harm


def device(name: str) -> Harm:
    """/dev/zero, which never ends."""

    def harm(store: Path, _: Path) -> None:
        (store / name).unlink()
        try:
            os.mknod(store / name, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            (store / name).symlink_to("/dev/zero")

    return harm


def a_folder(name: str) -> Harm:
    def harm(store: Path, _: Path) -> None:
        (store / name).unlink()
        (store / name).mkdir()

    return harm


def zarr(change: Callable[[dict[str, Any]], object]) -> Harm:
    def harm(store: Path, _: Path) -> None:
        path = store / "latents" / "zarr.json"
        found = json.loads(path.read_bytes())
        change(found)
        put(path, json.dumps(found).encode())

    return harm


def index(change: Callable[[dict[str, Any]], object]) -> Harm:
    """A snapshot with a right seal, of other numbers."""

    def harm(store: Path, _: Path) -> None:
        path = store / "index.safetensors"
        tensors = safetensors.numpy.load_file(path)
        tensors.pop("seal")
        change(tensors)
        sealed = {**tensors, "seal": catalog._seal(tensors, RECIPE.id)}
        put(path, safetensors.numpy.save(sealed))

    return harm


def index_header(header: bytes, length: int | None = None) -> Harm:
    return content("index.safetensors", struct.pack("<Q", len(header) if length is None else length) + header)


def pickled(name: str) -> Harm:
    """A pickle that would run `touch`; numpy, safetensors and json must all refuse to look at it."""
    program = b"cposix\nsystem\n(S'touch PWNED'\ntR."
    return content(name, program)


def set_codecs(codecs: list[dict[str, Any]]) -> Harm:
    return zarr(lambda found: found["codecs"][0]["configuration"].update(codecs=codecs))


IN_ANY: dict[str, tuple[Harm, str]] = {
    "a shard size beyond all": (manifest(shard_size=HUGE), "theworld.json"),
    "a frame beyond all": (a_larger_world(height=4096, width=4096, rollout_steps=256), "it is of recipe"),
    "channels beyond all": (manifest(spec=dict.fromkeys(("mean", "std"), [0.0] * 5000)), "theworld.json"),
    "an unknown layout": (manifest(layout="pickle"), "theworld.json: layout"),
    "a newer format": (manifest(format=HUGE), "newer theworld"),
    "a manifest nested deep": (
        content("theworld.json", b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
        "theworld.json",
    ),
    "a sealed manifest nested deep": (
        lambda store, _: put(store / "theworld.json", seal_text(b'{"recipe":' + b"[" * 10**5 + b"]" * 10**5 + b"}")),
        "theworld.json",
    ),
    "a manifest of digits": (
        lambda store, _: put(store / "theworld.json", seal_text(b'{"format":' + b"9" * 10**6 + b"}")),
        "theworld.json",
    ),
    "a manifest beyond all": (sparse("theworld.json", HUGE), "theworld.json.*at most"),
    "a manifest that is a pickle": (pickled("theworld.json"), "theworld.json"),
    "a manifest that is a pipe": (pipe("theworld.json"), "theworld.json|no store"),
    "a manifest that is a device": (device("theworld.json"), "theworld.json|no store"),
    "a record of rows beyond all": (record(rows=HUGE), "commits/0.json"),
    "a record of bytes beyond all": (record(bytes=2**62), "its record states"),
    "a record of another shard": (record(shard=7), "record of shard 7"),
    "a record whose keys are paths": (record(keys=["../../evil", "../../evil2"]), "hexadecimal"),
    "a record whose facts are nested deep": (
        lambda store, _: put(
            store / "commits" / "0.json",
            seal_text((store / "commits" / "0.json").read_bytes()[:-77].replace(b"{}", b"[" * 10**5 + b"]" * 10**5)),
        ),
        "commits/0.json",
    ),
    "a record beyond all": (sparse("commits/0.json", HUGE), "commits/0.json.*at most"),
    "a record that is a pickle": (pickled("commits/0.json"), "commits/0.json"),
    "a record that is a pipe": (pipe("commits/0.json"), "commits/0.json.*regular"),
    "a record that is a device": (device("commits/0.json"), "commits/0.json.*regular"),
    "a record that is a folder": (a_folder("commits/0.json"), "commits/0.json"),
    "a payload that is a pipe": (lambda store, _: pipe_payload(store), "shard 0"),
    "a payload that is a device": (lambda store, out: device(str(payload(store)))(store, out), "shard 0"),
    "a payload beyond all": (lambda store, _: os.truncate(payload(store), HUGE), "shard 0"),
    "sources that are a pipe": (lambda store, _: pipe_first(store / "sources"), "sources.*regular"),
    "failures that are a pipe": (lambda store, _: pipe_first(store / "failed"), "failed.*regular"),
    "failures beyond all": (lambda store, _: os.truncate(first(store / "failed"), HUGE), "failed.*at most"),
    "sources beyond all": (lambda store, _: os.truncate(first(store / "sources"), 2**31), "sources"),
}
"""Harms that must be refused in stores of either format: what is done, and what the refusal says."""

CACHES: dict[str, Harm] = {
    "empty": content("index.safetensors", b""),
    "a pickle": pickled("index.safetensors"),
    "a pipe": pipe("index.safetensors"),
    "a device": device("index.safetensors"),
    "a folder": a_folder("index.safetensors"),
    "zeros beyond all": sparse("index.safetensors", 2**33),
    "a header beyond all": index_header(b"{}", length=2**63 - 1),
    "a header nested deep": index_header(b'{"keys":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "a tensor beyond all": index_header(
        json.dumps({"keys": {"dtype": "U64", "shape": [2**40, 2], "data_offsets": [0, 2**44]}}).encode()
    ),
    "a tensor of no bytes and many rows": index_header(
        json.dumps({"keys": {"dtype": "U64", "shape": [2**62, 0], "data_offsets": [0, 0]}}).encode()
    ),
    "an unknown dtype": index_header(
        json.dumps({"keys": {"dtype": "PY", "shape": [1], "data_offsets": [0, 8]}}).encode()
    ),
    "negative rows": index(lambda tensors: tensors["shards"].__setitem__((0, 1), -2)),
    "rows beyond all": index(lambda tensors: tensors["shards"].__setitem__((0, 1), HUGE)),
    "no rows": content(
        "index.safetensors",
        safetensors.numpy.save(
            {
                "shards": np.empty((0, 5), np.int64),
                "keys": np.empty((0, 2), np.uint64),
                "first_frames_crc32c": np.empty(0, np.uint32),
                "seal": np.zeros(16, np.uint8),
            }
        ),
    ),
    "bytes beyond all": index(lambda tensors: tensors["shards"].__setitem__((0, 2), 2**62)),
    "a shard twice": index(lambda tensors: tensors["shards"].__setitem__((1, slice(None)), tensors["shards"][0])),
    "a number beyond all": index(lambda tensors: tensors["shards"].__setitem__((0, 0), 2**62)),
    "floats": index(lambda tensors: tensors.update(shards=tensors["shards"].astype(np.float64))),
    "another shape": index(lambda tensors: tensors.update(keys=tensors["keys"].reshape(-1))),
}
"""Harms of the snapshot, without which everything is read as it was."""

IN_ZARR: dict[str, tuple[Harm, str]] = {
    "an unknown codec": (set_codecs([{"name": "numcodecs.pickle"}]), "zarr.json.*codecs"),
    "a codec that grows": (set_codecs([{"name": "bytes"}, {"name": "zstd"}]), "zarr.json.*codecs"),
    "no checksum": (set_codecs([{"name": "bytes", "configuration": {"endian": "little"}}]), "zarr.json.*codecs"),
    "an object dtype": (zarr(lambda found: found.update(data_type="object")), "zarr.json.*data_type"),
    "a dtype of its own": (zarr(lambda found: found.update(data_type={"name": "numpy.void"})), "zarr.json.*data_type"),
    "a shape beyond all": (zarr(lambda found: found.update(shape=[HUGE] * 5)), "zarr.json.*shape"),
    "no shape": (zarr(lambda found: found.update(shape=[])), "zarr.json"),
    "chunks beyond all": (
        zarr(lambda found: found["chunk_grid"]["configuration"].update(chunk_shape=[HUGE] * 5)),
        "zarr.json.*chunk_grid",
    ),
    "Zarr 2 with pickles": (
        content("latents/zarr.json", b'{"zarr_format":2,"shape":[6],"dtype":"|O","filters":[{"id":"pickle"}]}'),
        "zarr.json",
    ),
    "a list": (content("latents/zarr.json", b"[1,2,3]"), "zarr.json"),
    "nested deep": (content("latents/zarr.json", b"[" * 10**5 + b"]" * 10**5), "zarr.json"),
    "beyond all": (sparse("latents/zarr.json", HUGE), "zarr.json"),
    "a pipe": (pipe("latents/zarr.json"), "zarr.json"),
    "a device": (device("latents/zarr.json"), "zarr.json"),
}

GROUPS: dict[str, Harm] = {
    "a pickle": pickled("zarr.json"),
    "a pipe": pipe("zarr.json"),
    "a device": device("zarr.json"),
    "beyond all": sparse("zarr.json", HUGE),
}
"""Harms of the group's metadata, which we do not read, and write anew."""


def seal_text(text: bytes) -> bytes:
    """Seal what `json.dumps` would not write."""
    return text[:-1] + b',"seal":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def first(folder: Path) -> Path:
    return min(folder.iterdir())


def pipe_first(folder: Path) -> None:
    path = first(folder)
    path.unlink()
    os.mkfifo(path)


def pipe_payload(store: Path) -> None:
    path = payload(store)
    path.unlink()
    os.mkfifo(path)


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


def link(name: str) -> Harm:
    """A folder of the store becomes a link out of it."""

    def harm(store: Path, outside: Path) -> None:
        path = store / name
        if path.is_dir():
            for entry in path.iterdir():
                entry.unlink()
            path.rmdir()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(outside)

    return harm


LINKS = {
    "tmp": "tmp",
    "lost+found": "lost+found",
    "failed": "failed",
    "the next payload's folder": "latents/c/3",
    "a folder below the next payload's": "latents/c/3/0/0",
    "a folder that no record names": "latents/c/99",
}


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

    def believe(path: Path, _: int) -> bytes:
        return path.read_bytes()

    monkeypatch.setattr(catalog, "read_file", believe)
    for number, harm in enumerate((CACHES["zeros beyond all"], CACHES["a pipe"], CACHES["a device"])):
        (cache / str(number)).mkdir()
        monkeypatch.setattr("tests.faults.test_hostile.SECONDS", 1)
        with pytest.raises(AssertionError, match=r"MemoryError|TooLong"):
            meet(cache / str(number), "zarr", harm, lambda _: None)

"""Hostile changes to a store whose seals and checksums are right, and the words of each refusal."""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from theworld.pipeline.files.sealed import unseal
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.keys import snapshot

from ..permissions import reseal
from .harness import RECIPE

HUGE = 2**40

Harm = Callable[[Path, Path], None]


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
    """Another file, as a stranger's copy has it; one edited in place is found by `verify` where there is a snapshot."""

    def harm(store: Path, _: Path) -> None:
        path = store / "commits" / "0.json"
        reseal(path, **changes)
        put(path, path.read_bytes())

    return harm


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
        crcs = tensors.pop("frames_crc32c")
        arrays = {name: tensors[name] for name in ("about", "shards", "stamps", "high", "low", "rows", "places")}
        header = snapshot._header(arrays["shards"].shape[1], *crcs.shape)
        parts = (*arrays.values(), crcs, snapshot._seal(arrays, RECIPE.id, None))
        put(path, header + b"".join(np.ascontiguousarray(part).tobytes() for part in parts))

    return harm


def index_header(header: bytes, length: int | None = None) -> Harm:
    return content("index.safetensors", struct.pack("<Q", len(header) if length is None else length) + header)


def pickled(name: str) -> Harm:
    """A pickle that would run `touch`; numpy, safetensors and json must all refuse to look at it."""
    program = b"cposix\nsystem\n(S'touch PWNED'\ntR."
    return content(name, program)


def set_codecs(codecs: list[dict[str, Any]]) -> Harm:
    return zarr(lambda found: found["codecs"][0]["configuration"].update(codecs=codecs))


def seal_text(text: bytes) -> bytes:
    """Seal what `json.dumps` would not write."""
    return text[:-1] + b',"seal":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def facts(text: bytes) -> Harm:
    """A sealed record with facts that `seal` would not write."""

    def harm(store: Path, _: Path) -> None:
        path = store / "commits" / "0.json"
        put(path, seal_text(unseal(path.read_bytes()).replace(b'"facts":{}', b'"facts":' + text)))

    return harm


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
    "a manifest beyond all": (sparse("theworld.json", HUGE), "theworld.json.*the limit is"),
    "a manifest that is a pickle": (pickled("theworld.json"), "theworld.json"),
    "a manifest that is a pipe": (pipe("theworld.json"), "theworld.json|no store"),
    "a manifest that is a device": (device("theworld.json"), "theworld.json|no store"),
    "a record of rows beyond all": (record(rows=HUGE), "commits/0.json"),
    "a record of bytes beyond all": (record(bytes=2**62), "it states 2 rows in"),
    "a record of another shard": (record(shard=7), "record of shard 7"),
    "a record whose keys are paths": (record(keys=["../../evil", "../../evil2"]), "hexadecimal"),
    "a record whose facts are nested deep": (
        facts(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
        "commits/0.json.*recursion",
    ),
    **{
        f"a record with {text[:9]}": (facts(b'{"seconds":{"rollout":%s}}' % text.encode()), "finite")
        for text in ("NaN", "-Infinity", "1e999", "9" * 400)
    },
    "a record beyond all": (sparse("commits/0.json", HUGE), "commits/0.json.*the limit is"),
    "a record that is a pickle": (pickled("commits/0.json"), "commits/0.json"),
    "a record that is a pipe": (pipe("commits/0.json"), "commits/0.json.*regular"),
    "a record that is a device": (device("commits/0.json"), "commits/0.json.*regular"),
    "a record that is a folder": (a_folder("commits/0.json"), "commits/0.json"),
    "a payload that is a pipe": (lambda store, _: pipe_payload(store), "shard 0"),
    "a payload that is a device": (lambda store, out: device(str(payload(store)))(store, out), "shard 0"),
    "a payload beyond all": (lambda store, _: os.truncate(payload(store), HUGE), "shard 0"),
    "sources that are a pipe": (lambda store, _: pipe_first(store / "sources"), "sources.*regular"),
    "failures that are a pipe": (lambda store, _: pipe_first(store / "failed"), "failed.*regular"),
    "failures beyond all": (lambda store, _: os.truncate(first(store / "failed"), HUGE), "failed.*the limit is"),
    "sources beyond all": (lambda store, _: os.truncate(first(store / "sources"), 2**29), "sources"),
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
    "negative rows": index(lambda tensors: tensors["shards"].__setitem__((1, 0), -2)),
    "rows beyond all": index(lambda tensors: tensors["shards"].__setitem__((1, 0), HUGE)),
    "no rows": content(
        "index.safetensors",
        safetensors.numpy.save(
            {
                "shards": np.empty((0, 5), np.int64),
                "keys": np.empty((0, 2), np.uint64),
                "frames_crc32c": np.empty((0, 3), np.uint32),
                "seal": np.zeros(16, np.uint8),
            }
        ),
    ),
    "bytes beyond all": index(lambda tensors: tensors["shards"].__setitem__((2, 0), 2**62)),
    "a shard twice": index(lambda tensors: tensors["shards"].__setitem__((slice(None), 1), tensors["shards"][:, 0])),
    "a place beyond all": index(lambda tensors: tensors["places"].__setitem__(0, 2**31)),
    "a row before all": index(lambda tensors: tensors["rows"].__setitem__(0, -5)),
    "more keys than rows": index(lambda tensors: tensors["about"].__setitem__(1, 2**40)),
    "a number beyond all": index(lambda tensors: tensors["shards"].__setitem__((0, 0), 2**62)),
    "floats": index(lambda tensors: tensors.update(shards=tensors["shards"].astype(np.float64))),
    "another shape": index(lambda tensors: tensors.update(high=tensors["high"][:-1])),
}
"""Harms of the snapshot, without which everything is read as it was."""

IN_ZARR: dict[str, tuple[Harm, str]] = {
    "an unknown codec": (set_codecs([{"name": "numcodecs.pickle"}]), "zarr.json.*codecs"),
    "a codec that grows": (set_codecs([{"name": "bytes"}, {"name": "zstd"}]), "zarr.json.*codecs"),
    "no checksum": (set_codecs([{"name": "bytes", "configuration": {"endian": "little"}}]), "zarr.json.*codecs"),
    "an object dtype": (zarr(lambda found: found.update(data_type="object")), "zarr.json.*data_type"),
    "a dtype as long as a book": (zarr(lambda found: found.update(data_type="x" * 10**6)), "zarr.json.*data_type"),
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

LINKS = {
    "tmp": "tmp",
    "lost+found": "lost+found",
    "failed": "failed",
    "the next payload's folder": "latents/c/3",
    "a folder below the next payload's": "latents/c/3/0/0",
    "a folder that no record names": "latents/c/99",
}
"""Folders of a store that become links out of it."""

"""Inputs in a bucket: the same keys as on disk, pages rather than looks, and trouble that costs one input."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from theworld.pipeline.errors import ConfigError, StoreError
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.files.places.place import Entry
from theworld.precompute.inputs.listing import remote_places
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.rollout.kinds import KINDS

from ....command_line import theworld
from ....s3_server import BUCKET, SECRET, S3Server, Stored, s3_server

URL = f"s3://{BUCKET}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    with s3_server(page=100) as server, server.environment():
        yield server


def picture(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 7)).save(content, "PNG")
    return content.getvalue()


def put(server: S3Server, name: str, content: bytes) -> None:
    server.objects[name] = Stored(content, {}, 1.7e9)


def listed(place: str | Path, **more: object) -> Listing:
    return list_inputs(Path(place), KINDS["rollout"], **more)  # type: ignore[arg-type]


def keys(listing: Listing) -> list[str]:
    return list(listing.samples.keys())


def test_a_folder_in_a_bucket_has_the_keys_of_the_same_folder_on_disk(server: S3Server, tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "sub/b.png", "sub/deep/c.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(picture(number))
        put(server, f"photos/{name}", picture(number))
    put(server, "photos/notes.txt", b"notes")
    put(server, "photos/.hidden/d.png", picture(9))
    put(server, "photos2/other.png", picture(8))
    ours, theirs = listed(tmp_path / "in"), listed(f"{URL}/photos/")
    assert keys(ours) == keys(theirs)
    assert [sample.source for sample in theirs.samples] == [
        f"{URL}/photos/{name}" for name in ("a.png", "sub/b.png", "sub/deep/c.png")
    ]
    assert theirs.left_out == {".txt": 1, "hidden": 1}
    assert [sample.location.read(2**20) for sample in theirs.samples] == [picture(number) for number in range(3)]
    assert keys(listed(f"{URL}/photos/sub/**/*.png")) == keys(theirs)[1:]
    assert keys(listed(f"{URL}/photos/a.png")) == keys(theirs)[:1]
    assert keys(listed(f"{URL}/photos/{{a,sub/b}}.png")) == keys(theirs)[:2]


def test_a_second_listing_costs_pages_and_only_what_changed_is_read(server: S3Server, tmp_path: Path) -> None:
    for number in range(950):
        put(server, f"photos/{number:04d}.png", picture(number))
    place = Path(f"{URL}/photos")
    index = HashCache.load(tmp_path / "cache", place, "image")
    first = listed(place, index=index)
    index.save()
    assert len(first.samples) == 950
    put(server, "photos/0007.png", picture(7777))
    server.asked.clear()
    again = listed(place, index=HashCache.load(tmp_path / "cache", place, "image"))
    assert [line.partition(" ")[0] for line in server.asked].count("LIST") == 10
    assert [line for line in server.asked if line.startswith("GET")] == ["GET photos/0007.png"]
    assert [at for at, (a, b) in enumerate(zip(keys(first), keys(again), strict=True)) if a != b] == [7]


def test_the_rows_of_a_list_are_looked_at_by_pages_and_not_one_by_one(server: S3Server, tmp_path: Path) -> None:
    rows = "".join(f'{{"image": "{URL}/photos/{number:04d}.png"}}\n' for number in range(300))
    for number in range(300):
        put(server, f"photos/{number:04d}.png", picture(number))
    put(server, "rows.jsonl", rows.encode())
    place = Path(f"{URL}/rows.jsonl")
    index = HashCache.load(tmp_path / "cache", place, "image")
    assert len(listed(place, index=index).samples) == 300
    index.save()
    server.asked.clear()
    again = listed(place, index=HashCache.load(tmp_path / "cache", place, "image"))
    assert len(again.samples) == 300
    asked = [line.partition(" ")[0] for line in server.asked]
    assert not [line for line in server.asked if line.startswith("GET photos")], "their digests are known"
    assert asked.count("HEAD") < 100


def test_objects_are_read_many_at_a_time(server: S3Server) -> None:
    import time

    for number in range(96):
        put(server, f"photos/{number}.png", picture(number))
    server.faults.latency_s = 0.05
    started = time.monotonic()
    assert len(listed(f"{URL}/photos").samples) == 96
    assert time.monotonic() - started < 96 * 0.05 / 3


def test_tars_tables_and_lists_in_a_bucket_are_read_like_those_on_disk(server: S3Server, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = [picture(number) for number in range(3)]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    pq.write_table(pa.table({"image": contents}), tmp_path / "x.parquet")
    (tmp_path / "one.png").write_bytes(contents[1])
    rows = ["near.png", f"{URL}/elsewhere/far.png", str(tmp_path / "one.png"), "gone.png"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    put(server, "lists/near.png", contents[0])
    put(server, "elsewhere/far.png", contents[2])
    for name in ("x.tar", "x.parquet", "x.jsonl"):
        put(server, f"{name[2:]}s/{name}", (tmp_path / name).read_bytes())
    put(server, "lists/x.jsonl", (tmp_path / "x.jsonl").read_bytes())
    wanted = keys(listed(tmp_path / "x.tar"))
    tars = listed(f"{URL}/tars")
    assert keys(tars) == wanted
    assert [sample.source for sample in tars.samples] == [f"{URL}/tars/x.tar:{number}.png" for number in range(3)]
    assert [sample.location.read(2**20) for sample in tars.samples] == contents
    tables = listed(f"{URL}/parquets/x.parquet")
    assert keys(tables) == wanted
    assert tables.samples[0].source == f"{URL}/parquets/x.parquet#0"
    assert [sample.location.read(2**20) for sample in tables.samples] == contents
    rows_read = listed(f"{URL}/lists/x.jsonl")
    assert keys(rows_read) == [wanted[0], wanted[2], wanted[1]]
    [refused] = rows_read.refused
    assert (refused.source, refused.reason) == (f"{URL}/lists/x.jsonl:4", "missing")
    assert f"there is no {URL}/lists/gone.png" in refused.message
    local = tmp_path / "local.jsonl"
    local.write_text("".join(json.dumps({"image": row}) + "\n" for row in rows[1:3]))
    assert keys(listed(local)) == [wanted[2], wanted[1]]


def test_an_object_that_vanishes_or_is_cut_off_costs_itself_alone(server: S3Server) -> None:
    for number in range(4):
        put(server, f"photos/{number}.png", picture(number))
    listing = listed(f"{URL}/photos")
    del server.objects["photos/2.png"]
    with pytest.raises(ValueError, match=f"there is no {URL}/photos/2.png"):
        listing.samples[2].location.read(2**20)
    put(server, "photos/2.png", b"")
    server.faults.alter = lambda name, content: content[:20] if name == "photos/1.png" else content
    again = listed(f"{URL}/photos")
    assert len(again.samples) == 3 - 1 + (20 > 0)  # what arrives is what the key is of
    assert [(failure.source, failure.reason) for failure in again.refused] == [(f"{URL}/photos/2.png", "empty")]


def test_no_answer_names_the_place_and_no_secret(server: S3Server) -> None:
    put(server, "photos/a.png", picture(1))
    server.faults.refusal = (403, "AccessDenied")
    with pytest.raises(StoreError) as caught:
        listed(f"{URL}/photos")
    assert URL in str(caught.value)
    assert SECRET not in str(caught.value)
    server.faults.refusal = None
    with pytest.raises(ConfigError, match=f"nothing at {URL}/photo: no file of this name"):
        listed(f"{URL}/photo")


@pytest.mark.parametrize(
    "url",
    [
        "s3://id:word@bucket/x",
        "s3://bucket/x?X-Amz-Signature=word",
        "s3://bucket/../x",
        "hf://datasets/only",
        "hf://models/org/name",
    ],
)
def test_a_url_with_a_password_or_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listed(url)
    assert "word" not in str(caught.value).replace("password", "")


def test_names_in_a_listing_write_nothing_outside_the_folder_of_copies(server: S3Server, tmp_path: Path) -> None:
    for name in ("lists/...jsonl", "lists/a\\..\\b.jsonl", "lists/.. .jsonl"):
        put(server, name, json.dumps({"image": f"{URL}/p.png"}).encode())
    put(server, "p.png", picture(1))
    before = {path for path in tmp_path.rglob("*") if "own" not in path.parts}
    for name in list(server.objects):
        if name != "p.png":
            assert len(listed(f"{URL}/{name}").samples) == 1
    assert {path for path in tmp_path.rglob("*") if "own" not in path.parts} == before


def test_the_command_reads_a_url_and_a_home_that_no_shell_has_expanded(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, "photos/a.png", picture(1))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture(1))
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (f"{URL}/photos", "~/photos"):
        done = theworld("precompute", place, "--cache", tmp_path / "cache", "--in-process", "--dry-run")
        assert (done.code, "1 rollout" in done.err) == (0, True), done.err
    put(server, "empty/a.png", b"")
    done = theworld("precompute", f"{URL}/empty", "--cache", tmp_path / "cache", "--in-process", "--dry-run")
    assert f"none of the 1 inputs of {URL}/empty can be read" in done.err


MACOS = "Screenshot 3.04\u202fPM.png"


def test_names_mean_in_a_bucket_what_they_mean_on_a_disk(server: S3Server, tmp_path: Path) -> None:
    for at, name in enumerate(("a.png", "sub/b.png", "c#2.png", "d?f.png", "100%25.png", MACOS)):
        put(server, f"set/{name}", picture(at))
        (tmp_path / "set/sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(at))
    named = ("./a.png", "sub//b.png", "sub/./b.png", "c#2.png", "100%25.png", f"{URL}/set/{MACOS}")
    rows = "".join(json.dumps({"image": name}) + "\n" for name in named).encode()
    put(server, "set/list.jsonl", rows)
    (tmp_path / "set/list.jsonl").write_bytes(rows)
    for place in ("set", "set/list.jsonl"):
        ours, theirs = listed(tmp_path / place), listed(f"{URL}/{place}")
        assert (keys(ours), ours.refused) == (keys(theirs), theirs.refused)


@pytest.mark.parametrize("odd", ["set//a.png", "set/./a.png", "set/../a.png", "set/a\tb.png"])
def test_a_row_with_a_url_that_no_bucket_is_asked_for_costs_itself_alone(
    server: S3Server, tmp_path: Path, odd: str
) -> None:
    put(server, "a.png", picture(1))
    rows = [{"image": f"{URL}/{name}"} for name in (odd, "a.png")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listing = listed(tmp_path / "list.jsonl")
    assert len(listing.samples) == 1
    [failure] = listing.refused
    assert "no part of a URL may be empty" in failure.message


@pytest.mark.usefixtures("server")
def test_a_listing_that_repeats_itself_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_places, "MAX_ROWS", 50)
    again = (Entry("a.png", 1, 1, 1.0) for _ in count())
    monkeypatch.setattr(Bucket, "entries", lambda *_, **__: again)
    with pytest.raises(ConfigError, match="holds more than 50 files"):
        listed(URL)

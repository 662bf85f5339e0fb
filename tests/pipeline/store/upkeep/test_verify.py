"""What each level of `verify` finds, what it leaves to the next, and that it changes nothing."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import ConfigError, DamagedShardError, StoreError, StoreNotFoundError, TheWorldError
from theworld.pipeline.store import latent_store
from theworld.pipeline.store.folder import LatentStore, StoreFormat, load_store, open_store
from theworld.pipeline.store.keys.index import SNAPSHOT, Shard
from theworld.pipeline.store.keys.runs import run_of
from theworld.pipeline.store.keys.snapshot import write_snapshot
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep import verify as verify_module
from theworld.pipeline.store.upkeep.repair import repair
from theworld.pipeline.store.upkeep.verify import LEVELS, Finding, Level, verify

from ....miniatures.store import TINY, create, fill, flip, key, write
from ....permissions import (
    as_another_user,
    become_a_folder,
    become_a_pipe,
    fit,
    listing,
    poison,
    put_row,
    record,
    record_file,
    reseal,
)

KINDS: dict[str, tuple[StoreFormat, str]] = {
    "zarr": ("zarr", "float16"),
    "webdataset": ("webdataset", "bfloat16"),
}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, cache: Path) -> LatentStore:
    """Ten samples in shards of 4, 4 and 2."""
    format, dtype = KINDS[request.param]
    store = create(cache, recipe=TINY.model_copy(update={"dtype": dtype}), format=format)
    fill(store, 10)
    return store


def damaged_shards(store: LatentStore, level: Level) -> list[int | None]:
    return [finding.shard for finding in verify(store.path, level=level).damage]


def only(findings: tuple[Finding, ...]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize("level", LEVELS)
def test_a_sound_store_has_nothing_to_find(store: LatentStore, level: Level) -> None:
    store.record_sources([("a.png", key(0))])
    store.record_failure(Failure(source="b.png", key=None, reason="decode", message="no image", attempts=1))
    done = verify(store.path, level=level)
    assert done.findings == ()
    assert (done.shards, done.of_shards, done.samples) == (3, 3, 10)
    payloads = sum(store.payload_path(n).stat().st_size for n in range(3))
    assert done.bytes_read == (0 if level == "names" else payloads)


def test_what_another_tool_has_made_of_a_file_is_named_with_how_to_have_it_back(store: LatentStore) -> None:
    store.record_sources([("a.png", key(0)), ("b.png", key(1))])
    store.record_failure(Failure(source="c.png", key=None, reason="decode", message="no image", attempts=1))
    pointer, linked = store.payload_path(0), store.payload_path(1)
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 700\n")
    linked.unlink()
    linked.symlink_to(".git/annex/objects/xx")
    logs = [next((store.path / name).iterdir()) for name in ("sources", "failed")]
    texts = [store.path / "commits" / "2.json", *logs]
    for text in texts:
        text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    found = {finding.message for finding in verify(store.path, level="names").damage}
    said = {pointer: "git lfs pull", linked: "git annex get"} | dict.fromkeys(texts, "core.autocrlf")
    for path, advice in said.items():
        assert [message for message in found if message.startswith(str(path)) and advice in message], path


def test_a_description_that_git_or_an_editor_has_changed_says_so(store: LatentStore) -> None:
    path = store.path / "theworld.json"
    content = path.read_bytes()
    page = b"<!DOCTYPE html>\r\n<html><body>Please log in</body></html>"
    crlf, marked = content.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + content
    for changed, said in ((crlf, "core.autocrlf"), (marked, "editor"), (page, "a page of HTML")):
        path.write_bytes(changed)
        with pytest.raises(TheWorldError, match=said):
            open_store(store.path)


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("harm", [Path.unlink, shrink, grow, become_a_pipe, become_a_folder])
def test_names_find_a_payload_that_is_not_there_or_of_another_size(
    store: LatentStore, harm: Callable[[Path], None], level: Level
) -> None:
    harm(store.payload_path(1))
    finding = only(verify(store.path, level=level).damage)
    assert (finding.what, finding.shard) == ("payload", 1)
    assert finding.paths == (record_file(store, 1), store.payload_path(1))
    assert str(store.payload_path(1)) in finding.message


def test_of_many_shards_that_are_damaged_alike_the_first_are_named_and_all_are_counted_and_healed(cache: Path) -> None:
    store = create(cache)
    for number in range(30):
        write(store, [number])
    for number in range(28):
        store.payload_path(number).unlink()
    found = verify(store.path)
    assert [finding.shard for finding in found.damage] == [*range(20), None]
    more = found.damage[-1]
    assert (more.what, more.count, found.damaged) == ("payload", 8, 28)
    assert "8 more payloads" in more.message
    assert "shards 20, 21, 22 and 5 more" in more.message
    assert "28 damaged" in found.lines()[-1]
    assert found.to_json()["damaged"] == 28
    repair(store.path, apply=True, level="names")
    assert verify(store.path).damage == ()
    assert len(open_store(store.path)) == 2


def test_bytes_that_were_not_read_are_not_counted(store: LatentStore) -> None:
    store.payload_path(0).unlink()
    assert verify(store.path, level="read").bytes_read == sum(store.payload_path(n).stat().st_size for n in (1, 2))


def test_read_finds_every_flipped_byte_and_names_finds_none(store: LatentStore) -> None:
    payload = store.payload_path(0)
    intact = payload.read_bytes()
    draw = np.random.default_rng(0)
    for position in [0, len(intact) - 1, *draw.integers(0, len(intact), 60).tolist()]:
        flip(payload, position, int(draw.integers(8)))
        assert damaged_shards(store, "names") == []
        finding = only(verify(store.path, level="read").damage)
        assert (finding.what, finding.shard) == ("payload", 0)
        assert "xxh3" in finding.message
        payload.write_bytes(intact)
    assert damaged_shards(store, "read") == []


def change_a_number(store: LatentStore) -> None:
    """A number changes, its frame's checksum does not."""
    flip(store.payload_path(1), store.layout.row_bytes + store.layout.reads(1).segments[0][0] + 8)
    fit(store, 1)


def change_the_end(store: LatentStore) -> None:
    """The index of a Zarr shard, the empty blocks of a tar."""
    flip(store.payload_path(1), -9)
    fit(store, 1)


def swap_rows(store: LatentStore) -> None:
    payload, size = store.payload_path(1), store.layout.row_bytes
    content = payload.read_bytes()
    payload.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    fit(store, 1)


def swap_keys(store: LatentStore) -> None:
    """In the record: the names in a tar tell; in a Zarr shard, which has none, the frames' checksums do."""
    body = record(store, 1)
    keys, crcs = body["keys"], body["frames_crc32c"]
    changed = {"keys": [keys[1], keys[0], *keys[2:]]}
    if store.format == "zarr":
        changed["frames_crc32c"] = crcs[24:48] + crcs[:24] + crcs[48:]
    reseal(record_file(store, 1), **changed)


def become_nan(store: LatentStore) -> None:
    poison(store, 5)


def become_infinite(store: LatentStore) -> None:
    poison(store, 5, -np.inf)


ROWS_HARMED: list[tuple[Callable[[LatentStore], None], str]] = [
    (change_a_number, "row 1"),
    (change_the_end, "last row"),
    (swap_rows, "row 0"),
    (swap_keys, "row 0"),
    (become_nan, "row 1"),
    (become_infinite, "row 1"),
]


@pytest.mark.parametrize(("harm", "words"), ROWS_HARMED)
def test_deep_finds_a_row_that_is_wrong_though_its_record_vouches_for_it(
    store: LatentStore, harm: Callable[[LatentStore], None], words: str
) -> None:
    harm(store)
    assert damaged_shards(store, "read") == []
    finding = only(verify(store.path, level="deep").damage)
    assert (finding.what, finding.shard) == ("payload", 1)
    assert words in finding.message


@pytest.mark.parametrize(
    ("place", "what"),
    [(0, "a member's name"), (124, "a member's size"), (520, "the npy header"), (-500, "the json"), (-1, "padding")],
)
def test_deep_finds_a_tar_row_that_other_readers_would_misread(cache: Path, place: int, what: str) -> None:
    store = create(cache, format="webdataset")
    fill(store, 4)
    at = 3 * store.layout.row_bytes + place
    flip(store.payload_path(0), at if place >= 0 else at + store.layout.row_bytes, 1)
    fit(store, 0)
    assert damaged_shards(store, "read") == [], what
    assert "row 3" in only(verify(store.path, level="deep").damage).message, what


def test_deep_also_holds_the_sha256_against_the_payload(store: LatentStore) -> None:
    reseal(record_file(store, 2), sha256="0" * 64)
    assert damaged_shards(store, "read") == []
    assert "sha256" in only(verify(store.path, level="deep").damage).message


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_the_samples_of_n_calls_see_every_shard_once(cache: Path, parts: int) -> None:
    store = create(cache)
    for number in (0, 2, 3, 9, 40):
        with store.new_shard(number) as shard:
            shard.add(key(number), np.full(store.sample_shape, number, np.float32))
            shard.commit({})
        store.payload_path(number).unlink()
    seen: list[int | None] = []
    for part in range(1, parts + 1):
        done = verify(store.path, sample=(part, parts))
        assert done.shards == len(done.damage)
        assert done.of_shards == 5
        seen += [finding.shard for finding in done.damage]
    assert sorted(map(str, seen)) == sorted(["0", "2", "3", "9", "40"])


@pytest.mark.parametrize("sample", [(0, 3), (4, 3), (1, 0), (-1, 3)])
def test_a_sample_that_is_none_is_refused(cache: Path, sample: tuple[int, int]) -> None:
    fill(create(cache), 2)
    (path,) = cache.iterdir()
    with pytest.raises(ConfigError, match="1 <= i <= n"):
        verify(path, sample=sample)


@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_manifest_is_damage_that_only_a_copy_heals(store: LatentStore, level: Level) -> None:
    flip(store.path / "theworld.json", 60)
    done = verify(store.path, level=level)
    finding = only(done.damage)
    assert finding.what == "manifest"
    assert "copy of the store" in finding.message
    assert "cache repair" not in "\n".join(done.lines()), "repair cannot heal this"


def test_a_manifest_whose_recipe_makes_no_sense_is_damage_too(store: LatentStore) -> None:
    reseal(store.path / "theworld.json", recipe={**TINY.model_dump(mode="json"), "height": 17})
    assert only(verify(store.path).damage).what == "manifest"


def test_what_is_no_store_is_refused(cache: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        verify(cache)


def test_the_advice_heals_what_was_found(store: LatentStore) -> None:
    poison(store, 5)
    assert "--deep --apply" in verify(store.path, level="deep").lines()[-1], "without --deep, repair would not see it"
    poison(store, 5, 0.0)
    flip(store.payload_path(0), 3)
    assert f"theworld cache repair {store.path} --apply" in verify(store.path, level="read").lines()[-1]


def test_names_find_every_flipped_bit_of_a_record(store: LatentStore) -> None:
    file = record_file(store, 1)
    intact = file.read_bytes()
    draw = np.random.default_rng(1)
    for position in draw.integers(0, len(intact), 40).tolist():
        flip(file, position, int(draw.integers(8)))
        finding = only(verify(store.path).damage)
        assert (finding.what, finding.shard) == ("record", 1)
        assert finding.paths == (file, store.payload_path(1)), "without a record nothing vouches for the payload"
        file.write_bytes(intact)


@pytest.mark.parametrize("changes", [{"shard": 2}, {"recipe_id": "f" * 64}, {"bytes": 2**40}, {"format": 3}])
def test_a_sealed_record_that_is_not_of_this_shard_is_damage(store: LatentStore, changes: dict[str, object]) -> None:
    reseal(record_file(store, 1), **changes)
    finding = only(verify(store.path).damage)
    assert (finding.what, finding.shard) == ("record", 1)


@pytest.mark.parametrize("harm", [become_a_pipe, become_a_folder, shrink, grow])
def test_a_record_that_is_no_file_or_of_another_size_is_damage(
    store: LatentStore, harm: Callable[[Path], None]
) -> None:
    harm(record_file(store, 1))
    assert damaged_shards(store, "names") == [1]


@pytest.mark.parametrize("target", ["5.json", "nowhere.json"], ids=["to itself", "to nothing"])
def test_a_record_that_is_a_link_is_damage(store: LatentStore, target: str) -> None:
    record_file(store, 5).symlink_to(target)
    assert damaged_shards(store, "names") == [5]
    assert load_store(store.path).keys == store.keys


def test_verify_and_the_reader_agree_on_a_payload_that_is_a_link(store: LatentStore, cache: Path) -> None:
    shutil.move(store.payload_path(1), cache / "moved")
    store.payload_path(1).symlink_to(cache / "moved")
    refused = False
    try:
        open_store(store.path).read([key(5)])
    except DamagedShardError:
        refused = True
    assert (damaged_shards(store, "read") == [1]) == refused


def test_array_metadata_of_another_array_is_damage(cache: Path) -> None:
    store = create(cache)
    fill(store, 10)
    file = store.path / "latents" / "zarr.json"
    right = json.loads(file.read_text())
    for text in ('{"shape": [10]}', "not JSON", json.dumps({**right, "codecs": []}),
                 json.dumps({**right, "data_type": "float32"})):  # fmt: skip
        file.write_text(text)
        finding = only(verify(store.path).damage)
        assert (finding.what, finding.paths) == ("zarr", (file,)), text


@pytest.mark.parametrize("name", ["latents/zarr.json", "zarr.json"])
def test_metadata_that_can_be_made_again_is_a_note(cache: Path, name: str) -> None:
    store = create(cache)
    fill(store, 10)
    (store.path / name).unlink()
    done = verify(store.path)
    assert done.damage == ()
    assert name in only(done.findings).message


def test_an_array_shape_behind_the_records_is_a_note(cache: Path) -> None:
    store = create(cache)
    fill(store, 8)
    write(store, [8, 9])
    done = verify(store.path)
    assert done.damage == ()
    behind = [str(finding.message).split(" does not state")[0] for finding in done.findings]
    assert behind == [str(store.path / name) for name in ("latents/zarr.json", "key/zarr.json", "zarr.json", "key/c/0")]


def test_damaged_rows_of_both_logs_are_damage(store: LatentStore) -> None:
    store.record_sources([("a.png", key(0))])
    store.record_failure(Failure(source="b.png", key=None, reason="decode", message="no image", attempts=1))
    files = [next((store.path / folder).iterdir()) for folder in ("failed", "sources")]
    for file in files:
        flip(file, 20)
    found = verify(store.path).damage
    assert [(finding.what, finding.paths) for finding in found] == [("log", (file,)) for file in files]


@pytest.fixture
def small_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_store, "SNAPSHOT_FROM_SHARDS", 2)


@pytest.mark.usefixtures("small_snapshots")
def test_a_damaged_snapshot_is_a_note_and_the_records_are_read(store: LatentStore) -> None:
    store.publish()
    assert verify(store.path, level="deep").findings == ()
    flip(store.path / SNAPSHOT, 300)
    done = verify(store.path, level="deep")
    assert done.damage == ()
    assert SNAPSHOT in only(done.findings).message
    assert len(open_store(store.path)) == 10


@pytest.mark.usefixtures("small_snapshots")
def test_a_snapshot_that_contradicts_a_record_is_damage_and_the_shard_is_not_blamed(store: LatentStore) -> None:
    shards = store.shards
    lie = Shard(1, shards[1].bytes, shards[1].keys[::-1], shards[1].frames_crc32c, shards[1].stamp)
    run = run_of([shards[0], lie, shards[2]], store.shard_size)
    write_snapshot(store.place, run, store.recipe.id, folder=(store.path / "commits").stat().st_ino)
    finding = only(verify(store.path).damage)
    assert finding.shard == 1
    assert SNAPSHOT in finding.message
    assert store.payload_path(1) not in finding.paths
    assert record_file(store, 1) not in finding.paths


@pytest.mark.usefixtures("small_snapshots")
def test_a_record_that_rots_behind_a_snapshot_is_found_by_names(store: LatentStore) -> None:
    store.publish()
    file = record_file(store, 1)
    status = file.stat()
    flip(file, 40)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(open_store(store.path)) == 10, "opening does not look"
    assert damaged_shards(store, "names") == [1]


def test_what_killed_writers_left_and_doubles_are_notes(store: LatentStore) -> None:
    write(store, [2, 3, 11])
    store.publish()
    for number in (7, 8):
        orphan = store.payload_path(number)
        orphan.parent.mkdir(parents=True, exist_ok=True)
        orphan.write_bytes(b"torn")
    (store.path / "tmp" / "1-dead").write_bytes(b"torn")
    done = verify(store.path, level="deep")
    assert done.damage == ()
    said = {finding.what: finding.message for finding in done.findings}
    assert said.keys() == {"orphan", "leftover", "twice"}
    assert "2 payloads" in said["orphan"]
    assert "1 unfinished" in said["leftover"]
    assert "2 rows" in said["twice"]
    assert done.samples == 11


@pytest.mark.parametrize("level", LEVELS)
def test_verify_changes_nothing(store: LatentStore, level: Level) -> None:
    store.record_sources([("a.png", key(0))])
    before = listing(store.path)
    verify(store.path, level=level)
    assert listing(store.path) == before
    flip(record_file(store, 0), 40)
    flip(store.payload_path(1), 3)
    flip(next((store.path / "sources").iterdir()), 3)
    (store.path / "tmp" / "1-dead").write_bytes(b"torn")
    before = listing(store.path)
    assert len(verify(store.path, level=level).damage) == (2 if level == "names" else 3)
    assert listing(store.path) == before


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_a_store_that_belongs_to_somebody_else_is_verified_too(cache: Path, format: StoreFormat) -> None:
    store = create(cache, format=format)
    fill(store, 8)
    flip(store.payload_path(1), 3)
    before = listing(store.path)

    def look() -> None:
        with pytest.raises(PermissionError):
            (store.path / "tmp" / "probe").touch()
        assert [len(verify(store.path, level=level).damage) for level in LEVELS] == [0, 1, 1]

    as_another_user(look)
    assert listing(store.path) == before


@pytest.mark.parametrize("what", ["record", "payload", "log"])
def test_a_file_one_may_not_read_is_no_damage_and_no_traceback(cache: Path, what: str) -> None:
    store = create(cache)
    fill(store, 8)
    store.record_sources([("a.png", key(0))])
    (log,) = (store.path / "sources").iterdir()
    {"record": record_file(store, 1), "payload": store.payload_path(1), "log": log}[what].chmod(0)

    def look() -> None:
        with suppress(TheWorldError):  # said as an error of ours, or as a note: not as lost samples
            assert verify(store.path, level="read").damage == ()

    as_another_user(look)


def commit_meanwhile(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Another writer commits just after the store was opened."""
    real = verify_module.load_store

    def slow(path: Path) -> LatentStore:
        store = real(path)
        if key(100) not in create(cache, recipe=store.recipe, format=store.format):
            write(create(cache, recipe=store.recipe, format=store.format), [100, 101])
        return store

    monkeypatch.setattr(verify_module, "load_store", slow)


def test_a_shard_committed_meanwhile_is_no_damage(
    store: LatentStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_meanwhile(monkeypatch, cache)
    assert verify(store.path, level="deep").damage == ()
    assert key(101) in open_store(store.path)


def test_a_repair_beside_a_writer_leaves_what_is_committed_meanwhile(
    store: LatentStore, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(store.payload_path(0), 3)
    commit_meanwhile(monkeypatch, cache)
    repair(store.path, apply=True)
    assert set(open_store(store.path).keys) == {key(n) for n in (*range(4, 10), 100, 101)}


def test_a_shard_set_aside_meanwhile_is_no_damage(store: LatentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(store.payload_path(0), 3)
    real = verify_module.load_store

    def slow(path: Path) -> LatentStore:
        opened = real(path)
        monkeypatch.setattr(verify_module, "load_store", real)
        repair(path, apply=True)
        return opened

    monkeypatch.setattr(verify_module, "load_store", slow)
    assert verify(store.path, level="read").damage == ()


def test_a_store_of_a_newer_format_is_refused(store: LatentStore) -> None:
    reseal(store.path / "theworld.json", format=3)
    with pytest.raises(StoreError, match="newer theworld"):
        verify(store.path)


def test_all_of_it_is_plain_json(store: LatentStore) -> None:
    flip(store.payload_path(1), 3)
    done = verify(store.path, level="read", sample=(2, 3))
    said = json.loads(json.dumps(done.to_json()))
    assert (said["store"], said["level"], said["shards"], said["of_shards"]) == (str(store.path), "read", 1, 3)
    assert said["damaged"] == 1
    assert said["findings"][0]["paths"] == [str(record_file(store, 1)), str(store.payload_path(1))]
    assert [line.split(":")[0] for line in done.lines()] == ["DAMAGE", str(store.path)]


def test_rows_written_by_hand_with_the_right_bytes_are_right(store: LatentStore) -> None:
    """The harm done above lies in what it changes, not in how: the same way with the right values is no damage."""
    poison(store, 5, 0.5)
    row = store.layout.new_row()
    crcs = store.layout.encode(key(5), np.zeros(store.sample_shape, np.float32), row)
    assert damaged_shards(store, "deep") == []
    put_row(store, 1, 1, row.tobytes(), crcs)
    assert damaged_shards(store, "deep") == []
    assert not open_store(store.path).read([key(5)]).any()

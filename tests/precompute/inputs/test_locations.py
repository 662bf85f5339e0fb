"""Lists, tables and tars as inputs: they give the keys that the same files in a folder give; what is wrong is a row."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.faults.harness import in_child
from tests.patience import ends_within
from tests.permissions import as_another_user, open_folder
from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.files import hash_cache as input_index
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.sealed import seal_tensors
from theworld.pipeline.latents.keys import key_of_bytes, key_of_sample
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.inputs.locations import File, TableCell
from theworld.precompute.rollout.kinds import KINDS

IMAGES, VIDEOS = KINDS["rollout"], KINDS["frames"]
CONTENT = {"a.png": b"first", "sub/b.jpg": b"second", "c.png": b"third"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path / "in"


def keys(listing: Listing) -> dict[str, str]:
    for sample in listing.samples:  # whatever holds the bytes, they are found again, in another process too
        at = type(sample.location)(**json.loads(json.dumps(asdict(sample.location))))
        assert key_of_sample(at.read(2**20), sample.prompt) == sample.key
    return {sample.source: sample.key for sample in listing.samples}


def bad(listing: Listing) -> dict[str, str]:
    assert all(failure.source in failure.message for failure in listing.refused)
    return {failure.source: failure.reason for failure in listing.refused}


ALL = {name: key_of_bytes(content) for name, content in CONTENT.items()}


def as_jsonl(folder: Path) -> Path:
    (folder / "list.jsonl").write_text("".join(json.dumps({"image": name, "x": 1}) + "\n" for name in CONTENT))
    return folder / "list.jsonl"


def as_csv(folder: Path) -> Path:
    (folder / "list.csv").write_text("id,path\n" + "".join(f"{i},{name}\n" for i, name in enumerate(CONTENT)))
    return folder / "list.csv"


def as_llava(folder: Path) -> Path:
    rows = [{"id": "1", "image": name, "conversations": [{"from": "human", "value": "?"}]} for name in CONTENT]
    (folder / "list.json").write_text(json.dumps([*rows, {"id": "text only", "conversations": []}], indent=1))
    return folder / "list.json"


def as_parquet(folder: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "file_name": list(CONTENT)}), folder / "list.parquet")
    return folder / "list.parquet"


@pytest.mark.parametrize("written", [as_jsonl, as_csv, as_llava, as_parquet])
def test_a_list_gives_what_the_folder_gives(folder: Path, written: Callable[[Path], Path]) -> None:
    assert keys(list_inputs(folder, IMAGES)) == ALL
    listing = list_inputs(written(folder), IMAGES)
    assert keys(listing) == ALL
    assert (listing.refused, listing.left_out) == ((), {"of text alone": 1} if written is as_llava else {})
    assert len(list_inputs(folder / "list.*", IMAGES, limit=2).samples) == 2


def test_rows_that_are_wrong_are_named_by_file_and_line(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "out.png").symlink_to("/etc/hostname")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "away").symlink_to("/etc")
    rows = [
        '{"image": "a.png"}',  # 1
        "not json",  # 2
        '{"other": 1}',  # 3
        '{"image": ""}',  # 4
        '{"image": "a\\u0000.png"}',  # 5
        '{"image": "absent.png"}',  # 6
        '{"image": 7}',  # 7
        "[1]",  # 8
        '{"image": "pipe.png"}',  # 9
        '{"image": "out.png"}',  # 10
        '{"image": "loop.png"}',  # 11
        '{"image": "away/hostname"}',  # 12
        '{"image": "' + "x" * 5000 + '"}',  # 13
        "[" * 100_000,  # 14
        "",
        json.dumps({"image": str(folder / "c.png")}),  # 16: an absolute path is the user's own choice
        '{"image": "sub/../a.png"}',
        '{"image": "sub"}',  # 18
        '{"image": "\\ud83d.png"}',  # 19: half a character
        '{"image": "\\ud83d/a.png"}',
    ]
    (folder / "m.jsonl").write_bytes("\n".join(rows).encode() + b'\n{"image": "\xff.png"}')
    with ends_within(20):
        listing = list_inputs(folder / "m.jsonl", IMAGES)
    assert set(keys(listing)) == {"a.png", str(folder / "c.png"), "sub/../a.png"}
    wrong = {2: "row", 3: "row", 4: "row", 5: "row", 6: "missing", 7: "row", 8: "row", 9: "not_a_file"}
    more = {10: "not_a_file", 11: "missing", 12: "not_a_file", 13: "row", 14: "row", 18: "not_a_file"}
    more |= dict.fromkeys((19, 20, 21), "row")
    assert bad(listing) == {f"m.jsonl:{line}": reason for line, reason in (wrong | more).items()}
    assert "m.jsonl:1" in listing.readable


def test_bad_rows_of_csv_and_of_llava(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b'image,n\na.png,1\n"two\nlines.png",2\n,3\nsub/b.jpg\n\nabsent.png,9\n')
    listing = list_inputs(folder / "m.csv", IMAGES)
    assert (set(keys(listing)), bad(listing)) == (
        {"a.png", "sub/b.jpg"},
        {"m.csv:3": "missing", "m.csv:5": "row", "m.csv:8": "missing"},
    )
    (folder / "moved.csv").write_text("image,n\na.png,1,\na.png,two, three\n")
    moved = list_inputs(folder / "moved.csv", IMAGES)
    assert (set(keys(moved)), bad(moved)) == ({"a.png"}, {"moved.csv:3": "row"})
    assert "3 values for 2 columns" in moved.refused[0].message
    (folder / "m.json").write_text(json.dumps([{"image": "a.png"}, 5, {"image": [7]}, {"id": 1}]))
    assert bad(list_inputs(folder / "m.json", IMAGES)) == {"m.json:2": "row", "m.json:3": "row", "m.json:4": "row"}
    (folder / "cut.json").write_text('[{"image": "a.png"}, {"image": ')
    with pytest.raises(ConfigError, match=r"cut\.json is not JSON at element 2"):
        list_inputs(folder / "cut.json", IMAGES)
    (folder / "object.json").write_text('{"image": "a.png"}')
    with pytest.raises(ConfigError, match="not a JSON array"):
        list_inputs(folder / "object.json", IMAGES)


def test_a_long_array_is_read_piece_by_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from theworld.pipeline.files.tables import text as lists

    rows = [{"image": "a.png", "conversations": 'é"[]{},' * (number % 9)} for number in range(300)]
    for block in (1, 7, 64, 4096):
        monkeypatch.setattr(lists, "_BLOCK", block)
        (folder / "long.json").write_text(" [ " + " ,\n".join(json.dumps(row) for row in rows) + " ] ")
        assert len(list_inputs(folder / "long.json", IMAGES).samples) == 300


def test_which_column_counts(folder: Path) -> None:
    (folder / "m.jsonl").write_text('{"image": "a.png", "video": "c.png", "mine": "sub/b.jpg"}\n')
    assert set(keys(list_inputs(folder / "m.jsonl", IMAGES))) == {"a.png"}
    assert set(keys(list_inputs(folder / "m.jsonl", VIDEOS))) == {"c.png"}
    assert set(keys(list_inputs(folder / "m.jsonl", IMAGES, column="mine"))) == {"sub/b.jpg"}
    with pytest.raises(ConfigError, match=r"no column theirs in any row; it has image, video, mine"):
        list_inputs(folder / "m.jsonl", IMAGES, column="theirs")
    (folder / "none.csv").write_text("id,url\n1,2\n")
    with pytest.raises(ConfigError, match=r"no column image or video or path.*it has id, url.*--column"):
        list_inputs(folder / "none.csv", IMAGES)
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no columns at all"):
        list_inputs(folder / "empty.jsonl", IMAGES)
    (folder / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for place in (folder, folder / "one.png", folder / "*.png"):
        with pytest.raises(ConfigError, match="no columns, so --prompt-field"):
            list_inputs(place, IMAGES, prompt_field="text")


def test_a_prompt_is_part_of_the_key(folder: Path) -> None:
    rows = [{"image": "a.png", "text": text} for text in ("it falls", "it rises", "", "a\0b", 5, None, "\ud800", "é")]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listing = list_inputs(folder / "m.jsonl", IMAGES, prompt_field="text")
    assert [sample.prompt for sample in listing.samples] == ["it falls", "it rises", "é"]
    keys(listing)
    content = hashlib.sha256(b"first").digest()
    assert listing.samples[2].key == hashlib.sha256(b"theworld prompt 1\0" + content + "é".encode()).hexdigest()[:32]
    assert len({sample.key for sample in listing.samples} | {key_of_bytes(b"first")}) == 4
    assert bad(listing) == {f"m.jsonl:{line}": "row" for line in (3, 4, 5, 6, 7)}
    with pytest.raises(ConfigError, match=r"no column words in any row; it has image, text"):
        list_inputs(folder / "m.jsonl", IMAGES, prompt_field="words")


def test_a_table_that_holds_the_bytes(folder: Path, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [
        {"bytes": b"first", "path": "one.png"},
        {"bytes": b"second", "path": "same.png"},
        {"bytes": b"third", "path": "same.png"},
        {"bytes": b"fourth", "path": None},
        {"bytes": None, "path": "sub/b.jpg"},
        None,
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "empty.png"},
    ]
    table = pa.table({"picture": cells, "text": [f"prompt {number}" for number in range(8)]})
    parquet.write_table(table, folder / "t.parquet", row_group_size=3)
    listing = list_inputs(folder / "t.parquet", IMAGES)
    assert keys(listing) == {
        "one.png": key_of_bytes(b"first"),
        "t.parquet#1": key_of_bytes(b"second"),
        "t.parquet#2": key_of_bytes(b"third"),
        "t.parquet#3": key_of_bytes(b"fourth"),
        "sub/b.jpg": key_of_bytes(b"second"),
    }
    assert bad(listing) == {"t.parquet:5": "row", "t.parquet:6": "row", "t.parquet:7": "empty"}
    prompted = list_inputs(folder / "t.parquet", IMAGES, prompt_field="text")
    assert prompted.samples[1].prompt == "prompt 1"
    keys(prompted)
    parquet.write_table(pa.table({"jpg": [b"first", b"second"]}), tmp_path / "plain.parquet")
    assert set(keys(list_inputs(tmp_path / "plain.parquet", IMAGES))) == {"plain.parquet#0", "plain.parquet#1"}
    (tmp_path / "set" / "data").mkdir(parents=True)
    parquet.write_table(table.slice(0, 2), tmp_path / "set" / "data" / "train-0.parquet")
    (tmp_path / "set" / "data" / "train-1.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "set" / "README.md").touch()
    several = list_inputs(tmp_path / "set", IMAGES)
    assert (set(keys(several)), bad(several), several.left_out) == (
        {"one.png", "same.png"},
        {"data/train-1.parquet": "table"},
        {".md": 1},
    )
    with pytest.raises(ConfigError, match=r"no column other in any row; it has picture, text"):
        list_inputs(folder / "t.parquet", IMAGES, column="other")


def test_paths_in_a_table_that_are_none_cost_their_own_row(folder: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    long = "p" * 100_000
    cells = [
        {"bytes": None, "path": "a\0.png"},
        {"bytes": None, "path": long},
        {"bytes": b"first", "path": long},
        {"bytes": b"second", "path": "b\0.png"},
    ]
    parquet.write_table(pa.table({"image": cells}), folder / "t.parquet")
    listing = list_inputs(folder / "t.parquet", IMAGES)
    assert keys(listing) == {"t.parquet#2": key_of_bytes(b"first"), "b.png": key_of_bytes(b"second")}
    assert bad(listing) == {"t.parquet:0": "row", "t.parquet:1": "row"}


def test_text_in_a_table_that_is_no_unicode_is_damage_of_the_table(folder: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = pa.array([b"a.png", b"\xff.png"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    parquet.write_table(pa.table({"image": broken}), folder / "t.parquet")
    assert bad(list_inputs(folder / "t.parquet", IMAGES)) == {"t.parquet": "table"}


@pytest.mark.slow
def test_a_row_group_of_more_than_two_gib_is_read_too(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 36, pa.int8()), pa.array([bytes(60 * 2**20)]))
    parquet.write_table(pa.table({"image": same}), tmp_path / "t.parquet", store_schema=False)
    assert len(TableCell(str(tmp_path / "t.parquet"), 35, "image").read(2**26)) == 60 * 2**20


@pytest.mark.parametrize("holds", ["bytes", "names"])
def test_a_flipped_bit_in_an_arrow_file_costs_the_file_and_not_the_process(tmp_path: Path, holds: str) -> None:
    pa = pytest.importorskip("pyarrow")
    cells = [bytes([65 + number]) * 50 for number in range(20)]
    table = pa.table({"image": pa.array(cells, pa.binary() if holds == "bytes" else pa.string())})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "t.arrow").read_bytes()
    ends = struct.pack("<4i", 0, 50, 100, 150)
    assert content.count(ends) == 1
    (tmp_path / "t.arrow").write_bytes(content.replace(ends, struct.pack("<4i", 0, 50, 100 + 2**30, 150)))

    def look() -> None:
        assert bad(list_inputs(tmp_path / "t.arrow", IMAGES)) == {"t.arrow": "table"}

    in_child(look)  # it may end the process


def test_an_arrow_file_may_be_named_in_capitals(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"image": [{"bytes": b"first", "path": "one.png"}]})
    with pa.OSFile(str(folder / "T.ARROW"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert keys(list_inputs(folder / "T.ARROW", IMAGES)) == {"one.png": key_of_bytes(b"first")}


def test_a_folder_that_save_to_disk_made(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": list(range(5))}, features=features)
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([4, 2])}).save_to_disk(tmp_path / "two")
    one = list_inputs(tmp_path / "one", IMAGES)
    assert len(set(keys(one).values())) == len(one.samples) == 5
    two = list_inputs(tmp_path / "two", IMAGES)
    assert [sample.key for sample in two.samples[5:]] == [one.samples[4].key, one.samples[2].key]
    keys(two)
    rows.to_parquet(tmp_path / "three.parquet")
    assert [s.key for s in list_inputs(tmp_path / "three.parquet", IMAGES).samples] == [s.key for s in one.samples]
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="is incomplete"):
        list_inputs(tmp_path / "one", IMAGES)
    (tmp_path / "two" / "dataset_dict.json").write_text("[" * 10**5)
    with pytest.raises(ConfigError, match="is incomplete"):
        list_inputs(tmp_path / "two", IMAGES)


def test_a_hub_data_set_is_read_where_datasets_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"first", "path": "a.png"}], "text": ["it falls"]})
    rows.save_to_disk(tmp_path / "hub")
    fetched = datasets.load_from_disk(str(tmp_path / "hub"))
    asked = []
    load = {"train": fetched, None: datasets.DatasetDict({"train": fetched})}
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, split: (asked.append((repo, split)), load[split])[1])
    for place in ("hf:org/name", "hf:org/name:train"):
        listing = list_inputs(Path(place), IMAGES)
        assert keys(listing) == {"a.png": key_of_bytes(b"first")}
    assert asked == [("org/name", None), ("org/name", "train")]


def test_a_hub_data_set_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match=r"org/name, split train, cannot be fetched.*no network.*save_to_disk"):
        list_inputs(Path("hf:org/name:train"), IMAGES)
    with pytest.raises(ConfigError, match=r"write hf:ORG/NAME"):
        list_inputs(Path("hf:a/b/c"), IMAGES)
    with pytest.raises(ConfigError, match=r"Hub write hf:org/name"):
        list_inputs(Path("org/name"), IMAGES)


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_by_folder_glob_and_braces(tmp_path: Path) -> None:
    long = "d" * 150 + "/" + "é" * 60 + ".png"
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)):
        names = [f"{number}.png", f"{number}.txt", f"{number}.mp4", *([long] if number < 2 else []), "._x.png"]
        write_tar(tmp_path / f"x-{number:03}.tar", {name: f"{number} {name}".encode() for name in names}, form)
    wanted = {f"x-{n:03}.tar:{name}" for n in range(3) for name in (f"{n}.png", *([long] if n < 2 else []))}
    for place in (tmp_path, tmp_path / "x-*.tar", tmp_path / "x-{000..002}.tar"):
        listing = list_inputs(place, IMAGES)
        assert set(keys(listing)) == wanted
        assert (listing.others, listing.left_out) == ({"video": 3}, {".txt": 3, "hidden": 3})
    assert len(list_inputs(tmp_path / "x-{000,002}.tar", IMAGES).samples) == 3
    assert list_inputs(tmp_path, VIDEOS).samples[0].source == "x-000.tar:0.mp4"
    with pytest.raises(ConfigError, match=r"names 4 files, and there is no .*x-003\.tar"):
        list_inputs(tmp_path / "x-{000..003}.tar", IMAGES)
    with pytest.raises(ConfigError, match="no folder or image at pipe:"):
        list_inputs(Path("pipe:cat x.tar"), IMAGES)


def test_a_tar_is_never_extracted_followed_or_trusted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info)
        for name in ("../../evil.png", "/abs.png"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
    listing = list_inputs(tmp_path / "t.tar", IMAGES)
    assert set(keys(listing)) == {"t.tar:../../evil.png", "t.tar:/abs.png"}
    assert bad(listing) == {f"t.tar:{name}.png": "not_a_file" for name in "lhd"}
    assert list(tmp_path.iterdir()) == [tmp_path / "t.tar"]


def test_damage_in_a_tar_costs_what_follows_it(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{n}.png": bytes([n]) * 600 for n in range(4)}).read_bytes()
    member = 3 * 512
    sizes = {"negative": b"\x80" + b"\xff" * 11, "huge": b"\x80" + b"\0" * 3 + b"\x7f" * 8}
    negative = tarfile.TarInfo("0.png").tobuf(tarfile.GNU_FORMAT)
    for name, content, read, reason in (
        ("cut in a member", whole[: member + 512 + 100], 1, "truncated"),
        ("cut in a header", whole[: member + 100], 1, "tar"),
        ("flipped", whole[: member + 5] + b"!" + whole[member + 6 :], 1, "tar"),
        ("no header", b"!" + whole, 0, "tar"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        listing = list_inputs(tmp_path / "a.tar", IMAGES)
        assert (len(keys(listing)), bad(listing)) == (read, {"a.tar": reason}), name
        assert "a.tar" not in listing.readable
    for name, size in sizes.items():
        header = bytearray(negative)
        header[124:136], header[148:156] = size, b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "a.tar").write_bytes(bytes(header) + whole)
        with ends_within(20):
            assert len(bad(list_inputs(tmp_path / "a.tar", IMAGES))) == 1, name
    (tmp_path / "a.tar").write_bytes(whole)
    assert "a.tar" in list_inputs(tmp_path / "a.tar", IMAGES).readable


def test_links_pipes_and_loops_hold_nobody_up(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "up2").symlink_to("..")
    (folder / "self.png").symlink_to("self.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "fine.png").symlink_to("a.png")
    os.mkfifo(folder / "pipe.png")
    with ends_within(20):
        for place in (folder, folder / "**" / "*", folder / "**" / "*.*"):
            listing = list_inputs(place, IMAGES)
            assert keys(listing) == {**ALL, "fine.png": ALL["a.png"]}
            assert bad(listing) == {"self.png": "missing", "zero.png": "not_a_file", "pipe.png": "not_a_file"}
            assert listing.left_out["in a loop of links"] == 2
        with pytest.raises(ConfigError, match=r"matches no file here .*, but 2 in a loop of links"):
            list_inputs(folder / "*" / "*" / "*.png", IMAGES)


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.jsonl"])
def test_a_pipe_with_the_name_of_a_list_a_table_or_a_tar_holds_nobody_up(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with ends_within(20):  # opening it waits
        assert bad(list_inputs(tmp_path / "*", IMAGES)) == {name: "not_a_file"}


def test_a_folder_that_cannot_be_entered_is_named_and_forgotten_once_it_can() -> None:
    with open_folder() as place:
        (place / "closed").mkdir()
        for name in ("a.png", "closed/b.png"):
            (place / name).write_bytes(name.encode())
        (place / "closed").chmod(0)

        def look() -> None:
            listing = list_inputs(place, IMAGES)
            assert (set(keys(listing)), bad(listing)) == ({"a.png"}, {"closed/": "missing"})
            for hidden in (place / "closed", place / "closed" / "b.png"):
                with pytest.raises(ConfigError, match=r"cannot be read: Permission denied"):
                    list_inputs(hidden, IMAGES)

        as_another_user(look)
        (place / "closed").chmod(0o755)
        opened = list_inputs(place, IMAGES)
        assert (len(opened.samples), opened.refused) == (2, ())
        assert "closed/" in opened.readable


def test_a_place_of_any_length_is_one_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder or image at xxx"):
        list_inputs(Path("x" * 5000), IMAGES)
    names = ",".join(["a"] * 200)
    assert len(list_inputs(folder / f"{{{names}}}.png", IMAGES).samples) == 200


def test_a_list_among_images_is_not_taken_for_one(folder: Path) -> None:
    as_jsonl(folder)
    assert list_inputs(folder, IMAGES).left_out == {".jsonl": 1}
    with pytest.raises(ConfigError, match=r"1 lists, tables or tars and 2 other files"):
        list_inputs(folder / "*.*", IMAGES)
    for name in CONTENT:
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"holds no image.*name the list: .*list\.jsonl"):
        list_inputs(folder, IMAGES)


def read_count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = File.read
    monkeypatch.setattr(File, "read", lambda self, most: (read.append(self.path), original(self, most))[1])
    return read


def test_a_second_listing_reads_only_what_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_index, "_RACY_NS", -(10**9))  # files of this very second count as old
    read = read_count(monkeypatch)

    def listed(**options: object) -> dict[str, str]:
        index = HashCache.load(tmp_path / "cache", folder, "image", **options)  # type: ignore[arg-type]
        read.clear()
        found = keys_only(list_inputs(folder, IMAGES, index=index))
        index.save()
        return found

    assert (listed(), len(read)) == (ALL, 3)
    assert (listed(), len(read)) == (ALL, 0)
    [file] = (tmp_path / "cache" / "index").iterdir()
    before = file.stat()
    assert (listed(), file.stat().st_mtime_ns) == (ALL, before.st_mtime_ns)
    status = (folder / "a.png").stat()
    (folder / "a.png").write_bytes(b"FIRST")
    os.utime(folder / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    assert listed() == {**ALL, "a.png": key_of_bytes(b"FIRST")}
    assert len(read) == 1
    listed(trust=False)
    assert len(read) == 3
    content = file.read_bytes()
    for harm in (content[:-1] + bytes([content[-1] ^ 1]), content[:100], b"", b"{}"):
        file.write_bytes(harm)
        assert (listed()["c.png"], len(read)) == (ALL["c.png"], 3)


def keys_only(listing: Listing) -> dict[str, str]:
    return {sample.source: sample.key for sample in listing.samples}


def test_a_file_written_a_moment_ago_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_count(monkeypatch)
    for _ in range(2):
        index = HashCache.load(tmp_path / "cache", folder, "image")
        list_inputs(folder, IMAGES, index=index)
        index.save()
    assert len(read) == 6


def test_an_index_knows_members_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from theworld.precompute.inputs.locations import TarMember

    monkeypatch.setattr(input_index, "_RACY_NS", -(10**9))
    tar = write_tar(tmp_path / "a.tar", {"0.png": b"first", "1.png": b"second"})
    index = HashCache.load(tmp_path / "cache", tar, "image")
    first = list_inputs(tar, IMAGES, index=index)
    index.save()
    monkeypatch.setattr(TarMember, "read", lambda *_: pytest.fail("read again"))
    assert list_inputs(tar, IMAGES, index=HashCache.load(tmp_path / "cache", tar, "image")) == first


def test_a_locator_refuses_what_is_no_longer_there(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"0.png": b"first"})
    [sample] = list_inputs(tar, IMAGES).samples
    with pytest.raises(ImageError) as caught:
        sample.location.read(4)
    assert caught.value.reason == "too_large"
    tar.write_bytes(tar.read_bytes()[:514])
    for content, reason in ((b"x", "truncated"), (None, "missing")):
        tar.unlink() if content is None else tar.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            sample.location.read(100)
        assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["stamps", "digests"])
def test_a_hash_cache_with_a_single_number_for_a_table_is_empty(tmp_path: Path, name: str) -> None:
    tensors = {"stamps": np.zeros((1, 16), np.uint8), "digests": np.zeros((1, 32), np.uint8)}
    tensors[name] = np.array(1, np.uint8)
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors.numpy.save({**tensors, "seal": seal_tensors(tensors, input_index._WHAT)}))
    assert input_index._load(file) is None

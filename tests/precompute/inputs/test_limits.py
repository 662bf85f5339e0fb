"""Hostile lists, tars and folders end in words, within a minute of computing and with little memory; good rows stay."""

import gc
import hashlib
import io
import json
import os
import resource
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.files import limits
from theworld.pipeline.files.file_facts import FileFacts
from theworld.pipeline.files.hash_cache import HashCache
from theworld.pipeline.files.tables import text as text_tables
from theworld.precompute.inputs.listing import folders
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.inputs.tars import members as tars
from theworld.precompute.inputs.tars.members import members

from ...faults.harness import in_child

MEMORY = 2**31
SECONDS = 60


def within_limits(action: Callable[[], object]) -> None:
    """Run an action in a process with 2 GiB of memory to spare, within a minute of computing."""

    def confined() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))
        action()

    in_child(confined)


def sparse(file: Path, start: bytes = b"") -> Path:
    file.write_bytes(start)
    os.truncate(file, 40 * 2**30)
    return file


def bad(listing: Listing) -> dict[str, str]:
    return {failure.source: failure.message for failure in listing.refused}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"first")
    return tmp_path


def test_a_line_without_end_ends_the_list_and_not_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "MAX_SKIPPED_BYTES", 2**27)  # the true limit takes seconds

    def action() -> None:
        listing = list_inputs(sparse(folder / "l.jsonl", b'{"image": "a.png"}\n'), "rollout")
        assert [sample.source for sample in listing.samples] == ["a.png"]
        assert "longer than 1,073,741,824 bytes, so the file is no list of lines" in bad(listing)["l.jsonl:2"]
        listing = list_inputs(sparse(folder / "l.csv", b"image\na.png\n"), "rollout")
        assert [sample.source for sample in listing.samples] == ["a.png"]
        assert "longer than 1,073,741,824 bytes" in bad(listing)["l.csv:3"]
        with pytest.raises(ConfigError, match=r"l\.json is not JSON at element 2, or it is longer than 16,777,216"):
            list_inputs(sparse(folder / "l.json", b'[{"image": "a.png"},'), "rollout")

    within_limits(action)


def test_blanks_without_end_are_no_list(folder: Path) -> None:
    (folder / "l.json").write_text("[" + " " * (limits.MAX_ROW_BYTES + 2**20))
    with pytest.raises(ConfigError, match="16,777,216 blanks after element 0"):
        list_inputs(folder / "l.json", "rollout")


def test_a_row_of_many_values_on_many_lines_is_bounded(folder: Path) -> None:
    with (folder / "l.csv").open("w") as lines:
        lines.write("image\na.png\n")
        lines.writelines('"' + "x" * 100_000 + '\n",' for _ in range(limits.MAX_CSV_ROW_CHARACTERS // 100_000 + 10))
        lines.write('"\na.png\n')

    def action() -> None:
        listing = list_inputs(folder / "l.csv", "rollout")
        assert [sample.source for sample in listing.samples] == ["a.png", "a.png"]
        assert "longer than 33,554,432 characters (is a quotation mark not closed?)" in str(bad(listing))

    within_limits(action)
    (folder / "wide.csv").write_text("image" + ",x" * limits.MAX_COLUMNS + "\n")
    with pytest.raises(ConfigError, match=r"wide\.csv:1 names 16,385 columns; the limit is 16,384"):
        list_inputs(folder / "wide.csv", "rollout")


def test_a_long_line_is_one_wrong_row_and_later_rows_keep_their_numbers(folder: Path) -> None:
    long = "x" * (limits.MAX_CSV_ROW_CHARACTERS + 10)
    (folder / "l.csv").write_text(f"image\n{long}\nabsent.png\na.png\n")
    listing = list_inputs(folder / "l.csv", "rollout")
    assert "longer than 33,554,432 characters" in bad(listing)["l.csv:2"]
    assert set(bad(listing)) == {"l.csv:2", "l.csv:3"}
    assert len(listing.samples) == 1


def test_nested_lists_are_wrong_rows_in_little_memory(folder: Path) -> None:
    deep = "[" * 200_000 + "]" * 200_000
    wide = "[" + "[]," * 300_000 + "[]]"
    with (folder / "l.jsonl").open("w") as lines:
        lines.write(f'{{"image": {deep}}}\n')
        lines.writelines(f'{{"image": {wide}}}\n' for _ in range(6))
        lines.write('{"image": "a.png"}\n')

    def action() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        listing = list_inputs(folder / "l.jsonl", "rollout")
        assert len(listing.samples) == 1
        assert len(listing.refused) == 7
        assert "nested too deeply" in bad(listing)["l.jsonl:1"]
        assert "image must be a text, got [[]," in bad(listing)["l.jsonl:2"]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 0.9e6

    within_limits(action)
    (folder / "l.json").write_text(f'[{{"image": {deep}}}]')
    with pytest.raises(ConfigError, match=r"l\.json is not JSON at element 1: it is nested too deeply"):
        list_inputs(folder / "l.json", "rollout")


def test_wrong_rows_beyond_the_first_are_counted_and_good_ones_between_are_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_BAD_ROWS", 3)
    (folder / "l.jsonl").write_text('5\n{"image": 7}\n' * 4 + '{"image": "a.png"}\n')
    listing = list_inputs(folder / "l.jsonl", "rollout")
    assert len(listing.samples) == 1
    assert len(listing.refused) == 4
    assert "5 more inputs are wrong; only the first 3 are named" in bad(listing)["l.jsonl"]


def peak_of(action: Callable[[], object]) -> tuple[int, Any]:
    """Bytes that an action holds at most, and what it returns. Counting them takes four times as long."""
    gc.collect()
    tracemalloc.start()
    try:
        result = action()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", ["l.jsonl", "l.csv", "l.json", "l.parquet"])
def test_a_row_takes_little_memory(folder: Path, layout: str) -> None:
    names = ["./" * (number % 7) + ".//" * (number // 7 % 7) + "a.png" for number in range(10_000)]
    if layout == "l.parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"image": names}), folder / layout, row_group_size=2000)
    elif layout == "l.csv":
        (folder / layout).write_text("image\n" + "\n".join(names))
    else:
        rows = [json.dumps({"image": name}) for name in names]
        (folder / layout).write_text("\n".join(rows) if layout == "l.jsonl" else f"[{', '.join(rows)}]")
    (folder / "b.jsonl").write_text('{"image": "a.png"}')
    list_inputs(folder / "b.jsonl", "rollout")  # what is loaded once
    bytes_of, listing = peak_of(lambda: list_inputs(folder / layout, "rollout"))
    assert [sample.source for sample in listing.samples] == names
    fixed = 14 * 2**20 if layout == "l.parquet" else 4 * 2**20  # a batch, a block
    assert bytes_of < fixed + 150 * len(names)


def test_wrong_rows_beyond_the_first_take_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BAD_ROWS", 100)
    for layout, row in (("l.jsonl", "{}"), ("m.jsonl", '""'), ("l.csv", "x"), ("absent.jsonl", '{"image": "no.png"}')):
        first, last = ("n,image", "2,a.png") if layout == "l.csv" else ("", '{"image": "a.png"}')
        (folder / layout).write_text(f"{first}\n" + f"{row}\n" * 10_000 + last)
        peak, listing = peak_of(lambda layout=layout: list_inputs(folder / layout, "rollout"))
        assert [sample.source for sample in listing.samples] == ["a.png"], layout
        assert len(listing.refused) == 101
        assert "9,900 more inputs are wrong" in bad(listing)[layout]
        assert layout not in listing.readable
        assert peak < 4 * 2**20 + 10_000 * 120, layout


def test_a_column_that_comes_first_may_stand_in_a_late_row(folder: Path) -> None:
    rows = ["5", "{}", '{"file": "no.png"}', '{"path": "no.png"}', '{"image": "a.png", "path": "no.png"}', '{"n": 1}']
    (folder / "l.jsonl").write_text("\n".join(rows))
    listing = list_inputs(folder / "l.jsonl", "rollout")
    assert [sample.source for sample in listing.samples] == ["a.png"]
    assert sorted(bad(listing)) == [f"l.jsonl:{line}" for line in (1, 2, 3, 4, 6)]
    assert "l.jsonl:5" in listing.readable
    assert "a.png" in listing.readable
    assert "l.jsonl:4" not in listing.readable


def test_a_place_has_so_many_inputs_and_so_much_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("l.jsonl", "m.jsonl"):
        (folder / name).write_text('{"image": "a.png", "text": "it falls"}\n' * 3)
    assert len(list_inputs(folder / "*.jsonl", "rollout", prompt_field="text").samples) == 6
    monkeypatch.setattr(limits, "MAX_ROWS", 5)
    with pytest.raises(ConfigError, match=r"\*\.jsonl holds or names more than 5 inputs.*a part of them at a time"):
        list_inputs(folder / "*.jsonl", "rollout")
    assert len(list_inputs(folder / "l.jsonl", "rollout").samples) == 3
    monkeypatch.setattr(limits, "MAX_TEXTS_BYTES", 9)
    with pytest.raises(ConfigError, match=r"l\.jsonl have more than 9 bytes"):
        list_inputs(folder / "l.jsonl", "rollout")


def test_the_digests_of_many_inputs_are_found_again_also_by_the_next_run(tmp_path: Path) -> None:
    facts, count = FileFacts(1, 2, 3, 4, 5), 10_000
    digests = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]

    def found(index: HashCache) -> list[bytes | None]:
        return [index.find(f"{number}.png", facts) for number in range(count)]

    index = HashCache.load(tmp_path, tmp_path, "image")
    for number, digest in enumerate(digests):
        assert index.find(f"{number}.png", facts) is None
        index.put(f"{number}.png", facts, digest)
    assert found(index) == digests
    index.save()
    later = HashCache.load(tmp_path, tmp_path, "image")
    assert found(later) == digests
    assert later.find("other.png", facts) is None
    few = HashCache.load(tmp_path, tmp_path, "image")
    assert few.find("7.png", facts) == digests[7]
    few.save(keep_others=True)
    assert found(HashCache.load(tmp_path, tmp_path, "image")) == digests
    few.save()
    assert [digest for digest in found(HashCache.load(tmp_path, tmp_path, "image")) if digest] == [digests[7]]


def tar_of(*headers: tuple[bytes, str, bytes]) -> bytes:
    """A tar of members: type, name, content."""
    out = io.BytesIO()
    for kind, name, content in headers:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(content)
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.write(content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(1024)


def test_chains_of_extended_headers_end(folder: Path) -> None:
    good = (tarfile.REGTYPE, "a.png", b"first")
    for kind, content in (
        (tarfile.XHDTYPE, b"10 path=a\n"),
        (tarfile.GNUTYPE_LONGNAME, b"a\0"),
        (tarfile.XGLTYPE, b""),
    ):
        chain = [(kind, "x", content)] * (limits.MAX_TAR_HEADERS + 1)
        (folder / "x.tar").write_bytes(tar_of(good, *chain, good))
        listing = list_inputs(folder / "x.tar", "rollout")
        assert len(listing.samples) == 1
        assert "more than 16 extended headers in a row" in bad(listing)["x.tar"]
        (folder / "x.tar").write_bytes(tar_of(good, *chain[:3], good))
        assert len(list_inputs(folder / "x.tar", "rollout").samples) >= 1
    with (folder / "big.tar").open("wb") as file:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 2**31
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32)
    with pytest.raises(ImageError, match=r"a header of 2,147,483,648 bytes; the limit is 1,048,576"):
        list(members(str(folder / "big.tar")))


def test_a_header_of_many_records_takes_time_in_proportion(folder: Path) -> None:
    records = b"6 a=b\n" * (limits.MAX_TAR_HEADER_BYTES // 6)
    (folder / "x.tar").write_bytes(tar_of((tarfile.XHDTYPE, "x", records), (tarfile.REGTYPE, "a.png", b"first")))
    start = time.process_time()
    assert [member.name for member in members(str(folder / "x.tar"))] == ["a.png"]
    assert time.process_time() - start < 3
    assert tars._extended(b"14 path=a.png\n7 b=cc\n") == {"path": "a.png", "b": "cc"}


def test_empty_members_beyond_the_first_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BAD_ROWS", 5)
    empty = [(tarfile.REGTYPE, f"{number}.png", b"") for number in range(20)]
    (folder / "x.tar").write_bytes(tar_of(*empty, (tarfile.REGTYPE, "a.png", b"first")))
    listing = list_inputs(folder / "x.tar", "rollout")
    assert [sample.source for sample in listing.samples] == ["x.tar:a.png"]
    assert len(listing.refused) == 6
    assert "15 more inputs are wrong" in bad(listing)["x.tar"]


def test_a_place_of_too_many_files_is_refused_in_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_ROWS", 3)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(b"x")
    for place in (folder, folder / "*.png", folder / "**" / "*.png"):
        with pytest.raises(ConfigError, match=r"holds more than 16,777,216 files\. Name a folder inside it"):
            list_inputs(place, "rollout")


def test_a_deep_folder_and_a_pattern_of_many_stars_take_no_time(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a"] * 400)
    deep.mkdir(parents=True)
    (deep / "c.png").touch()
    start = time.process_time()
    assert folders.match_files(str(tmp_path / "**/a/**/a/**/a/**/a/**/b"))[0] == []
    assert folders.match_files(str(tmp_path / "**/a/**/a/**/*.png"))[0] == [str(deep / "c.png")]
    assert time.process_time() - start < 2


def test_cells_that_unpack_to_too_much_end_their_table_alone(folder: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = pa.array([{"bytes": bytes(2**23), "path": f"{number}.png"} for number in range(140)])
    parquet.write_table(pa.table({"image": cells}), folder / "b.parquet", compression="zstd", row_group_size=10)
    del cells
    listing = list_inputs(folder / "b.parquet", "rollout")  # statistics say that all bytes are there
    assert 100 < len(listing.samples) < 140
    [failure] = listing.refused
    assert "unpacks to more than" in failure.message
    assert "The rows after that are not used" in failure.message
    assert failure.source == "b.parquet"


def test_a_table_that_takes_more_memory_than_its_process_may_have_is_one_failure(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    size = 2**20 + 8
    for name in ("a.arrow", "b.arrow", "c.arrow"):
        cell = b"first" if name != "b.arrow" else bytes(size)
        table = pa.table({"image": pa.array([cell], pa.binary())})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(str(folder / name), table.schema, options=options) as writer:
            writer.write_table(table)
    content = (folder / "b.arrow").read_bytes()
    stated = size.to_bytes(8, "little")  # in front of what is compressed; pyarrow takes it at its word
    assert stated in content
    (folder / "b.arrow").write_bytes(content.replace(stated, (3 * 2**30).to_bytes(8, "little")))
    listing = list_inputs(folder / "*.arrow", "rollout")
    assert [sample.source for sample in listing.samples] == ["a.arrow#0", "c.arrow#0"]
    assert set(bad(listing)) == {"b.arrow"}
    assert "takes more than 2,147,483,648 bytes of memory to read. Write smaller row groups" in bad(listing)["b.arrow"]

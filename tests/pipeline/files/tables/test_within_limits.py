"""Parquet and Arrow files that unpack to more than memory holds are refused in words, each in its own process."""

import os
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.files import limits
from theworld.pipeline.files.tables import guarded as guarded_tables
from theworld.pipeline.files.tables.batches import Budget, Unpacked
from theworld.pipeline.files.tables.guarded import TableError, read_cell, read_records, read_rows, read_schema

from ....patience import ends_within

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
MIB = 2**20


def bomb(file: Path, value: bytes | str, rows: int, column: str = "image") -> None:
    """A Parquet file that holds one value once and names it in every row."""
    import numpy as np

    cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))
    schema = pa.schema([(column, cells.type)])
    options = {"compression": "zstd", "store_schema": False, "write_statistics": False}
    with parquet.ParquetWriter(file, schema, dictionary_pagesize_limit=2**30, **options) as writer:
        writer.write_table(pa.table({column: cells}, schema=schema))
    assert file.stat().st_size < 4096


def peak_of_children() -> float:
    """GB of memory that the largest process of tables now running has used at most."""
    processes = [*guarded_tables._idle, *guarded_tables._of_cells]
    status = [Path(f"/proc/{process._process.pid}/status").read_text() for process in processes]
    return max(int(text.split("VmHWM:")[1].split()[0]) / 1e6 for text in status)


def test_a_value_that_stands_in_many_rows_is_counted_as_often(tmp_path: Path) -> None:
    bomb(tmp_path / "b.parquet", bytes(16 * MIB), 4096)
    refused = pytest.raises(TableError, match=r"unpacks to more than [\d,]+ bytes from [\d,]+ on disk.*split the file")
    with ends_within(60), refused:
        list(read_rows(tmp_path / "b.parquet", "image", None))
    assert peak_of_children() < 1.5
    bomb(tmp_path / "t.parquet", "a" * (32 * MIB), 512, "question")
    *rows, last = iterate(tmp_path / "t.parquet", ["question"])
    assert rows
    assert all("longer than 16,777,216 bytes" in str(row) for row in rows)
    assert "unpacks to more than" in str(last)
    assert peak_of_children() < 1.5


def iterate(file: Path, columns: list[str]) -> list[object]:
    """The records of a table, and the error that ended it."""
    records: list[object] = []
    try:
        for record in read_records(file, columns):
            records.append(record)
    except TableError as error:
        records.append(error)
    return records


def test_cells_of_a_bomb_come_one_by_one(tmp_path: Path) -> None:
    bomb(tmp_path / "b.parquet", bytes(16 * MIB), 4096)
    path = str(tmp_path / "b.parquet")
    for row in (0, 1, 2, 40, 3):
        content, size = read_cell(path, (1,), row, "image", 64 * MIB)
        assert content == bytes(16 * MIB)
        assert size == 16 * MIB
    assert read_cell(path, (1,), 5, "image", MIB) == (None, 16 * MIB)
    with pytest.raises(TableError, match="it has 4,096 rows"):
        read_cell(path, (1,), 4096, "image", MIB)
    assert peak_of_children() < 1.5


def test_a_compressed_arrow_file_is_a_bomb_too(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([bytes(64 * MIB)] * 8), "other": pa.array([bytes(64 * MIB)] * 8)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for opener, name in ((pa.ipc.new_stream, "s.arrow"), (pa.ipc.new_file, "f.arrow")):
        with opener(str(tmp_path / name), table.schema, options=options) as writer:
            for _ in range(3):
                writer.write_table(table)
        with pytest.raises(TableError, match="unpacks to more than"):
            list(read_rows(tmp_path / name, "image", None))
        assert peak_of_children() < 2.2, "the other column is not unpacked"


def test_after_a_bomb_the_next_table_is_read(tmp_path: Path) -> None:
    bomb(tmp_path / "b.parquet", bytes(16 * MIB), 4096)
    parquet.write_table(pa.table({"image": ["a.png", None], "n": [1, 2]}), tmp_path / "good.parquet")
    with pytest.raises(TableError):
        list(read_rows(tmp_path / "b.parquet", "image", None))
    assert list(read_rows(tmp_path / "good.parquet", "image", None)) == [("a.png", None), (None, None)]
    [(_, number), _] = read_rows(tmp_path / "good.parquet", "image", "n")
    assert "must be a text, got 1" in number.text
    assert list(read_records(tmp_path / "good.parquet", ["image", "n"]))[1] == {"image": None, "n": 2}


def test_a_process_that_dies_is_one_error_and_is_replaced(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": ["a.png"] * 100_000}), tmp_path / "good.parquet")
    rows = read_rows(tmp_path / "good.parquet", "image", None)
    next(rows)
    children = {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    idle = {process._process.pid for process in (*guarded_tables._idle, *guarded_tables._of_cells)}
    reading = [pid for pid in children - idle if "tables.process" in Path(f"/proc/{pid}/cmdline").read_bytes().decode()]
    for pid in reading:
        os.kill(pid, 11)
    with pytest.raises(TableError, match="ended the process that read it"):
        for _ in rows:
            pass
    assert len(list(read_rows(tmp_path / "good.parquet", "image", None))) == 100_000


def test_schemas_have_limits(tmp_path: Path) -> None:
    wide = pa.table({f"c{number}": [1] for number in range(limits.MAX_COLUMNS + 1)})
    with pa.ipc.new_stream(str(tmp_path / "wide.arrow"), wide.schema) as writer:
        writer.write_table(wide)
    with pytest.raises(TableError, match=r"it has 16,385 columns; the limit is 16,384"):
        read_schema(tmp_path / "wide.arrow")
    named = pa.schema([("n" * 2 * MIB, pa.string())])
    parquet.write_table(named.empty_table(), tmp_path / "named.parquet")
    with pytest.raises(TableError, match="names of its columns are longer"):
        read_schema(tmp_path / "named.parquet")
    nested = b'{"info": {"features": ' + b"[" * 200_000
    schema = pa.schema([("image", pa.string())], metadata={"huggingface": nested})
    parquet.write_table(schema.empty_table(), tmp_path / "metadata.parquet")
    found = read_schema(tmp_path / "metadata.parquet")
    assert (list(found.columns), found.labels) == (["image"], {})
    with parquet.ParquetWriter(tmp_path / "heavy.parquet", pa.schema([("image", pa.string())])) as writer:
        writer.add_key_value_metadata({"k": "v" * (limits.MAX_TABLE_SCHEMA_BYTES + 1)})
    with pytest.raises(TableError, match=r"its footer has [\d,]+ bytes; the limit is 67,108,864"):
        read_schema(tmp_path / "heavy.parquet")
    deep = pa.string()
    for _ in range(40):
        deep = pa.list_(deep)
    parquet.write_table(pa.schema([("image", pa.string()), ("deep", deep)]).empty_table(), tmp_path / "deep.parquet")
    assert list(read_schema(tmp_path / "deep.parquet").columns) == ["image", "deep"]
    (tmp_path / "sparse.arrow").touch()
    os.truncate(tmp_path / "sparse.arrow", 40 * 2**30)
    (tmp_path / "sparse.parquet").touch()
    os.truncate(tmp_path / "sparse.parquet", 40 * 2**30)
    for name in ("sparse.arrow", "sparse.parquet"):
        with pytest.raises(TableError):
            read_schema(tmp_path / name)


def test_a_sparse_file_counts_by_what_is_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_bytes(b"x" * 4096)
    os.truncate(file, 40 * 2**30)
    with pytest.raises(Unpacked, match="more than"):
        Budget(str(file)).spend(2**31)
    Budget(str(file)).spend(2**30)


def test_names_of_ours_in_a_strangers_struct_are_names(tmp_path: Path) -> None:
    struct = pa.array([{"\0bytes": "x"}], pa.struct([("\0bytes", pa.string())]))
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), pa.schema([("image", struct.type)])) as writer:
        writer.write_table(pa.table({"image": struct}))
    assert list(read_records(tmp_path / "x.arrow", ["image"])) == [{"image": {"\0\0bytes": "x"}}]

"""What columns of tables hold: texts and bytes in every type that Arrow has for them, alone and in lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files import limits
from theworld.pipeline.files.tables import columns as table_columns
from theworld.pipeline.files.tables import guarded as guarded_tables
from theworld.pipeline.files.tables.guarded import read_rows, read_schema
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda inner: pa.list_(inner, 2)]


def write(file: Path, cells: Any, name: str = "images") -> Path:
    table = pa.table({"n": list(range(len(cells))), name: cells})
    rows = None if "view" in str(cells.type) else 2  # Parquet's writer cannot cut views, Arrow's writes each part whole
    if file.suffix == ".parquet":
        parquet.write_table(table, file, row_group_size=rows)
    else:
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return file


def contents(listing: Listing) -> dict[str, bytes]:
    """Name -> the bytes that are found again at its place."""
    found = {sample.source: sample.location.read(2**20) for sample in listing.samples}
    assert [key_of_bytes(content) for content in found.values()] == [sample.key for sample in listing.samples]
    return found


def both(tmp_path: Path, cells: Any) -> list[Path]:
    return [write(tmp_path / "t.parquet", cells), write(tmp_path / "t.arrow", cells)]


@pytest.mark.parametrize("list_of", LISTS)
def test_each_image_of_a_sequence_is_an_input(tmp_path: Path, list_of: Any) -> None:
    rows: list[Any] = [
        [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}],
        None,
        [{"bytes": b"three", "path": None}, None],
        [{"bytes": b"four", "path": None}, {"bytes": b"", "path": None}],
    ]
    for file in both(tmp_path, pa.array(rows, list_of(IMAGE))):
        listing = list_inputs(file, "rollout")
        name = file.name
        expected = {"1.png": b"one", f"{name}#0[1]": b"two", f"{name}#2[0]": b"three", f"{name}#3[0]": b"four"}
        assert contents(listing) == expected
        reasons = {failure.source: failure.reason for failure in listing.refused}
        assert reasons == {f"{name}:1": "row", f"{name}:2[1]": "row", f"{name}:3[1]": "empty"}
        assert f"{name}:0" in listing.readable
        assert f"{name}:2[0]" in listing.readable
        assert f"{name}:2" not in listing.readable


def test_a_list_of_one_is_that_image_and_of_none_is_a_row(tmp_path: Path) -> None:
    rows = [[{"bytes": b"one", "path": None}], [], [{"bytes": b"two", "path": "two.png"}]]
    for file in both(tmp_path, pa.array(rows, pa.list_(IMAGE))):
        listing = list_inputs(file, "rollout")
        assert contents(listing) == {f"{file.name}#0": b"one", "two.png": b"two"}
        assert [failure.source for failure in listing.refused] == [f"{file.name}:1"]


def test_bytes_that_are_all_there_are_not_read_to_list_them(tmp_path: Path) -> None:
    """So a table of pictures is listed in the time that its paths take; here its bytes are damaged, which shows it."""
    rows = [[{"bytes": bytes([65]) * 2**20, "path": f"{number}.png"}] for number in range(4)]
    table = pa.table({"images": pa.array(rows, pa.list_(IMAGE))})
    file = tmp_path / "t.parquet"
    parquet.write_table(table, file, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[2**21 : 2**22] = bytes(2**21)
    for at in range(4, 40):  # the header of the page of bytes
        content[at] ^= 0xFF
    file.write_bytes(content)
    assert [value for value, _ in read_rows(file, "images", None)] == [[(True, f"{at}.png")] for at in range(4)]
    with pytest.raises(guarded_tables.TableError):
        guarded_tables.read_cell(str(file), (1,), 0, "images", 2**24)


@pytest.mark.parametrize(
    "type_", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())]
)
def test_every_type_of_bytes_is_read_alone_in_lists_and_in_structs(tmp_path: Path, type_: Any) -> None:
    values = [b"one", None, b"three", b"three"]
    cells = pa.array(values, pa.binary()).cast(type_)
    struct_ = pa.StructArray.from_arrays([pa.array(range(4)), cells, pa.array(["x"] * 4)], ["id", "content", "kind"])
    for at, column in enumerate((cells, struct_)):
        for file in both(tmp_path, column):
            listing = list_inputs(file, "rollout")
            assert contents(listing) == {f"{file.name}#{row}": values[row] for row in (0, 2, 3)}, (at, file)
            assert [failure.source for failure in listing.refused] == [f"{file.name}:1"]
    listed = pa.ListArray.from_arrays(pa.array([0, 1, 4]), cells)
    for file in both(tmp_path, listed):
        assert list(contents(list_inputs(file, "rollout"))) == [f"{file.name}#{at}" for at in ("0", "1[1]", "1[2]")]


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())]
)
def test_every_type_of_text_names_files_alone_in_lists_and_in_structs(tmp_path: Path, type_: Any) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    cells = pa.array(["a.png", "b.png", None, "b.png"], pa.string()).cast(type_)
    inner = pa.StructArray.from_arrays([cells], ["path"])
    outer = pa.StructArray.from_arrays([pa.array([1, 2, 3, 4]), inner], ["n", "image"])
    for column in (cells, inner, outer):
        for file in both(tmp_path, column):
            listing = list_inputs(file, "rollout", column="images")
            assert [sample.source for sample in listing.samples] == ["a.png", "b.png", "b.png"]
            assert [failure.source for failure in listing.refused] == [f"{file.name}:2"]
    for file in both(tmp_path, pa.ListArray.from_arrays(pa.array([0, 2, 4]), cells)):
        listing = list_inputs(file, "rollout")
        assert [sample.source for sample in listing.samples] == ["a.png", "b.png", "b.png"]
        assert [failure.source for failure in listing.refused] == [f"{file.name}:1[0]"]


def test_an_image_of_datasets_may_lie_in_a_file_and_its_fields_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    type_ = pa.struct(
        [("size", pa.int64()), ("path", pa.string()), ("bytes", pa.large_binary()), ("mask", pa.binary())]
    )
    cells = pa.array([{"path": "a.png"}, {"bytes": b"b", "path": "b.png", "mask": b"m"}], type_)
    for file in both(tmp_path, cells):
        assert contents(list_inputs(file, "rollout")) == {"a.png": b"a", "b.png": b"b"}


def test_a_column_of_bytes_comes_before_names_that_only_some_use(tmp_path: Path) -> None:
    table = pa.table({"filepath": ["no.png"], "jpg": [b"first"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert contents(list_inputs(tmp_path / "t.parquet", "rollout")) == {"t.parquet#0": b"first"}


def test_where_no_column_fits_all_are_shown_with_their_types(tmp_path: Path) -> None:
    array = pa.field("pixels", pa.list_(pa.uint8()), metadata={"ARROW:extension:name": "datasets.features.Array2D"})
    schema = pa.schema([("images", pa.list_(pa.int64())), ("deep", pa.list_(pa.list_(pa.string()))), array])
    parquet.write_table(schema.empty_table(), tmp_path / "t.parquet")
    with pytest.raises(ConfigError) as caught:
        list_inputs(tmp_path / "t.parquet", "rollout")
    for words in ("images: list<element: int64>", "deep: list<element: list<element: string>>", "--column"):
        assert words in str(caught.value)
    assert "pixels: datasets.features.Array2D(list<element: uint8>)" in str(caught.value)
    with pytest.raises(
        ConfigError, match="column images holds neither names nor bytes, alone or in lists; the columns are"
    ):
        list_inputs(tmp_path / "t.parquet", "rollout", column="images")
    parquet.write_table(pa.table({"url": [1], "caption": [2]}), tmp_path / "u.parquet")
    with pytest.raises(ConfigError, match="column url holds addresses, and nothing is downloaded"):
        list_inputs(tmp_path / "u.parquet", "rollout")


def test_an_array_of_datasets_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"pixels": datasets.Array2D(shape=(2, 2), dtype="uint8")})
    datasets.Dataset.from_dict({"pixels": [[[1, 2], [3, 4]]]}, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"pixels: datasets\.features\.features\.Array2DExtensionType"):
        list_inputs(tmp_path / "saved", "rollout")


def test_a_sequence_of_images_of_datasets_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [[Image.new("RGB", (4, 4), (number, 0, at)) for at in range(number)] for number in range(1, 4)]
    features = datasets.Features({"images": datasets.Sequence(datasets.Image()), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"images": pictures, "text": ["a", "b", "c"]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "t.parquet")
    saved, table = (list_inputs(tmp_path / name, "rollout", prompt_field="text") for name in ("saved", "t.parquet"))
    assert [sample.key for sample in saved.samples] == [sample.key for sample in table.samples]
    assert [sample.prompt for sample in saved.samples] == ["a", "b", "b", "c", "c", "c"]
    contents(list_inputs(tmp_path / "t.parquet", "rollout"))


def test_a_row_of_very_many_is_one_problem_and_never_unpacked(tmp_path: Path) -> None:
    count = limits.MAX_ROW_INPUTS + 1
    cells = pa.array([["x"], ["x"] * count, ["x"] * limits.MAX_ROW_INPUTS], pa.list_(pa.string()))
    file = write(tmp_path / "t.parquet", cells)
    (one, _), (many, _), (most, _) = read_rows(file, "images", None)
    assert one == ["x"]
    assert many.text == "holds 65,537 inputs; the limit for one row is 65,536"
    assert len(most) == limits.MAX_ROW_INPUTS


def test_views_and_dictionaries_are_counted_as_often_as_they_are_used() -> None:
    value = b"x" * 1000
    used_often = [
        pa.array([value] * 50, pa.binary_view()),
        pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int8()), pa.array([value])),
        pa.ListArray.from_arrays(
            pa.array([0, 20, 50]), pa.DictionaryArray.from_arrays(pa.array([0] * 50, pa.int8()), pa.array([value]))
        ),
        pa.ListViewArray.from_arrays([0] * 50, [1] * 50, pa.array([value])),
    ]
    for cells in used_often:
        assert 50_000 <= table_columns.expanded_bytes(pa, cells) < 60_000, cells.type
        assert 0 < table_columns.expanded_bytes(pa, cells.slice(0, 1)) < 30_000, cells.type


def test_a_text_that_many_views_share_is_stopped_by_its_size(tmp_path: Path) -> None:
    text = "x" * 2**20
    buffers = pa.array([text], pa.string_view()).buffers()
    views = pa.py_buffer(buffers[1].to_pybytes() * 4096)
    cells = pa.Array.from_buffers(pa.string_view(), 4096, [None, views, *buffers[2:]])
    file = write(tmp_path / "t.arrow", cells, "image")
    assert file.stat().st_size < 2**21
    with pytest.raises(guarded_tables.TableError, match="unpacks to more than"):
        list(read_rows(file, "image", None))


def test_the_schema_says_kind_and_type(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", pa.array([[{"bytes": b"1", "path": None}]], pa.list_(IMAGE)))
    columns = read_schema(file).columns
    assert (columns["n"].kind, columns["n"].is_list, columns["n"].type) == ("", False, "int64")
    assert (columns["images"].kind, columns["images"].is_list) == ("bytes", True)

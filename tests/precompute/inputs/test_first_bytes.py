"""What is named is judged by its content: it is read whatever its name, or refused with what it is and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.files.tables import text_streams
from theworld.precompute.inputs.first_bytes import content_of
from theworld.precompute.inputs.listing.inputs import list_inputs
from theworld.precompute.inputs.listing.selection import name_left_out


def image(format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format)
    return buffer.getvalue()


def tar(compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as opened:
        member = tarfile.TarInfo("a.png")
        member.size = len(image())
        opened.addfile(member, io.BytesIO(image()))
    return buffer.getvalue()


def zipped(name: str = "a.png") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr(name, b"x")
    return buffer.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "made") as opened:
        opened.execute("create table t (a)")
    return (folder / "made").read_bytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
@pytest.mark.parametrize("name", ["photo", "photo.PNG.download", "photo.mp4", "photo.txt", "photo.tar"])
def test_a_picture_is_one_whatever_its_name(tmp_path: Path, format: str, name: str) -> None:
    (tmp_path / name).write_bytes(image(format))
    assert [sample.source for sample in list_inputs(tmp_path / name, "rollout").samples] == [name]


def test_tars_tables_and_lists_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    (tmp_path / "shard.dat").write_bytes(tar())
    assert list_inputs(tmp_path / "shard.dat", "rollout").samples[0].source == "shard.dat:a.png"
    rows = {"records": b'{"image": "a.png"}\n', "array.db": b'\xef\xbb\xbf [{"image": "a.png"}]', "paths.txt": b"a.png"}
    for name, content in rows.items():
        (tmp_path / name).write_bytes(content)
        assert list_inputs(tmp_path / name, "rollout").samples[0].source == "a.png"
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"image": [image()]}), tmp_path / "table")
    assert len(list_inputs(tmp_path / "table", "rollout").samples) == 1


LISTS = {
    ".jsonl": b'{"image": "a.png"}\n\n{"image": "b.png"}\n',
    ".json": json.dumps([{"image": "a.png"}, {"image": "b.png"}]).encode(),
    ".csv": b"image,n\r\na.png,1\r\nb.png,2\r\n",
    ".tsv": b"image\tn\na.png\t1\nb.png\t2\n",
    ".txt": b"\xef\xbb\xbfa.png\r\n\n  \nb.png",
}


@pytest.mark.parametrize("suffix", LISTS)
@pytest.mark.parametrize(
    ("packing", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), ("", lambda text: text.decode().encode("utf-16"))],
    ids=["plain", "gzip", "bzip2", "utf-16"],
)
def test_a_list_is_read_also_where_it_is_compressed_or_in_utf_16(
    tmp_path: Path, suffix: str, packing: str, pack: object
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(image())
    file = tmp_path / f"list{suffix}{packing}"
    file.write_bytes(pack(LISTS[suffix]))  # type: ignore[operator]
    assert [sample.source for sample in list_inputs(file, "rollout").samples] == ["a.png", "b.png"]
    hidden = tmp_path / f"plain{suffix}"  # compressed, and its name does not say so
    hidden.write_bytes(pack(LISTS[suffix]))  # type: ignore[operator]
    assert len(list_inputs(hidden, "rollout").samples) == 2


def test_conversations_without_an_image_are_counted_also_where_they_are_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    rows = [{"image": "a.png", "conversations": []}, {"conversations": []}]
    (tmp_path / "llava.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    listing = list_inputs(tmp_path / "llava.json.gz", "rollout")
    assert (len(listing.samples), listing.refused, listing.left_out) == (1, (), {"of text alone": 1})


def test_a_text_of_paths_has_one_name_a_line_and_no_comments(tmp_path: Path) -> None:
    names = ["a b.png", "#1.png", '"quoted".png', os.fsdecode(b"\xff.png")]
    for name in names:
        (tmp_path / name).write_bytes(image())
    (tmp_path / "l.txt").write_bytes(b"\n".join([*map(os.fsencode, names), b"absent.png", b"x" * 5000]))
    listing = list_inputs(tmp_path / "l.txt", "rollout")
    assert [sample.source for sample in listing.samples] == names
    assert {bad.source: bad.reason for bad in listing.refused} == {"l.txt:5": "missing", "l.txt:6": "row"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tar.gz", tar("gz"), "a tar, compressed with gzip.*gunzip"),
        ("x.tgz", tar("gz"), "a tar, compressed with gzip.*a plain tar is read as it is"),
        ("x.tar", tar("gz"), "a tar, compressed with gzip"),
        ("x.tar.bz2", tar("bz2"), "a tar, compressed with bzip2.*bunzip2"),
        ("x.tar.xz", tar("xz"), "compressed with xz.*unxz"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd....", "compressed with zstd.*unzstd"),
        ("l.jsonl.xz", lzma.compress(LISTS[".jsonl"]), "compressed with xz"),
        ("photo.png.gz", gzip.compress(image(), mtime=0), "a picture, compressed with gzip.*gunzip"),
        ("cut.jsonl.gz", gzip.compress(LISTS[".jsonl"], mtime=0)[:20], "its gzip data are damaged"),
        ("x.zip", zipped(), "a ZIP archive.*unzip.*name the folder"),
        ("x.npz", zipped("a.npy"), "a NumPy archive"),
        ("x.xlsx", zipped("[Content_Types].xml"), "an Office document.*csv"),
        ("x.pt", zipped("archive/data.pkl"), "a PyTorch file"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c...", "a 7-Zip archive.*7z x"),
        ("x.rar", b"Rar!\x1a\x07\x01\0", "a RAR archive"),
        ("x.h5", b"\x89HDF\r\n\x1a\n...", "an HDF5 file"),
        ("x.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
        ("x.pkl", b"\x80\x04\x95\x0e\0\0\0\0\0\0\0]\x94\x8c\x05a.png\x94a.", "a pickle, which may run any code"),
        ("x.pkl", b"\x80\x02}q\0X\1\0\0\0aK\1s.", "a pickle"),
        ("x.pdf", b"%PDF-1.7\n", "a PDF.*pdftoppm"),
        ("x.jxl", b"\xff\x0a....", "JPEG XL.*Save it as PNG"),
        ("x.png", b"8BPS....", "Photoshop"),
        ("x.cr2", b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "camera raw"),
        ("x.jpg", b"\0\0\0\x18ftypcrx " + bytes(50), "camera raw"),
        ("photo.jpg", b"\n<!DOCTYPE html>\n<html>404</html>", "an HTML or XML page.*error page of a download"),
        ("photo.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS.*`git lfs pull`"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS.*`git lfs pull`"),
        ("l.log", "a.png\n".encode("utf-16"), "a text in UTF-16.*suffix .txt"),
        ("photo.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        ("notes", b"a.png\nb.png\n", "a text.*call it .txt"),
        ("photo.jpg", b"no picture", "a text"),
        ("photo.jpg", bytes(range(256)), "no image, list, table or tar by its first bytes"),
        ("a.flv", b"FLV\x01....", "a Flash video.*ffmpeg"),
        ("x.ts", (b"G" + bytes(187)) * 4, "an MPEG transport stream"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes hold the time
)
def test_what_is_no_input_is_called_by_its_name_before_anything_is_made(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"(?s){words}"):
        list_inputs(tmp_path / name, "rollout")


def test_databases_pipes_and_broken_links_are_called_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(database(tmp_path))
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("x.png", "SQLite"), ("gone", "a link to nowhere"), ("pipe.png", "is a pipe")):
        with pytest.raises(ConfigError, match=words):
            list_inputs(tmp_path / name, "rollout")


def test_tars_and_tables_of_a_folder_that_are_something_else_are_rows_that_say_what(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar())
    (tmp_path / "1.tar").write_bytes(tar("gz"))
    (tmp_path / "2.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    listing = list_inputs(tmp_path, "rollout")
    assert [sample.source for sample in listing.samples] == ["0.tar:a.png"]
    said = {bad.source: (bad.reason, bad.message) for bad in listing.refused}
    assert said["1.tar"][0] == said["2.tar"][0] == "tar"
    assert "gunzip" in said["1.tar"][1]
    assert "git lfs pull" in said["2.tar"][1]


def test_a_list_whose_first_column_is_called_like_a_format_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    for number, name in enumerate(("ID3", "DDS ", "qoif", "MATLAB ", "BM")):
        (tmp_path / f"{number}.csv").write_text(f"{name},image\n1,a.png\n")
        assert [sample.source for sample in list_inputs(tmp_path / f"{number}.csv", "rollout").samples] == ["a.png"]


def test_a_pattern_of_folders_says_how_they_are_searched(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(ConfigError, match=r"matches no file here .*, but 1 folder: to search folders, end it in"):
        list_inputs(tmp_path / "*", "rollout")


def test_a_pattern_takes_by_content_what_its_suffix_does_not_say_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "0001").write_bytes(image())
    (tmp_path / "a.png").write_bytes(image())
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "x.zip").write_bytes(zipped())
    (tmp_path / "folder").mkdir()
    listing = list_inputs(tmp_path / "*", "rollout")
    assert [sample.source for sample in listing.samples] == ["0001", "a.png"]
    assert listing.left_out == {".txt": 1, ".zip": 1, "folder": 1}


def test_a_folder_without_inputs_says_what_it_holds_instead(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar("gz"))
    with pytest.raises(ConfigError, match=r"It holds 1 \.tgz\. x\.tgz is a tar, compressed with gzip.*gunzip"):
        list_inputs(tmp_path, "rollout")
    (tmp_path / "x.tgz").unlink()
    (tmp_path / "0001").write_bytes(image())
    with pytest.raises(ConfigError, match=r"It holds 1 without suffix\. By its content 0001 is one.*\*\*/\*"):
        list_inputs(tmp_path, "rollout")


def test_files_of_a_folder_in_formats_that_are_not_read_are_rows_with_their_names(tmp_path: Path) -> None:
    contents = {
        "a.png": image(),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page.png": b"<!doctype html><html>404</html>",
        "layers.tif": b"8BPS....",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "raw.CR2").touch()
    listing = list_inputs(tmp_path, "rollout")
    assert [sample.source for sample in listing.samples] == ["a.png"]
    assert {bad.source: bad.reason for bad in listing.refused} == dict.fromkeys(contents.keys() - {"a.png"}, "format")
    said = " ".join(bad.message for bad in listing.refused)
    assert all(words in said for words in ("git lfs pull", "web page", "Photoshop"))
    assert name_left_out(listing.left_out) == "1 .cr2 (camera raw)"


def test_a_small_file_that_unpacks_to_too_much_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_streams, "TABLE_FREE_BYTES", 2**20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"\n" * 2**26))
    with pytest.raises(ConfigError, match=r"unpacks to more than .* the limit for a compressed list"):
        list_inputs(tmp_path / "bomb.txt.gz", "rollout")


def test_a_file_of_zeros_is_no_tar() -> None:
    assert content_of(bytes(1024)).form == "unknown"

"""What a file is, by its first bytes: a picture, a video, a list, a table, a tar, or what no command takes, by name."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.files.images.formats import HEIC, is_known, name_format
from ...pipeline.files.tables import text as lists
from ...pipeline.files.tables.text_streams import is_utf16, open_text, packing_of
from ..media.video_files import container_of

IMAGE, VIDEO, LIST, TABLE, TAR = "image", "video", "list", "table", "tar"
"""Forms that are read. The first two are the nouns of the kinds."""
UNKNOWN, EMPTY, OTHER = "unknown", "empty", "other"
_HEAD_BYTES = 4096
_TAR_MAGIC, _TAR_HEADER = 257, 512

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it with `7z x`, and name the folder"),
    (b"Rar!\x1a\x07", "a RAR archive", "Unpack it with `unrar x`, and name the folder"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Write its pictures to files, or its paths to a list"),
    (b"\x93NUMPY", "a NumPy array", "Write its pictures to files, for example with Pillow"),
    (b"SQLite format 3\0", "an SQLite database", "Write its pictures to files, or its paths to a list"),
    (b"%PDF-", "a PDF", "Write its pages to pictures, for example with `pdftoppm -png`"),
    *((b"ID3" + bytes([version]), "a sound file", "") for version in (2, 3, 4)),
    (b"OggS", "an Ogg file", "Write the video anew as MP4, MOV, MKV, WebM or AVI"),
    (b"FLV\1", "a Flash video", "Write it anew as MP4: `ffmpeg -i FILE FILE.mp4`"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file", "Write it anew as MP4: `ffmpeg -i FILE FILE.mp4`"),
    (b"\0\0\1\xba", "an MPEG video", "Write it anew as MP4: `ffmpeg -i FILE FILE.mp4`"),
    (b"GGUF", "a GGUF model", ""),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it with `unzstd`, and name the file that comes out"),
    (b"\xfd7zXZ\0", "compressed with xz", "Unpack it with `unxz`, and name the file that comes out"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", "Unpack it with `unlz4`, and name the file that comes out"),
    (b"\x1f\x9d", "compressed with compress", "Unpack it with `uncompress`, and name the file that comes out"),
    (b"\x7fELF", "a program", ""),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", "Write its pictures to files"),
    (b"\x4c\0\0\0\x01\x14\x02\0", "a Windows shortcut", "Name the file or folder that it leads to"),
)
_ZIPS = (
    (b".npy", "a NumPy archive", "Write its pictures to files, for example with Pillow"),
    (b"[Content_Types].xml", "an Office document", "Save a sheet as .csv"),
    (b"data.pkl", "a PyTorch file", "Write its pictures to files"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x80-\xffA-Za-z}\](]")
_MARKUP = re.compile(rb"\s*<(!doctype html|html|head|body|\?xml|svg|error)", re.IGNORECASE)
_LFS = b"version https://git-lfs"
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2"}


@dataclass(frozen=True, slots=True)
class Content:
    """The format of a file, and whether it is an input, a list, a table or a tar."""

    form: str
    """One of the words at the head of this file. `OTHER` is known, and not read; a text that is no list is one."""
    what: str = ""
    """In words, with its article."""
    advice: str = ""
    """What to do with it, a sentence; empty where nothing comes to mind."""


def look_at(file: str) -> Content:
    """What a regular file is.

    Raises:
        OSError: it cannot be read.
    """
    with open(file, "rb") as opened:  # noqa: PTH123 - names of any bytes
        head = opened.read(_HEAD_BYTES)
    suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122
    if (packing := packing_of(head)) is not None:
        return _packed(Path(file), packing)
    return content_of(head, suffix)


def is_special(file: str) -> bool:
    """Whether it is a pipe, a device, a socket or a folder, which is not opened."""
    try:
        return not stat.S_ISREG(os.stat(file).st_mode)  # noqa: PTH116
    except (OSError, ValueError):
        return False


def content_of(head: bytes, suffix: str = "") -> Content:
    """What a file is that begins like this.

    Args:
        head: its first bytes, 4,096 where it has so many.
        suffix: of its name. It decides between a text that lists files and one that does not.
    """
    if not head:
        return Content(EMPTY, "empty")
    if is_utf16(head) and _lists_files(suffix):
        return Content(LIST, "a list in UTF-16")
    if _is_image(head):
        return Content(IMAGE, "a picture")
    if head[:4] == b"PAR1":
        return Content(TABLE, "a Parquet file")
    if head[:6] == b"ARROW1" or (head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < 2**26):
        if suffix == ".arrow":
            return Content(TABLE, "an Arrow file")
        return Content(OTHER, "an Arrow file", "Give it the suffix .arrow")
    if _is_tar(head):
        return Content(TAR, "a tar")
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip(head)
    if head.startswith(_LFS):
        return Content(OTHER, "a pointer of git LFS, not the file itself", "Fetch the file with `git lfs pull`")
    for magic, what, advice in _OTHERS:
        if head.startswith(magic):
            return Content(OTHER, what, advice)
    is_text_list = suffix in lists.SUFFIXES and b"\0" not in head  # the first column may have any name
    if not is_text_list and (name := name_format(head)) is not None and not _MARKUP.match(head):
        return Content(OTHER, name, "Save it as PNG, JPEG or TIFF")
    if container_of(head) is not None:
        return Content(VIDEO, "a video")
    if head[:4] == b"RIFF":
        return Content(OTHER, "a sound file" if head[8:12] == b"WAVE" else "a RIFF file of another kind")
    if head[:1] == b"G" and head[188:189] == head[376:377] == b"G" and len(head) > 376:
        return Content(OTHER, "an MPEG transport stream", "Write it anew as MP4: `ffmpeg -i FILE FILE.mp4`")
    if _PICKLE.match(head):
        return Content(OTHER, "a pickle, which may run any code when it is read", "Write its pictures to files")
    return _text(head, suffix)


def _text(head: bytes, suffix: str) -> Content:
    if is_utf16(head):
        return Content(OTHER, "a text in UTF-16", "If it lists files, give it the suffix .txt, .jsonl, .csv or .tsv")
    if b"\0" in head:
        return Content(UNKNOWN)
    if _lists_files(suffix):
        return Content(LIST, "a list")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _MARKUP.match(start):
        is_svg = b"<svg" in head
        advice = "Save it as PNG" if is_svg else "It may be the error page of a download: fetch the file again"
        return Content(OTHER, "an SVG drawing" if is_svg else "an HTML or XML page", advice)
    if start[:1] in (b"{", b"["):
        return Content(LIST, "a list")
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < _HEAD_BYTES:
            return Content(UNKNOWN)
    return Content(
        OTHER, "a text", "If it names one file a line, call it .txt; other lists are .jsonl, .csv, .tsv and .json"
    )


def _lists_files(suffix: str) -> bool:
    return suffix in lists.SUFFIXES or suffix == lists.PATHS


def _packed(file: Path, packing: str) -> Content:
    """What a compressed file is: a list is read as it is, of all else its content is named."""
    command = f"Unpack it with `{_UNPACK[packing]}`, and name the file that comes out"
    try:
        with open_text(file) as opened:
            inner = content_of(opened.read(_HEAD_BYTES), lists.form_of_name(file.name))
    except OSError as error:
        return Content(OTHER, f"compressed with {packing}, and {error}", "Fetch or write it again")
    if inner.form == LIST:
        return Content(LIST, f"a list, compressed with {packing}")
    if inner.form == TAR:
        return Content(OTHER, f"a tar, compressed with {packing}", f"{command}: a plain tar is read as it is")
    return Content(OTHER, f"{inner.what or 'a file'}, compressed with {packing}", command)


def _is_image(head: bytes) -> bool:
    if head[:2] == b"BM":  # as a text may begin too
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return name_format(head) == HEIC or (is_known(head) and name_format(head) is None)


def _is_tar(head: bytes) -> bool:
    if head[_TAR_MAGIC : _TAR_MAGIC + 5] == b"ustar":
        return True
    header = head[:_TAR_HEADER]  # before POSIX a header had a sum and no mark
    stated = header[148:156].strip(b" \0")
    if len(header) < _TAR_HEADER or not re.fullmatch(rb"[0-7]{1,7}", stated):
        return False
    return sum(header) - sum(header[148:156]) + 8 * ord(" ") == int(stated, 8)


def _zip(head: bytes) -> Content:
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    for end, what, advice in _ZIPS:
        if first.endswith(end):
            return Content(OTHER, what, advice)
    return Content(OTHER, "a ZIP archive", "Unpack it with `unzip`, and name the folder")

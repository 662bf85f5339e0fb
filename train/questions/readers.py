"""Read questions files of every supported layout, as rows with the fields of `Question`.

x.jsonl, x.ndjson                 our own, the fields of `Question`; conversations, a line each; a table, with a map
x.json                            an array of conversations, each answer one question; or an array of objects; or what
                                  json_objects.py finds in an object
x.csv  x.tsv                      a table; VLMEvalKit's, with images in base64, too
x.parquet  x.arrow, a folder of them, a folder made by save_to_disk, hf:ORG/NAME
                                  a table, which may hold conversations; SAT's is known
a folder with metadata.jsonl      a table beside its images, as of datasets' imagefolder
a folder with sim_N_results.json  VPCT

Each text may be compressed with gzip or bzip2: x.jsonl.gz.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from ...pipeline.errors import ConfigError, QuestionError
from ...pipeline.files import limits
from ...pipeline.files.hashing import digest_of_file, digest_of_lines
from ...pipeline.files.plain import read_file
from ...pipeline.files.tables import arrow as arrow_files
from ...pipeline.files.tables import guarded as guarded_tables
from ...pipeline.files.tables import text as lists
from ...pipeline.files.tables.text_streams import open_text
from .columns import FIELDS, Columns
from .json_objects import is_object, read_object
from .rows import Keep, Row, RowReader
from .values.text import is_absent

_SAT = frozenset({"question", "answers", "correct_answer"})
_SAT_IMAGES = frozenset({"image_bytes", "images"})  # array/SAT, array/SAT-v2: a list each, by their cards on the Hub
_PEEKED = 100
_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
_TALKS = frozenset({"conversations", "messages"})
_VPCT = re.compile(r"sim_(\d+)_results\.json")
_PACKED = "unpack it, or compress it with gzip or bzip2"
_OTHERS = {
    **dict.fromkeys((".zst", ".xz", ".zip", ".7z", ".lz4"), _PACKED),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV"),
}
"""What else questions come in, and what to do with it."""
_METADATA = ("metadata.jsonl", "metadata.csv")
"""The table of a folder of images that datasets reads as `imagefolder`."""
_BUCKETS = {1: "left", 2: "middle", 3: "right"}
_PICTURE = re.compile(r"(sim_\d+).*\.(?i:png|jpe?g|webp)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one questions file or folder."""

    layout: str
    """Name of the layout: JSONL, LLaVA, table, SAT, VPCT."""
    rows: Iterable[Row]
    unit: str = "row"
    """What one row is called where they are counted."""
    notes: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was changed in the rows read so far -> how many times."""


def read_rows(path: Path, columns: Mapping[str, str] | None = None, *, keep: Keep | None = None) -> Rows:
    """The rows of a questions file or folder, in any layout that the head of this file lists.

    Args:
        columns: field -> column, for a table whose columns have names of their own. `image[0]` takes the first of a
                list, `A|B|C|D` makes choices of four columns.
        keep: called with SHA-256 and bytes of each image that lies in the table itself, once for each.
    Raises:
        QuestionError: the path does not exist, its layout is not supported, or no column fits.
        ConfigError: a library is missing, or a data set cannot be fetched.
    """
    if not path.is_dir():
        _refuse_special(path)
    if columns and (stray := sorted(columns.keys() - FIELDS.keys())):
        raise QuestionError(f"there is no field {stray[0]!r} to fill from a column; the fields are {', '.join(FIELDS)}")
    if path.is_dir() and columns is None and (results := _vpct_results(path)):
        return Rows("VPCT", _vpct_rows(path, results), "simulation")
    suffix = lists.form_of_name(path.name)
    if path.is_dir() and (metadata := _metadata_of(path)) is not None:
        return read_rows(metadata, columns, keep=keep)
    if path.is_dir() or str(path).startswith(arrow_files.HUB) or suffix in arrow_files.SUFFIXES:
        return _arrow_rows(path, columns, keep)
    if suffix not in lists.SUFFIXES:
        if path.suffix.lower() in _OTHERS:
            raise QuestionError(f"{path} is not read: {_OTHERS[path.suffix.lower()]}")
        raise QuestionError(
            f"{path} is in no layout we read: questions come as .jsonl, .json (LLaVA), .csv, .tsv, .parquet, .arrow, a "
            "folder of those two, a save_to_disk folder, hf:ORG/NAME, or a VPCT folder"
        )
    if suffix in (".jsonl", ".ndjson") and columns is None and not _is_conversations(path):
        reader = RowReader(keep=keep, ours=True)
        return Rows("JSONL", _jsonl_rows(path, reader), "line", reader.notes)
    rows = _list_rows(path)
    first = list(islice(rows, _PEEKED))
    whole = chain(first, rows)
    if columns is None and any(isinstance(record, dict) and not _TALKS.isdisjoint(record) for _, record in first):
        reader = RowReader(keep=keep)
        return Rows("LLaVA", _rows(whole, reader, first_number=0), "conversation", reader.notes)
    names: dict[str, None] = {}
    problem = ""
    for _, record in whole:
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
        else:
            problem = problem or record
        if len(names) > limits.MAX_COLUMNS:
            raise QuestionError(
                f"{path} has more than {limits.MAX_COLUMNS:,} columns, and no question has as many fields"
            )
    if problem and not names:
        raise QuestionError(f"{path} holds no row that can be read. The first: {problem}")
    return _table(path, tuple(names), _list_rows(path), columns, keep)  # read again, rather than kept


def files_of(path: Path) -> list[Path]:
    """The files that hold the questions of a path.

    Raises:
        QuestionError: a folder without any.
    """
    if str(path).startswith(arrow_files.HUB):
        return arrow_files.fetch_hub(str(path))
    if not path.is_dir():
        return [path]
    if results := _vpct_results(path):
        return results
    if (metadata := _metadata_of(path)) is not None:
        return [metadata]
    saved = arrow_files.saved_files(path)
    first_file = _first(p for s in arrow_files.SUFFIXES for p in path.rglob(f"*{s}")) if saved is None else saved
    for file in first_file:  # a link may lead anywhere, as in the Hub's cache, but to a regular file
        _refuse_special(file)
    if not first_file:
        raise QuestionError(
            f"{path} is a folder without questions: no .parquet, no .arrow, no sim_N_results.json. Name a file in it"
        )
    return first_file


def _metadata_of(folder: Path) -> Path | None:
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def _refuse_special(file: Path) -> None:
    is_special = False
    with suppress(OSError, ValueError):  # reading says why
        is_special = not stat.S_ISREG(file.stat().st_mode)
    if is_special:
        raise QuestionError(f"{file} is not a regular file, and opening a pipe would wait for ever: write it to a file")


def _first(paths: Iterable[Path]) -> list[Path]:
    """The paths, sorted.

    Raises:
        QuestionError: there are too many.
    """
    files = list(islice(paths, limits.MAX_QUESTION_FILES + 1))
    if len(files) > limits.MAX_QUESTION_FILES:
        raise QuestionError(
            f"{files[0].parent} holds more than {limits.MAX_QUESTION_FILES:,} files of questions. Name a folder in it, "
            "or write fewer, larger files"
        )
    return sorted(files)


def digest_of(path: Path) -> str:
    """SHA-256 (64 hex digits) of a questions file; of several files, of their names and digests."""
    files = files_of(path)
    digests = [digest_of_file(file).hex() for file in files]
    if len(files) == 1:
        return digests[0]
    lines = sorted(f"{file.name}\0{digest}\n" for file, digest in zip(files, digests, strict=True))
    return digest_of_lines(lines)


def place_of(path: Path) -> str:
    """Where to find the questions from any folder: an absolute path, or a name on the Hub."""
    return str(path) if str(path).startswith(arrow_files.HUB) else str(path.resolve())


def folder_of(path: Path) -> Path:
    """The folder that image names are relative to."""
    return path if path.is_dir() else path.parent


def _unreadable(path: Path, error: OSError) -> QuestionError:
    place = f"{path} (looked from {Path.cwd()})"
    return QuestionError(f"cannot read the questions file {place}: {error.strerror or error}")


def _jsonl_rows(path: Path, reader: RowReader) -> Iterator[Row]:
    lines = lists.read_lines(path)
    while True:
        try:
            number, line = next(lines)
        except StopIteration:
            return
        except OSError as error:
            raise _unreadable(path, error) from error
        except UnicodeDecodeError as error:
            at = _first_bad_byte(path)
            raise QuestionError(f"{path} is not UTF-8 text (byte {at}): save it as UTF-8 JSON lines") from error
        except ValueError as error:
            yield Row("the end", problem=str(error))
            return
        where = f"line {number}"
        if line is None:
            yield Row(where, problem=f"longer than {limits.MAX_ROW_BYTES:,} characters; one question has a few hundred")
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error)) if isinstance(error, ValueError) else "nested too deeply"
            yield Row(where, problem=f"not JSON ({reason}); write one JSON object per line")
            continue
        if not isinstance(record, dict):
            yield Row(where, problem=f"expected a JSON object, got {type(record).__name__}")
            continue
        yield from reader.read(where, record, number)


def _first_bad_byte(path: Path) -> int:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with open_text(path) as file:
        while block := file.read(2**20):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return read - pending + error.start
            read += len(block)
    return read


def _is_conversations(path: Path) -> bool:
    try:
        with open_text(path) as lines_read:
            first = next(
                (line for line in iter(lambda: lines_read.readline(limits.MAX_ROW_BYTES), b"") if line.strip()), b""
            )
        record = json.loads(first)
    except (OSError, ValueError, RecursionError):
        return False  # who reads it says why
    return isinstance(record, dict) and not _TALKS.isdisjoint(record)


def _list_rows(path: Path) -> Iterator[tuple[str, lists.Record]]:
    try:
        yield from read_object(path) if _holds_object(path) else lists.read_records(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ConfigError as error:
        raise QuestionError(str(error)) from error


def _holds_object(path: Path) -> bool:
    return lists.form_of_name(path.name) == ".json" and is_object(path)


def _rows(rows: Iterable[tuple[str, lists.Record]], reader: RowReader, *, first_number: int) -> Iterator[Row]:
    for number, (where, row) in enumerate(rows, start=first_number):
        if isinstance(row, str):
            yield Row(where, problem=row)
        else:
            yield from reader.read(where, row, number)


def _arrow_rows(path: Path, columns: Mapping[str, str] | None, keep: Keep | None) -> Rows:
    files = files_of(path)
    try:
        schema = guarded_tables.read_schema(files[0])
    except guarded_tables.TableError as error:
        raise QuestionError(f"{files[0]} cannot be read as a table: {error}") from error
    return _table(path, tuple(schema.columns), _cells(path, files, columns), columns, keep, schema.labels)


def _cells(path: Path, files: Sequence[Path], columns: Mapping[str, str] | None) -> Iterator[tuple[str, lists.Record]]:
    for file in files:
        try:
            names = tuple(guarded_tables.read_schema(file).columns)
            wanted = Columns.choose(path, names, columns).all()
            split = _split_of(file, whole=path)
            rows = guarded_tables.read_records(file, [name for name in names if name in wanted])
            for number, record in enumerate(rows):
                where = f"{file.name}#{number}"
                if isinstance(record, str):
                    yield where, f"{where} {record}"
                else:
                    yield where, record | {"split": split} if split and is_absent(record.get("split")) else record
        except guarded_tables.TableError as error:
            yield file.name, f"{file.name} cannot be read to its end: {error}"


def _split_of(file: Path, *, whole: Path) -> str | None:
    """What the name of a file says of its split: `train-00000-of-00002.parquet`, `SAT_val.parquet`, `test/x.arrow`."""
    named = [part for part in re.split(r"[-_.]", file.stem.lower()) if part in _SPLITS]
    if not named and (whole / "dataset_dict.json").is_file():
        return file.parent.name
    return _SPLITS[named[-1]] if named else None


def _table(
    path: Path,
    names: tuple[str, ...],
    rows: Iterable[tuple[str, lists.Record]],
    requested: Mapping[str, str] | None,
    keep: Keep | None,
    labels: Mapping[str, list[str]] | None = None,
) -> Rows:
    if not names:
        raise QuestionError(f"{path} holds no row")
    columns = Columns.choose(path, names, requested)
    is_sat = requested is None and set(names) >= _SAT and not _SAT_IMAGES.isdisjoint(names)
    reader = RowReader(columns=columns, keep=keep, labels=labels, shuffled=is_sat)
    layout = "SAT" if is_sat else "LLaVA" if columns.is_conversations else "table"
    return Rows(layout, _rows(rows, reader, first_number=1), notes=reader.notes)


def _vpct_results(folder: Path) -> list[Path]:
    """The results of a folder of VPCT, in order; empty where it is none."""
    return [folder / name for _, name in sorted((int(match[1]), match[0]) for match in _matches(folder, _VPCT))]


def _matches(folder: Path, names: re.Pattern[str]) -> list[re.Match[str]]:
    with os.scandir(folder) as entries:
        matches = (match for entry in entries if (match := names.fullmatch(entry.name)))
        first = list(islice(matches, limits.MAX_QUESTION_FILES + 1))
    if len(first) > limits.MAX_QUESTION_FILES:
        raise QuestionError(
            f"{folder} holds more than {limits.MAX_QUESTION_FILES:,} files such as {first[0][0]}. VPCT has a hundred "
            "of each: name a folder with fewer"
        )
    return first


def _vpct_rows(folder: Path, results: Iterable[Path]) -> Iterator[Row]:
    """The hundred balls of VPCT, asked as the embedded scenes ask; all of them are for the test.

    Source: huggingface.co/datasets/camelCase12/vpct-1, as its maker's own runner reads it
    (github.com/camelCase12/vpct-runner, run-vpct.py): sim_N_initial.png is shown, `finalBucket` of sim_N_results.json
    is right, 1 to 3 from left to right (prompt.py). The scene itself, sim_N.json, is not read.
    """
    pictures: dict[str, list[str]] = defaultdict(list)
    for match in sorted(_matches(folder, _PICTURE), key=lambda match: match[0]):
        pictures[match[1]].append(match[0])
    for path in results:
        stem = path.name.removesuffix("_results.json")
        try:
            bucket = json.loads(read_file(path, limits.MAX_ROW_BYTES))["finalBucket"]
            answer = _BUCKETS[int(bucket)]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            yield Row(path.name, problem=f"finalBucket is not 1, 2 or 3 ({type(error).__name__}: {error})")
            continue
        pictures_of = pictures.get(stem, [])
        image = next((name for name in pictures_of if "initial" in name), pictures_of[0] if pictures_of else None)
        if image is None:
            yield Row(path.name, problem=f"there is no picture {stem}*.png beside it")
            continue
        record = {"id": stem, "image": image, "question": "where will the ball land?", "answer": answer}
        yield Row(
            path.name,
            {**record, "choices": tuple(_BUCKETS.values()), "type": "temporal", "split": "test", "about": "land"},
        )

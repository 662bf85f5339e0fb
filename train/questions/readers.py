"""Read questions files of every supported layout, as rows with the fields of `Question`.

x.jsonl, x.ndjson                 our own, the fields of `Question`; LLaVA's, a line each; a table, with a map
x.json                            LLaVA's array of conversations, each answer one question; or an array of objects
x.csv  x.tsv                      a table; VLMEvalKit's, with images in base64, too
x.parquet  x.arrow, a folder of them, a folder made by save_to_disk, hf:ORG/NAME      a table; SAT's is known
a folder with sim_N_results.json  VPCT
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError, QuestionError
from ...pipeline.files import arrow_tables as arrow_files
from ...pipeline.files import guarded_tables, limits
from ...pipeline.files import text_tables as lists
from ...pipeline.files.hashing import digest_of_file, digest_of_lines
from ...pipeline.files.plain import read_file
from .columns import FIELDS, Columns
from .turns import Turn, Turns
from .values import Images, Skipped, WrongValue, answer_of, choices_of, shuffle_choices, text_of

_SAT = frozenset({"question", "answers", "correct_answer"})
_SAT_IMAGES = frozenset({"image_bytes", "images"})  # array/SAT, array/SAT-v2: a list each, by their cards on the Hub
_PEEKED = 100
_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
_MARKER = re.compile("<(?:image|video)>")
_ASKS, _ANSWERS = frozenset({"human", "user"}), frozenset({"gpt", "assistant", "model"})
_Keep = Callable[[str, bytes], None]
_VPCT = re.compile(r"sim_(\d+)_results\.json")
_BUCKETS = {1: "left", 2: "middle", 3: "right"}
_PICTURE = re.compile(r"(sim_\d+).*\.(?i:png|jpe?g|webp)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a record with the fields of `Question`, or what is wrong with it, or why it is skipped."""

    where: str
    """Where the row is, for messages: `line 17`, `train.parquet, row 3`."""
    record: dict[str, Any] | None = None
    problem: str = ""
    skipped: str = ""
    """Why it is skipped: it is not wrong, but does not ask about exactly one image."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one questions file or folder."""

    layout: str
    """Name of the layout: JSONL, LLaVA, table, SAT, VPCT."""
    rows: Iterable[Row]
    unit: str = "row"
    """What one row is called where they are counted."""


def read_rows(path: Path, columns: Mapping[str, str] | None = None, *, keep: _Keep | None = None) -> Rows:
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
    suffix = path.suffix.lower()
    if path.is_dir() or str(path).startswith(arrow_files.HUB) or suffix in arrow_files.SUFFIXES:
        return _arrow_rows(path, columns, keep)
    if suffix not in lists.SUFFIXES:
        raise QuestionError(
            f"{path} is in no layout we read: questions come as .jsonl, .json (LLaVA), .csv, .tsv, .parquet, .arrow, a "
            "folder of those two, a save_to_disk folder, hf:ORG/NAME, or a VPCT folder"
        )
    if suffix in (".jsonl", ".ndjson") and columns is None and not _is_conversations(path):
        return Rows("JSONL", _jsonl_rows(path), "line")
    rows = _list_rows(path)
    first = list(islice(rows, _PEEKED))
    whole = chain(first, rows)
    if columns is None and any(isinstance(record, dict) and "conversations" in record for _, record in first):
        return Rows("LLaVA", _llava_rows(whole), "conversation")
    names: dict[str, None] = {}
    for _, record in whole:
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
        if len(names) > limits.MAX_COLUMNS:
            raise QuestionError(
                f"{path} has more than {limits.MAX_COLUMNS:,} columns, and no question has as many fields"
            )
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
    saved = arrow_files.saved_files(path)
    found = _first(p for s in arrow_files.SUFFIXES for p in path.rglob(f"*{s}")) if saved is None else saved
    for file in found:  # a link may lead anywhere, as in the Hub's cache, but to a regular file
        _refuse_special(file)
    if not found:
        raise QuestionError(
            f"{path} is a folder without questions: no .parquet, no .arrow, no sim_N_results.json. Name a file in it"
        )
    return found


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
    found = list(islice(paths, limits.MAX_QUESTION_FILES + 1))
    if len(found) > limits.MAX_QUESTION_FILES:
        raise QuestionError(
            f"{found[0].parent} holds more than {limits.MAX_QUESTION_FILES:,} files of questions. Name a folder in it, "
            "or write fewer, larger files"
        )
    return sorted(found)


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


def _jsonl_rows(path: Path) -> Iterator[Row]:
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
        yield Row(where, {"id": str(number), **record})


def _first_bad_byte(path: Path) -> int:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with path.open("rb") as file:
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
        with path.open("rb") as lines:
            first = next(
                (line for line in iter(lambda: lines.readline(limits.MAX_ROW_BYTES), b"") if line.strip()), b""
            )
        record = json.loads(first)
    except (OSError, ValueError, RecursionError):
        return False  # who reads it says why
    return isinstance(record, dict) and "conversations" in record


def _list_rows(path: Path) -> Iterator[tuple[str, lists.Record]]:
    try:
        yield from lists.read_records(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ConfigError as error:
        raise QuestionError(str(error)) from error


def _llava_rows(rows: Iterable[tuple[str, lists.Record]]) -> Iterator[Row]:
    used_ids: set[str] = set()
    images = Images()
    for number, (where, row) in enumerate(rows):
        if isinstance(row, str):
            yield Row(where, problem=row)
            continue
        try:
            turns = _turns(row.get("conversations"))
            image = images.take(row.get("image", row.get("video")), where)
            given = row.get("id")
            name = text_of(number if given is None else given)
        except Skipped as reason:
            yield Row(where, skipped=str(reason))
            continue
        except WrongValue as error:
            yield Row(where, problem=str(error))
            continue
        name = _unique(name, number, used_ids)
        for turn, (question, answer) in enumerate(turns):
            record = {
                **image,
                "id": name if len(turns) == 1 else f"{name}.{turn + 1}",
                "question": question,
                "answer": answer,
                "before": Turns(turns, turn),
            }
            for field in ("type", "split", "prompt"):
                if isinstance(row.get(field), str):
                    record[field] = row[field]
            if isinstance(row.get("anchor"), int | float):
                record["anchor"] = row["anchor"]
            yield Row(where, record)


def _turns(conversation: Any) -> tuple[Turn, ...]:
    """Questions and answers in turn, without the marker of the image: world tokens always stand in front."""
    if not isinstance(conversation, list) or not conversation:
        raise WrongValue("conversations is no list of turns")
    if len(conversation) > 2 * limits.MAX_TURNS + 1:
        raise WrongValue(f"conversations has {len(conversation):,} turns; the limit is {limits.MAX_TURNS} answers")
    messages: list[tuple[str, str]] = []
    for turn in conversation:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise WrongValue('a turn is not {"from": …, "value": text}')
        messages.append((str(turn.get("from")), turn["value"]))
    if sum(value.count("<image>") + value.count("<video>") for _, value in messages) > 1:
        raise Skipped("shows several images")
    system = ""
    if messages[0][0] == "system":  # Gemma has no such role; its template puts the text in front of the first question
        system = messages.pop(0)[1].strip() + "\n\n"
    asked, answered = messages[0::2], messages[1::2]
    in_turn = all(role in _ASKS for role, _ in asked) and all(role in _ANSWERS for role, _ in answered)
    if not in_turn or len(asked) != len(answered) or not asked:
        raise WrongValue(
            f"turns of {', '.join(role for role, _ in messages) or 'nobody'}: question and answer must alternate"
        )
    turns = [(_unmarked(question), answer.strip()) for (_, question), (_, answer) in zip(asked, answered, strict=True)]
    for place, (question, answer) in enumerate(turns, start=1):
        if not question or not answer:
            raise WrongValue(f"turn {place} has an empty {'answer' if question else 'question'}")
    try:
        "".join([system, *chain.from_iterable(turns)]).encode()
    except UnicodeEncodeError as error:
        raise WrongValue(f"its turns are not Unicode text ({error.reason})") from error
    return ((system + turns[0][0], turns[0][1]), *turns[1:])


def _unmarked(question: str) -> str:
    """A question without the marker of the image and the blanks around it: one blank stands for all of them."""
    first, *rest = _MARKER.split(question)  # a pattern with the blanks in it takes time with their square
    if not rest:
        return question.strip()
    return " ".join([first.rstrip(), *(part.strip() for part in rest[:-1]), rest[-1].lstrip()]).strip()


def _arrow_rows(path: Path, columns: Mapping[str, str] | None, keep: _Keep | None) -> Rows:
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
                    yield where, {**({"split": split} if split else {}), **record}
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
    asked: Mapping[str, str] | None,
    keep: _Keep | None,
    labels: Mapping[str, list[str]] | None = None,
) -> Rows:
    if not names:
        raise QuestionError(f"{path} holds no row")
    columns = Columns.choose(path, names, asked)
    is_sat = asked is None and set(names) >= _SAT and not _SAT_IMAGES.isdisjoint(names)
    images = Images(base64=path.suffix.lower() == ".tsv", keep=keep)
    return Rows("SAT" if is_sat else "table", _table_rows(columns, rows, images, labels or {}, shuffled=is_sat))


def _table_rows(
    columns: Columns,
    rows: Iterable[tuple[str, lists.Record]],
    images: Images,
    labels: Mapping[str, list[str]],
    *,
    shuffled: bool,
) -> Iterator[Row]:
    """
    Args:
        labels: column -> the names its numbers stand for.
        shuffled: choices in an order drawn from the question's id, for tables whose right one has a place of its own.
    """
    used_ids: set[str] = set()
    label_names = labels.get(columns.by_field["answer"][0])
    for number, (where, row) in enumerate(rows, start=1):
        if isinstance(row, str):
            yield Row(where, problem=row)
            continue
        try:
            record = images.take(columns.value(row, "image"), where)
            choices_value, given = columns.value(row, "choices"), columns.value(row, "answer")
            choices = choices_of(choices_value)
            if isinstance(choices_value, list) and given in choices_value:  # a number among numbers is no place
                given = text_of(given)
            if label_names is not None and isinstance(given, int) and 0 <= given < len(label_names):
                given = label_names[given]
            record["answer"] = answer_of(given, choices)
            record["question"] = _unmarked(text_of(columns.value(row, "question")))
            name = columns.value(row, "id")
            record["id"] = _unique(text_of(where if name in (None, "") else name), number, used_ids)
            if choices:
                texts = tuple(choices.values())
                record["choices"] = shuffle_choices(record["id"], texts) if shuffled else texts
            for field in columns.by_field.keys() - {"image", "choices", "answer", "question", "id"}:
                if (value := columns.value(row, field)) not in (None, ""):
                    record[field] = text_of(value)
            if "split" not in record and isinstance(row.get("split"), str):  # from the name of the file
                record["split"] = row["split"]
        except Skipped as reason:
            yield Row(where, skipped=str(reason))
        except WrongValue as error:
            yield Row(where, problem=str(error))
        else:
            yield Row(where, record)


def _unique(name: str, number: int, used_ids: set[str]) -> str:
    """The id, made unique: a file may repeat ids (LLaVA's do), but ours name results."""
    name = name if name not in used_ids else f"{name}@{number}"
    used_ids.add(name)
    return name


def _vpct_results(folder: Path) -> list[Path]:
    """The results of a folder of VPCT, in order; empty where it is none."""
    return [folder / name for _, name in sorted((int(match[1]), match[0]) for match in _matches(folder, _VPCT))]


def _matches(folder: Path, names: re.Pattern[str]) -> list[re.Match[str]]:
    with os.scandir(folder) as entries:
        found = (match for entry in entries if (match := names.fullmatch(entry.name)))
        first = list(islice(found, limits.MAX_QUESTION_FILES + 1))
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
        own = pictures.get(stem, [])
        image = next((name for name in own if "initial" in name), own[0] if own else None)
        if image is None:
            yield Row(path.name, problem=f"there is no picture {stem}*.png beside it")
            continue
        record = {"id": stem, "image": image, "question": "where will the ball land?", "answer": answer}
        yield Row(
            path.name,
            {**record, "choices": tuple(_BUCKETS.values()), "type": "temporal", "split": "test", "about": "land"},
        )

"""Parquet and Arrow files, and the data sets of Hugging Face made of them. The one door to pyarrow and datasets.

A data set made by `save_to_disk`, or fetched from the Hub by `datasets`, is a folder of Arrow files; both are read here
without it, through pyarrow, and no code of a data set is ever run. Lives here: which files there are, and opening one.
Elsewhere: what is in a column (precompute/inputs/tables.py, train/questions/readers.py).
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..messages import install_extra

SUFFIXES = frozenset({".parquet", ".arrow"})
HUB = "hf:"
_HUB_NAME = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)(?::(\w+))?")


def saved_files(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` made, all splits; None where it is none.

    Raises:
        ConfigError: it is one, and not whole.
    """
    splits, state = folder / "dataset_dict.json", folder / "state.json"
    try:
        if splits.is_file():
            names = [Path(split).name for split in json.loads(splits.read_bytes())["splits"]]
            return [file for name in names for file in saved_files(folder / name) or []]
        if not (state.is_file() and (folder / "dataset_info.json").is_file()):
            return None
        return [folder / Path(file["filename"]).name for file in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder} is not whole: save_to_disk writes other JSON files ({error!r})") from error


def fetch_hub(name: str) -> list[Path]:
    """Fetch a data set, `hf:ORG/NAME` or `hf:ORG/NAME:SPLIT`, as Arrow files in the cache of `datasets`.

    Raises:
        ConfigError: the name is none, `datasets` is not installed, or the data set cannot be fetched.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name} is no data set: write hf:ORG/NAME or hf:ORG/NAME:SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{name} needs the library datasets: {install_extra('datasets')}") from error
    repo, split = match.groups()
    try:
        load: Any = datasets.load_dataset  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        fetched: Any = load(repo, split=split)
        splits: list[Any] = [fetched] if split else list(fetched.values())
        return [Path(file["filename"]) for each in splits for file in each.cache_files]
    except Exception as error:  # the network, the Hub, a builder: each has its own
        raise ConfigError(
            f"the data set {repo}{f', split {split},' if split else ''} cannot be fetched from the Hugging Face Hub: "
            f"{type(error).__name__}: {str(error)[:300]}. Check the name and the network, or save it where there is "
            "one with save_to_disk and name that folder"
        ) from error


def load_pyarrow() -> Any:
    """The library, with its parts for Parquet and computing.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute  # pyright: ignore[reportUnusedImport]
        import pyarrow.parquet  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ConfigError(f"Parquet and Arrow files need pyarrow: {install_extra('datasets')}") from error
    return pyarrow


def read_schema(file: Path) -> Any:
    """The columns of a Parquet or Arrow file and their types; pyarrow's errors where it is neither."""
    pa = load_pyarrow()
    if is_arrow(file):
        with _open_arrow(file) as reader:
            return reader.schema
    with pa.parquet.ParquetFile(file) as table:
        return table.schema_arrow


def is_arrow(file: Path | str) -> bool:
    """Whether a file is named as Arrow, in capitals too; the other format is Parquet."""
    return str(file).lower().endswith(".arrow")


def arrow_batches(file: Path, columns: list[str]) -> Iterator[Any]:
    """Some columns of an Arrow file, batch by batch, mapped and not read; pyarrow's errors where they are damaged.

    Arrow believes what a file says of where its values are: unchecked, one flipped bit ends the process, or shows
    memory that is none of the file's.
    """
    with _open_arrow(file) as reader:
        for batch in reader:
            chosen = batch.select(columns)
            chosen.validate(full=True)
            yield chosen


def _open_arrow(file: Path) -> Any:
    pa = load_pyarrow()
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file)))  # what datasets writes
    except pa.ArrowInvalid:
        whole = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        return pa.RecordBatchReader.from_batches(whole.schema, whole.to_batches())

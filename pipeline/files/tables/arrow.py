"""Parquet and Arrow files, and Hugging Face data sets made of them. Only this file imports pyarrow and datasets.

A data set from `save_to_disk` or from the Hub is a folder of Arrow files. They are read through pyarrow; no code of a
data set is ever run.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...messages import format_bytes, install_extra
from ..hub.transfers import dataset_size
from ..limits import HUB_NOTE_BYTES, MAX_HUB_BYTES, MAX_HUB_FILES, MAX_JSON_BYTES
from ..plain import read_json

SUFFIXES = frozenset({".parquet", ".arrow"})
HUB = "hf:"
_HUB_NAME = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)(?::(\w+))?")


def saved_files(folder: Path) -> list[Path] | None:
    """Return the Arrow files of a `save_to_disk` folder, all splits; None if the folder is something else.

    Raises:
        ConfigError: it is such a folder, but incomplete.
    """
    splits = folder / "dataset_dict.json"
    try:
        if not splits.is_file():
            return _files_of_split(folder)
        names = dict.fromkeys(map(_name, _read_json(splits)["splits"]))
        return [file for name in names for file in _files_of_split(folder / name) or []]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{folder} is incomplete: save_to_disk writes other files ({repr(error)[:300]})") from error


def _files_of_split(folder: Path) -> list[Path] | None:
    state = folder / "state.json"
    if not (state.is_file() and (folder / "dataset_info.json").is_file()):
        return None
    return [folder / _name(file["filename"]) for file in _read_json(state)["_data_files"]]


def _name(path: str) -> str:
    """The last part of a path, which is the name of something in the folder: not of the folder or the one above."""
    name = Path(path).name
    if name in ("", "..") or "\0" in name:
        raise ValueError(f"{path!r} names no file in this folder")
    return name


def _read_json(file: Path) -> Any:
    return read_json(file, MAX_JSON_BYTES)


def fetch_hub(name: str) -> list[Path]:
    """Download a data set, `hf:ORG/NAME` or `hf:ORG/NAME:SPLIT`, and return its Arrow files in the cache of `datasets`.

    Raises:
        ConfigError: the name is malformed, `datasets` is not installed, the data set is too large, or the download
            fails.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name} is not the name of a data set: write hf:ORG/NAME or hf:ORG/NAME:SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{name} needs the library datasets: {install_extra('datasets')}") from error
    repo, split = match.groups()
    if Path(repo).exists():  # `datasets` would read it, and whatever addresses its README names
        raise ConfigError(
            f"{name} is ambiguous: there is a folder {repo} here. Run the command from another folder, or name the "
            f"folder itself, ./{repo}"
        )
    _check_size(repo)
    try:
        load: Any = datasets.load_dataset  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        fetched: Any = load(repo, split=split)
        splits: list[Any] = [fetched] if split else list(fetched.values())
        return [Path(file["filename"]) for part in splits for file in part.cache_files]
    except Exception as error:  # network, Hub and builders raise many types
        raise ConfigError(
            f"the data set {repo}{f', split {split},' if split else ''} cannot be fetched from the Hugging Face Hub: "
            f"{type(error).__name__}: {str(error)[:300]}. Check the name and the network, or save the data set with "
            "save_to_disk on a machine with a network, and pass that folder"
        ) from error


def _check_size(repo: str) -> None:
    """Say what a download may take, before it begins; without a network the cache of `datasets` is asked alone.

    Raises:
        ConfigError: it is too much.
    """
    if (size := dataset_size(repo)) is None:
        return
    files, total = size
    if files > MAX_HUB_FILES or total > MAX_HUB_BYTES:
        raise ConfigError(
            f"{HUB}{repo} has {files:,} files of {format_bytes(total)}; the limits are {MAX_HUB_FILES:,} files and "
            f"{format_bytes(MAX_HUB_BYTES)}. Download the part you need with `hf download`, and name that folder"
        )
    if total >= HUB_NOTE_BYTES:
        from ...progress import Progress  # which the process of tables does without

        Progress.to_logger().warn(
            f"{HUB}{repo} has {files:,} files of {format_bytes(total)}; what is not in the cache of datasets is "
            "downloaded now, and takes about twice the room there"
        )


def load_pyarrow() -> Any:
    """Import pyarrow with its `parquet` and `compute` parts, and return it.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute  # pyright: ignore[reportUnusedImport]
        import pyarrow.parquet  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ConfigError(f"Parquet and Arrow files need pyarrow: {install_extra('datasets')}") from error
    return pyarrow


def is_arrow(file: Path | str) -> bool:
    """Whether the file name ends in `.arrow`, in any case; all other tables are Parquet."""
    return str(file).lower().endswith(".arrow")


def arrow_schema(file: Path) -> Any:
    """Return the pyarrow schema of an Arrow file. Raises pyarrow's errors if it is none."""
    with _open_arrow(file) as reader:
        return reader.schema


def arrow_batches(file: Path, columns: list[str]) -> Iterator[Any]:
    """Yield some columns of an Arrow file, batch by batch, memory-mapped. Raises pyarrow's errors if they are damaged.

    Arrow trusts the offsets in a file. Without validation one flipped bit can crash the process, or expose memory
    outside the file. Only these columns are unpacked, where the file is compressed.
    """
    names = arrow_schema(file).names
    with _open_arrow(file, [names.index(name) for name in columns]) as reader:
        is_stream = hasattr(reader, "read_next_batch")
        for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
            chosen = batch.select(columns)
            chosen.validate(full=True)
            yield chosen


def _open_arrow(file: Path, fields: list[int] | None = None) -> Any:
    pa = load_pyarrow()
    options = pa.ipc.IpcReadOptions(included_fields=fields or [], use_threads=False)
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file)), options=options)  # what datasets writes
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(file)), options=options)

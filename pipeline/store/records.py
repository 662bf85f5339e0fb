"""The commit record, which makes a shard visible: its fields, its checks, and reading it."""

import errno
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ..errors import DamagedShardError, StoreError
from ..files.file_system import reading_advice
from ..files.places.place import Place
from ..files.plain import limited_json
from ..files.sealed import unseal
from ..latents.keys import KEY_DIGITS
from ..messages import command, list_problems
from .formats import StoreVersion

FORMAT: StoreVersion = 2
"""Of new stores, and the highest that this version reads."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Checksums = Annotated[str, Field(pattern=r"^([0-9a-f]{8})+$")]

_SEAL_BYTES = 67
"""The end of a record: its seal, 64 digits, and `"}` and a line feed."""
_SEAL_START = re.compile(rb"[0-9a-f]{16}")
_LONGEST_NAME = len("999999999.json")
RECORD_BYTES_OF_ROW = KEY_DIGITS + 3
"""Of a row's key; each checksum of its frames takes 8 more."""
RECORD_LIMIT_BYTES = 64 * 2**20
_MAX_VALUES = 2**22
"""Its keys, of which 1.9 million have room in that size, and what its facts hold."""


class ShardRecord(BaseModel):
    """What one committed shard holds: the truth about its existence, rows and bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, cache_strings="keys")  # the keys of all differ

    format: StoreVersion
    shard: Annotated[int, Field(ge=0, lt=10**9)]
    recipe_id: Sha256
    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    """In row order, each once."""
    rows: int
    bytes: Annotated[int, Field(gt=0)]
    """Size of the payload file."""
    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sha256: Sha256
    frames_crc32c: _Checksums | None = None
    """Eight digits a frame, of all frames of all rows: what a read of any prefix is checked against. They tie each key
    to its bytes, too: a payload of another store, copied over this one, may have valid checksums of its own and the
    same size, and only these tell them apart on every read."""
    first_frames_crc32c: _Checksums | None = None
    """In their place in format 1: eight digits a row."""
    created: str
    """UTC, for people; nothing is decided by it."""
    facts: dict[str, JsonValue]
    """What the worker wants remembered: host, seconds, batch, versions."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stated, other = "frames_crc32c", "first_frames_crc32c"
        if self.format == 1:
            stated, other = other, stated
        checksums: str | None = getattr(self, stated)
        if checksums is None or getattr(self, other) is not None:
            raise ValueError(f"a record of format {self.format} has {stated}, and no {other}")
        if not self.rows == len(self.keys) == len(set(self.keys)):
            raise ValueError("rows and distinct keys differ in number")
        if len(checksums) % (8 * self.rows) or (self.format == 1 and len(checksums) != 8 * self.rows):
            raise ValueError(f"rows and {stated} differ in number")
        # all digits of all keys at once: a million keys are checked each time a store opens
        if {*map(len, self.keys)} != {KEY_DIGITS} or "".join(self.keys).encode().translate(None, b"0123456789abcdef"):
            raise ValueError(f"a key is not {KEY_DIGITS} hexadecimal digits")
        if not _has_usual_numbers(self.facts):
            raise ValueError("facts hold a number that is not finite, or has more than 64 bits")
        return self

    def checksums(self) -> NDArray[np.uint32]:
        """(rows, F): the CRC-32C of the first F frames of each row, 1 in format 1, else all."""
        digits = self.frames_crc32c or self.first_frames_crc32c or ""
        return np.frombuffer(bytes.fromhex(digits), ">u4").astype(np.uint32).reshape(self.rows, -1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, of its own format."""
        return self.model_dump(mode="json", exclude={"first_frames_crc32c" if self.format > 1 else "frames_crc32c"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Rows that one worker rolled out together, wherever they were copied to since."""

    sha256: str
    """Of the payload they were first committed in."""
    rows: float
    """How many of them are meant."""
    of_rows: int
    created: str
    facts: Mapping[str, JsonValue]

    @property
    def seconds(self) -> dict[str, float]:
        """The worker's wall seconds for these rows by phase, as far as they are recorded."""
        recorded = self.facts.get("seconds")
        if not isinstance(recorded, dict):
            return {}
        return {
            phase: value * self.rows / self.of_rows
            for phase, value in recorded.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    @property
    def work_seconds(self) -> float | None:
        """The worker's wall seconds of rolling out or encoding these rows; None if not recorded."""
        return self.seconds.get("rollout", self.seconds.get("encode"))  # a record names the work by its kind


def origins_of(record: ShardRecord) -> list[Origin]:
    """Who rolled out the rows of a shard: its own worker, or, where it was copied, those of the shards it came from."""
    copied = record.facts.get("copied_from")
    if not isinstance(copied, list):
        return [Origin(record.sha256, record.rows, record.rows, record.created, record.facts)]
    origins: list[Origin] = []
    for part in copied:
        match part:
            case {
                "sha256": str(sha256),
                "rows": int(rows) | float(rows),
                "of_rows": int(of_rows),
                "created": str(created),
                "facts": dict(facts),
            } if of_rows > 0 and 0 < rows < record.rows + 1:
                origins.append(Origin(sha256, rows, of_rows, created, facts))
            case _:  # of another version; who made these rows is not known then
                continue
    return origins


def stated_world(origins: Iterable[Origin]) -> tuple[str | None, float | None]:
    """Name and frames per second of the world model, where a record says so."""
    for origin in origins:
        match origin.facts.get("world"):
            case {"name": str(name), "fps": int(fps) | float(fps)} if fps > 0:
                return name, float(fps)
            case _:
                continue
    return None, None


def _has_usual_numbers(value: JsonValue) -> bool:
    """Whether one can reckon with all numbers in it: a stranger may have sealed 1e999, or an integer of 400 digits."""
    match value:
        case float():
            return math.isfinite(value)
        case int():
            return -(2**63) <= value < 2**63
        case list():
            return all(map(_has_usual_numbers, value))
        case dict():
            return all(map(_has_usual_numbers, value.values()))
        case _:
            return True


def record_number(name: str) -> int | None:
    """The shard a file in commits/ is the record of; None where the name is not a record's."""
    digits = name.removesuffix(".json")
    if not digits.isdecimal() or not digits.isascii() or not len(digits) + 5 == len(name) <= _LONGEST_NAME:
        return None  # not by an expression: at 50,000 shards each is looked at whenever the folder is listed
    return int(digits) if digits[0] != "0" or digits == "0" else None


def record_name(shard: int) -> str:
    """Where the record of a shard belongs, from the store."""
    return f"commits/{shard}.json"


def record_path(store: Place, shard: int) -> Path | str:
    """Where the record of a shard belongs: a path, or a URL."""
    return store.location(record_name(shard))


def read_record(store: Place, number: int, recipe_id: str) -> ShardRecord:
    """One record, checked: seal, types, number and recipe.

    Raises:
        DamagedShardError: the file is not what was committed.
        FileNotFoundError: somebody moved it away.
        StoreError: it cannot be read by this user, or now.
    """
    return read_sealed(store, number, recipe_id)[0]


def record_seal(store: Place, number: int) -> int | None:
    """The first 64 bits of the seal at the end of a record, whose content is not read.

    Returns:
        None where there is no such file inside the store, or no seal at its end.
    """
    try:
        return seal_of(store.read_end(record_name(number), _SEAL_BYTES))
    except (OSError, ValueError):
        return None


def seal_of(text: bytes) -> int | None:
    """The first 64 bits of the seal at the end of a record; None where there is none."""
    digits = text[-_SEAL_BYTES:][:16]
    return int(digits, 16) if _SEAL_START.fullmatch(digits) else None


def read_sealed(store: Place, number: int, recipe_id: str) -> tuple[ShardRecord, int]:
    """`read_record`, and the first 64 bits of its seal."""
    path = record_path(store, number)
    try:
        text = limited_json(store.read(record_name(number), RECORD_LIMIT_BYTES), most_values=_MAX_VALUES)
        record = ShardRecord.model_validate_json(unseal(text))
        if record.shard != number:
            raise ValueError(f"it is the record of shard {record.shard}")
        if record.recipe_id != recipe_id:
            raise ValueError(f"it is of recipe {record.recipe_id[:12]}, the store of {recipe_id[:12]}")
    except ValidationError as error:
        raise damaged(path, list_problems(error)) from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        if is_gone(error, path):
            raise
        raise unreadable(path, number, error) from error
    return record, seal_of(text) or 0


def is_gone(error: OSError, location: Path | str) -> bool:
    """Whether there is no such file: somebody moved it away. A link that leads nowhere is still there."""
    return isinstance(error, FileNotFoundError) and not (isinstance(location, Path) and location.is_symlink())


def damaged(path: Path | str, problem: str) -> DamagedShardError:
    """The error for a file in a folder of the store that is not what was written, and how to heal it."""
    store = path.parent.parent if isinstance(path, Path) else path.rsplit("/", 2)[0]
    repair = command("cache", "repair", store, "--apply")
    return DamagedShardError(
        f"{path}: {problem}. It is damaged or foreign. `{repair}` moves it to "
        "lost+found; `theworld precompute` with the same flags then makes again what is missing"
    )


_DAMAGE = {
    *(errno.ENOENT, errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO),
    getattr(errno, "EUCLEAN", errno.EIO),  # macOS has none
}


def unreadable(path: Path | str, shard: int | None, error: OSError) -> StoreError:
    """The error for a file or folder that cannot be opened or read: damage, or only rights and limits of who reads."""
    if error.errno in _DAMAGE or isinstance(error, FileNotFoundError):
        return damaged(path, error.strerror or str(error))
    shard_note = "" if shard is None else f" (shard {shard})"
    return StoreError(
        f"{path}{shard_note} cannot be read: {error.strerror or error}. The file may well be sound. "
        f"{reading_advice(error, Path(path))}, then run the same command again"
    )


def stated_fps(store: Place, numbers: Iterable[int], recipe_id: str) -> float | None:
    """Video frames per second of the world model, as the first readable record of some says; None where it does not."""
    for number in numbers:
        with suppress(StoreError, FileNotFoundError):
            return stated_world(origins_of(read_record(store, number, recipe_id)))[1]
    return None

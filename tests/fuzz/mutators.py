"""Mutations of files: of any bytes, and of what JSON, safetensors, tar, tables of text and TOML are made of.

Each is a pure function of its random generator and the files, so an input can be made again from its seed.
"""

import hashlib
import json
import math
import random
import struct
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

MAX_BYTES = 2**18
"""No input grows beyond this or twice its file: large ones are tested for themselves, and take the time of many."""

_NUMBERS = (0, 1, 2, 3, 255, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "../outside/treasure",
        "../../outside/treasure",
        "/etc/passwd",
        "/dev/zero",
        "~nobody",
        "hf:a/b",
        "s3://a/b",
    ),
    *("\u202egnp.exe", "\u2066x\u2069", "\ufeff", "\u0130", "é" * 300, "\U0001f600", "\x1b[2J", "%s%n{0}", "a" * 5000),
    *("NaN", "null", "true", "1e400", "-0", "0x10", "١", "²", "[]", "{}", '"', "'", "<image>", "<image>" * 50),
    *("\ud800", "\udfff x", "\udc80", "A", "(B)", "auto_map", "../x.safetensors", "C:\\x", "con", "." * 300, "_" * 200),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 5e-324, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *(float("nan"), float("inf"), -float("inf"), [], {}, [[]], [None], {"": None}, [0] * 100, ["a", 1, None]),
    *({"a": {"b": [1, {"c": None}]}}, [[[[1]]]], {"bytes": "x", "path": None}, {"bytes": [1], "path": 3}),
)


def mutate(draw: random.Random, name: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """A mutation of a file, by its name: half of them of its bytes, half of its structure."""
    kind = PurePosixPath(name).suffix.lower()
    structured = _OF_KIND.get(kind)
    mutated = content
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if structured is None or draw.random() < 0.4:
            mutated = mutate_bytes(draw, mutated, others)
        else:
            mutated = structured(draw, mutated)
    return mutated[: max(MAX_BYTES, 2 * len(content))]


def mutate_bytes(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes changed, removed, repeated, cut off, or spliced with those of another file."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(data)) if data else 0
        early = draw.randrange(min(len(data), 200)) if data else 0  # where headers are
        match draw.randrange(12):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                data[early : early + 1] = bytes([draw.randrange(256)])
            case 2 if data:
                data[at] ^= 1 << draw.randrange(8)
            case 3:
                del data[at:]
            case 4:
                del data[at : at + draw.randrange(1, 64)]
            case 5:
                data[at:at] = data[early : early + draw.randrange(1, 512)]
            case 6:
                other = draw.choice(others)
                data[at:] = other[draw.randrange(len(other)) :] if other else b""
            case 7:  # a number in a header that lies
                size, order = draw.choice((1, 2, 4, 8)), draw.choice(("big", "little"))
                where = draw.choice((early, max(0, len(data) - draw.randrange(1, 64))))  # Parquet has it at its end
                data[where : where + size] = (draw.choice(_NUMBERS) % 256**size).to_bytes(size, order)
            case 8:
                data[early:early] = draw.randbytes(draw.randrange(1, 32))
            case 9:
                data[at:at] = draw.choice(_TEXTS).encode("utf-8", "surrogatepass")
            case 10:
                data[at:at] = draw.choice((b"\0", b"\xff", b"\n", b"\r", b'"', b"[", b"{", b",", b"\xef\xbb\xbf")) * (
                    draw.choice((1, 2, 3000))
                )
            case 11:
                other = draw.choice(others)
                start = draw.randrange(len(other)) if other else 0
                data[at:at] = other[start : start + draw.randrange(1, 256)]
    return bytes(data)


def mutate_json(draw: random.Random, content: bytes) -> bytes:
    """A JSON value with other values, types, keys or depth; where it is none, its bytes are mutated."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(draw, content, [content])
    return _dump(draw, mutate_value(draw, value))


def mutate_value(draw: random.Random, value: Any) -> Any:
    """A JSON value with one place in it changed."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo and len(places) < 5000:
        inner = todo.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            places.append((inner, key))
            todo.append(inner[key])
    if not places or draw.random() < 0.02:
        return draw.choice(_VALUES)
    holder, key = draw.choice(places)
    other_holder, other_key = draw.choice(places)
    match draw.randrange(12):
        case 0 | 1 | 2:
            holder[key] = _copy(draw.choice(_VALUES))
        case 3:
            holder[key] = draw.choice(_TEXTS)
        case 4:
            holder[key] = draw.choice((1, -1)) * draw.choice(_NUMBERS) + draw.choice((0, 0, 1, -1))
        case 5:
            del holder[key]
        case 6:
            holder[key] = _copy(other_holder[other_key])
        case 7:
            _add(draw, holder, _copy(draw.choice(_VALUES)))
        case 8 if isinstance(holder, dict):
            holder[draw.choice((draw.choice(_TEXTS), str(other_key)))] = holder.pop(key)
        case 9:
            holder[key] = _near(draw, holder[key])
        case 10:
            holder[key] = [holder[key]] if draw.random() < 0.5 else {"value": holder[key]}
        case 11:
            deep: Any = holder[key]
            for _ in range(draw.choice((2, 30, 90))):
                deep = [deep]
            holder[key] = deep
        case _:
            holder[key] = _copy(draw.choice(_VALUES))
    return value


def _near(draw: random.Random, value: Any) -> Any:
    """A value of the same type that is not this one, or of a type that looks like it."""
    if isinstance(value, bool):
        return draw.choice((not value, int(value), str(value)))
    if isinstance(value, int | float):
        return draw.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value * 10**6, [value]))
    if isinstance(value, str):
        if value.startswith(("{", "[")) and draw.random() < 0.8:  # JSON in JSON, as in a checkpoint's metadata
            with suppress(ValueError, RecursionError):
                inner = mutate_value(draw, json.loads(value))
                return draw.choice((json.dumps(inner), json.dumps(inner), "[" * 50_000, value[:-1]))
        at = draw.randrange(len(value) + 1)
        return draw.choice((value[:at], value + value, value[:at] + draw.choice(_TEXTS) + value[at:], value.upper()))
    if isinstance(value, list):
        return draw.choice((value[:-1], value + value[:1], value[::-1], value * 3, dict(enumerate(map(str, value)))))
    if isinstance(value, dict):
        return draw.choice((list(value), list(value.values()), {}, dict(list(value.items())[:-1])))
    return draw.choice(_VALUES)


def _add(draw: random.Random, holder: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[draw.choice(_TEXTS)] = value
    else:
        holder.insert(draw.randrange(len(holder) + 1), value)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _dump(draw: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
    match draw.randrange(40):
        case 0:  # deeper than any parser goes
            text = "[" * 100_000 + text
        case 1:
            text = text.replace(":", ":" + '{"a":' * 5000, 1)
        case 2:  # an integer of more digits than Python converts
            text = text.replace(":", ": " + "9" * 5000 + ' ,"x":', 1)
        case 3 if text.startswith("{"):  # a key twice
            text = text[:-1] + "," + text[1:]
        case 4:
            text = "\ufeff" + text
    return text.encode("utf-8", "surrogatepass")


def mutate_lines(draw: random.Random, content: bytes) -> bytes:
    """JSON lines: one is mutated, repeated, removed or moved."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    match draw.randrange(8):
        case 0:
            lines[at:at] = [lines[draw.randrange(len(lines))]] * draw.choice((1, 2, 50))
        case 1:
            del lines[at]
        case 2:
            draw.shuffle(lines)
        case _:
            lines[at] = mutate_json(draw, lines[at]).replace(b"\n", b" ")
    return draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\n\n")).join(lines)


def mutate_safetensors(draw: random.Random, content: bytes) -> bytes:
    """The header of a safetensors file: its length, names, dtypes, shapes, offsets and metadata."""
    if len(content) < 8:
        return mutate_bytes(draw, content, [content])
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    try:
        value = json.loads(header)
    except ValueError:
        return mutate_bytes(draw, content, [content])
    if not isinstance(value, dict):
        return mutate_bytes(draw, content, [content])
    names = [name for name in value if name != "__metadata__" and isinstance(value[name], dict)]
    choice = draw.randrange(12)
    if choice > 9 and names:
        return _another_tensor(draw, value, data, draw.choice(names)) or mutate_bytes(draw, content, [content])
    if choice == 0:
        return draw.choice(_NUMBERS).to_bytes(8, "little") + content[8:]
    if choice == 1:
        value = mutate_value(draw, value)
    elif choice == 2 and data:  # only the numbers in it
        at = draw.randrange(len(data))
        number = draw.choice((b"\0" * 8, b"\xff" * 8, b"\0\0\x80\x7f" * 2, draw.randbytes(8)))
        data = data[:at] + number[: len(data) - at] + data[at + 8 :]
    elif names:
        name = draw.choice(names)
        facts = value[name]
        if choice == 3:
            facts["dtype"] = draw.choice(
                (
                    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64"),
                    "F8_E5M2",
                    "F8_E4M3",
                    "F8_E8M0",
                    "F4",
                    "F6_E2M3",
                    "C64",
                    "Q8",
                    "",
                )
            )
        elif choice in (4, 5):  # the same bytes in another shape, so that nothing but the shape is wrong
            facts.update(_reshaped(draw, facts))
        elif choice == 6:
            del value[name]
        elif choice == 7:
            value[draw.choice((*_TEXTS, *names))] = value.pop(name)
        elif choice == 8:
            value = {**value, draw.choice(_TEXTS): {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}}
        else:
            value["__metadata__"] = mutate_value(draw, value.get("__metadata__") or {"format": "pt"})
    try:
        text = json.dumps(value).encode()
    except ValueError:
        text = header
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _another_tensor(draw: random.Random, header: dict[str, Any], data: bytes, name: str) -> bytes:
    """A whole file with one tensor cut to a scalar, to nothing or to its first row; empty where it is no such file."""
    parts: dict[str, tuple[dict[str, Any], bytes]] = {}
    try:
        for key, facts in header.items():
            if key != "__metadata__":
                start, end = facts["data_offsets"]
                parts[key] = (facts, data[start:end])
        facts, content = parts[name]
        count = math.prod(facts["shape"])
        size = len(content) // count
        shape = draw.choice(([], [0], [0, *facts["shape"][1:]], [1, *facts["shape"][1:]], [*facts["shape"], 0]))
        parts[name] = ({**facts, "shape": shape}, content[: size * math.prod(shape)])
        at, rebuilt = 0, {key: value for key, value in header.items() if key == "__metadata__"}
        for key, (facts, content) in parts.items():
            rebuilt[key] = {**facts, "data_offsets": [at, at + len(content)]}
            at += len(content)
    except (ValueError, TypeError, KeyError, ArithmeticError, MemoryError):
        return b""
    text = json.dumps(rebuilt).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(content for _, content in parts.values())


def _reshaped(draw: random.Random, facts: dict[str, Any]) -> dict[str, Any]:
    shape, dtype = facts.get("shape"), facts.get("dtype")
    if not (isinstance(shape, list) and all(isinstance(side, int) for side in shape)):
        return {}
    count = 1
    for side in shape:
        count *= side
    shapes = [[count], [1, count], [count, 1], [1, 1, 1, count], [*shape, 1], [1, *shape], shape[::-1]]
    if count == 1:
        shapes.append([])
    offsets = facts.get("data_offsets")
    if dtype in ("F32", "I32", "U32") and isinstance(offsets, list):  # twice as many of half the size
        shapes.append([*shape[:-1], shape[-1] * 2] if shape else shape)
        if shapes[-1] and draw.random() < 0.3:
            return {"shape": shapes[-1], "dtype": draw.choice(("F16", "BF16", "I16", "U16"))}
    return {"shape": draw.choice(shapes)}


def mutate_tar(draw: random.Random, content: bytes) -> bytes:
    """Headers of a tar with fields that lie, and the right checksum."""
    data = bytearray(content)
    at = 512 * draw.randrange(max(1, len(data) // 512))
    block = data[at : at + 512].ljust(512, b"\0")
    numbers = (b"77777777777\0", b"00000000000\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b" 12 \0")
    match draw.randrange(8):
        case 0:
            block[124:136] = draw.choice((*numbers, b"\x80\0\0\0" + struct.pack(">Q", draw.choice(_NUMBERS)))).ljust(12)
        case 1:
            block[156] = draw.choice(b"01234567xgLKSDNMVX\0\xff")
        case 2:
            name = draw.choice(_TEXTS).encode("utf-8", "surrogatepass")[:100]
            block[:100] = name.ljust(100, b"\0")
        case 3:  # an extended header in front
            text = draw.choice(_TEXTS)[:400]
            records = _pax(draw.choice(("path", "size", "GNU.sparse.major", "linkpath")), text)
            block = bytearray(_tar_header("x", draw.choice((b"x", b"g", b"X", b"L", b"K")), len(records)))
            block += records.ljust(-(-len(records) // 512) * 512, b"\0")
            data[at:at] = bytes(block) * draw.choice((1, 1, 2, 20))
            return bytes(data)
        case 4:
            block[257:265] = draw.choice((b"ustar\00000", b"ustar  \0", b"\0" * 8, b"ustar\0\xff\xff"))
        case 5:
            block[345:500] = draw.randbytes(155)
        case 6:
            data[at:at] = data[512 * draw.randrange(max(1, len(data) // 512)) :][: 512 * draw.choice((1, 2, 4))]
            return bytes(data)
        case 7:
            field = draw.choice((slice(100, 108), slice(108, 116), slice(116, 124), slice(136, 148)))
            block[field] = draw.choice(numbers)[: field.stop - field.start].ljust(field.stop - field.start, b"\0")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block[:512])
    data[at : at + 512] = block
    return bytes(data)


def _tar_header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def _pax(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode("utf-8", "surrogatepass")
    length = len(body) + 2
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def mutate_text(draw: random.Random, content: bytes) -> bytes:
    """A table of text or a TOML file: words, marks and lines replaced by others and by hostile ones."""
    text = content.decode("utf-8", "surrogateescape")
    marks = [",", "\t", '"', '""', "\n", "\r", "\r\n", "'''", "[", "]", "[[a]]", "=", ".", "#", "{", "}", "inf", "1979"]
    at = draw.randrange(len(text) + 1)
    piece = draw.choice((*marks, *_TEXTS))
    match draw.randrange(5):
        case 0:
            text = text[:at] + piece + text[at:]
        case 1:
            text = text[:at] + piece * draw.choice((2, 100, 3000)) + text[at:]
        case 2:
            words = text.split(",")
            words[draw.randrange(len(words))] = piece
            text = ",".join(words)
        case 3:
            lines = text.split("\n")
            lines[draw.randrange(len(lines))] = piece
            text = "\n".join(lines)
        case 4:
            values = ["=" + str(value) for value in _VALUES]
            text = text.replace("=", draw.choice(values) + "\nx=", 1) if "=" in text else text + piece
    return text.encode("utf-8", "surrogatepass")


_OF_KIND: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": mutate_json,
    ".jsonl": mutate_lines,
    ".safetensors": mutate_safetensors,
    ".tar": mutate_tar,
    ".csv": mutate_text,
    ".tsv": mutate_text,
    ".toml": mutate_text,
    ".txt": mutate_text,
}


def by_digest(name: str, content: bytes) -> str:
    """The name of a file that is called after the SHA-256 of its content."""
    path = PurePosixPath(name)
    return str(path.with_name(hashlib.sha256(content).hexdigest() + path.suffix))

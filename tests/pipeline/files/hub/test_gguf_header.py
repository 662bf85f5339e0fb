"""A GGUF file's counts and lengths are a stranger's: none is believed, and none costs time or memory."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from theworld.pipeline.files.hub.gguf_header import check_gguf

HUGE = 2**60


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def setting(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, *dimensions: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, 0, 0)


def gguf(
    settings: list[bytes], tensors: list[bytes], *, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    stated = counts or (len(tensors), len(settings))
    return b"GGUF" + struct.pack("<IQQ", version, *stated) + b"".join(settings) + b"".join(tensors)


WORDS = setting("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
SCORES = setting("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 2) + bytes(8))
NAME = setting("general.architecture", 8, text("gemma3"))
LAYERS = setting("gemma3.block_count", 4, struct.pack("<I", 2))


def test_a_whole_header_passes(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    for version in (2, 3):
        content = gguf([NAME, LAYERS, WORDS, SCORES], [tensor("token_embd.weight", 4, 8)], version=version)
        file.write_bytes(content + bytes(128))
        check_gguf(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"GGML" + bytes(100), "no GGUF file"),
        (gguf([], [], version=1), "no GGUF file"),
        (gguf([], [], counts=(HUGE, 0)), "entries"),
        (gguf([], [], counts=(0, HUGE)), "entries"),
        (gguf([], [], counts=(60_000, 0)), "cut short"),
        (gguf([struct.pack("<Q", HUGE)], [], counts=(0, 1)), "beyond the end"),
        (gguf([setting("a", 8, struct.pack("<Q", 2**63))], []), "beyond the end"),
        (gguf([setting("a", 9, struct.pack("<IQ", 6, HUGE))], []), "beyond the end"),
        (gguf([setting("a", 9, struct.pack("<IQ", 8, HUGE))], []), "a list of"),
        (gguf([setting("a", 9, struct.pack("<IQ", 9, 2))], []), "type 9"),
        (gguf([setting("a", 77, b"")], []), "type 77"),
        (gguf([], [tensor("a", 2**20, 2**20)]), "weights"),
        (gguf([], [text("a") + struct.pack("<I", 2**31)]), "entries"),
        (gguf([NAME], [])[:-1], "beyond the end"),
    ],
)
def test_a_header_that_states_more_than_the_file_holds_is_refused_at_once(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    before = time.process_time()
    with pytest.raises(ValueError, match=rf"x\.gguf.*{reason}"):
        check_gguf(file)
    assert time.process_time() - before < 1

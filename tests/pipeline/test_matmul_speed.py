"""The speed of a device is measured once, and again where torch, driver or threads are others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from theworld.pipeline import matmul_speed
from theworld.pipeline.matmul_speed import emulates_bfloat16, matmul_speeds


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(matmul_speed, "_ROUNDS", 1)
    monkeypatch.setattr(matmul_speed, "_CPU_SIZE", 64)
    return tmp_path / "theworld" / "speeds.json"


def test_a_device_is_measured_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = matmul_speeds("cpu")
    assert set(first) == {"bfloat16", "float32"}
    assert all(speed > 1e6 for speed in first.values())
    [name] = json.loads(own.read_text())
    assert f"torch {torch.__version__}" in name
    monkeypatch.setattr(matmul_speed, "measure", lambda _: pytest.fail("measured again"))
    assert matmul_speeds("cpu") == first
    monkeypatch.setattr(torch, "__version__", "99.0")
    monkeypatch.setattr(matmul_speed, "measure", lambda _: {"bfloat16": 1.0, "float32": 2.0})
    assert matmul_speeds("cpu") == {"bfloat16": 1.0, "float32": 2.0}
    assert len(json.loads(own.read_text())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "nonsense", '{"KEY": {"float32": 1e9}}', '{"KEY": 7}',
        '{"KEY": {"bfloat16": -1.0, "float32": "x"}}',
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_measured_anew(own: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"bfloat16": 3.0, "float32": 2.0}
    monkeypatch.setattr(matmul_speed, "measure", lambda _: measured)
    own.parent.mkdir()
    own.write_text(content.replace("KEY", matmul_speed._key("cpu")))
    assert matmul_speeds("cpu") == measured
    assert json.loads(own.read_text())[matmul_speed._key("cpu")] == measured


def test_a_cpu_whose_bfloat16_is_slower_than_float32_emulates_it() -> None:
    assert emulates_bfloat16({"bfloat16": 5e9, "float32": 60e9})
    assert not emulates_bfloat16({"bfloat16": 200e9, "float32": 100e9})
    assert not emulates_bfloat16({})


@pytest.mark.slow
def test_a_process_of_its_own_answers_as_this_one_does_and_a_device_that_is_not_there_has_no_speed() -> None:
    assert matmul_speed._in_a_process("cpu").keys() == {"bfloat16", "float32"}
    assert matmul_speed._in_a_process("no-such-device") == {}

"""Mutated files through every reader of the package: each is read, or refused in words, and harms nothing.

FUZZ_INPUTS=1000000    how many, over all readers; `make faults` sets it, and CI's part is small
FAULT_SEED=1           other inputs
FUZZ_READER=tars       only the readers whose name has this in it
FUZZ_FINDINGS=folder   where inputs that are findings are kept, for
FUZZ_REPLAY=file       which feeds one of them again
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import ConfigError

from ..faults.harness import SEED, in_child
from .harness import Finding, Tally, draw_input, fuzz, replay, save, shares
from .readers import Reader, readers
from .seeds import Case, Seeds

INPUTS = int(os.environ.get("FUZZ_INPUTS", "2500"))
ONLY = os.environ.get("FUZZ_READER", "")
FINDINGS = Path(os.environ.get("FUZZ_FINDINGS", "build/fuzz"))
REPLAY = os.environ.get("FUZZ_REPLAY", "")
KIND = Case({"x.json": b'{"a": [1, "b"]}'}, ("x.json",))


@pytest.mark.slow
@pytest.mark.skipif(bool(REPLAY), reason="one input is fed again")
def test_every_reader_takes_mutated_files_or_refuses_them_in_words(
    seeds: Seeds, scratch: Path, figure: Callable[[str], None]
) -> None:
    began, found, cpu_s = time.monotonic(), list[Finding](), 0.0
    total = 0
    for reader, inputs in shares(readers(seeds), INPUTS):
        if ONLY not in reader.name:
            continue
        tally = fuzz(reader, reader.cases(seeds), range(inputs), seed=SEED, scratch=scratch)
        figure(line_of(reader, tally))
        found += tally.findings
        total, cpu_s = total + tally.inputs, cpu_s + tally.cpu_s
    figure(
        f"{total:,} mutated files (seed {SEED}) in {time.monotonic() - began:.0f} s, {cpu_s:.0f} s of CPU, "
        f"{len(found)} findings"
    )
    kept = {finding.kind: finding for finding in reversed(found)}
    assert not kept, "\n".join(
        f"{kind}: {finding.what}\n    again with: FUZZ_REPLAY={save(finding, FINDINGS)}"
        for kind, finding in kept.items()
    )


@pytest.mark.skipif(not REPLAY, reason="FUZZ_REPLAY names no finding")
def test_a_finding_is_fed_again(seeds: Seeds, scratch: Path) -> None:
    outcome = ""

    def feed() -> None:
        outcome = replay(readers(seeds), lambda reader: reader.cases(seeds), Path(REPLAY), scratch)
        assert not outcome.startswith("finding"), outcome

    in_child(feed)
    assert not outcome


def line_of(reader: Reader, tally: Tally) -> str:
    outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.most_common(4))
    return (
        f"{reader.name}: {tally.inputs:,} inputs, {1000 * tally.cpu_s / max(1, tally.inputs):.1f} ms each, slowest "
        f"{1000 * tally.slowest_s:.0f} ms: {outcomes}"
    )


# The harness notices what it should: each of these readers does one thing that no reader may.


def raises_another_error(folder: Path) -> None:
    raise KeyError(folder)


def takes_too_long(folder: Path) -> None:
    while folder:
        pass


def takes_memory(folder: Path) -> None:
    assert len(bytearray(2**32)) > len(str(folder))


def ends_the_process(folder: Path) -> None:
    os.kill(os.getpid(), 11 if folder else 0)


def writes_elsewhere(folder: Path) -> None:
    (folder.parent / "left behind").write_bytes(b"")


def swallows_what_is_forbidden(folder: Path) -> None:
    try:
        (folder / "more").write_bytes(b"")
    except BaseException as error:
        raise ConfigError("in words") from error


def reads_a_secret(folder: Path) -> None:
    (folder.parent / "outside" / "treasure").read_bytes()


def connects(folder: Path) -> None:
    import socket

    with socket.socket() as other:
        other.connect(("127.0.0.1", 1 if folder else 2))


def starts_a_process(folder: Path) -> None:
    import subprocess

    subprocess.run(["true"], check=False, cwd=folder)


def leaves_something(_: Path) -> None:
    import tempfile

    tempfile.mkdtemp()


def writes_a_book(_: Path) -> None:
    raise ConfigError("word " * 10_000)


NOTICED: dict[str, Callable[[Path], Any]] = {
    "KeyError": raises_another_error,
    "s of CPU": takes_too_long,
    "MemoryError": takes_memory,
    "ended its process: SIGSEGV": ends_the_process,
    "a write: open": writes_elsewhere,
    "a write: open of": swallows_what_is_forbidden,
    "a secret was read": reads_a_secret,
    "a connection": connects,
    "a process": starts_a_process,
    "left in the temporary folder": leaves_something,
    "as long as a book": writes_a_book,
}


@pytest.mark.parametrize("what", NOTICED)
def test_the_harness_notices_a_reader_that_does_harm(
    what: str, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.harness.CPU_S", 0.3)
    reader = Reader(name="harmful", covers=(), cases=lambda _: [KIND], use=NOTICED[what])
    tally = fuzz(reader, [KIND], range(1), seed=0, scratch=scratch)
    assert tally.inputs == 1
    [finding] = tally.findings
    assert what in finding.what
    assert save(finding, tmp_path).is_file()
    if what == "KeyError":
        in_child(lambda: check_replay(reader, save(finding, tmp_path), scratch))
    assert [path.name for path in scratch.iterdir() if path.name != "seeds"] == []


def check_replay(reader: Reader, file: Path, scratch: Path) -> None:
    assert replay([reader], lambda _: [KIND], file, scratch).startswith("finding KeyError")


def test_a_reader_in_a_process_with_limits_may_crash(scratch: Path) -> None:
    reader = Reader(name="contained", covers=(), cases=lambda _: [KIND], use=ends_the_process, contained=True)
    tally = fuzz(reader, [KIND], range(3), seed=0, scratch=scratch)
    assert (tally.inputs, tally.outcomes, tally.findings) == (3, Counter({"contained crash": 3}), [])


def test_an_input_follows_from_seed_reader_and_number(seeds: Seeds) -> None:
    for reader in random.Random(SEED).sample(readers(seeds), 5):
        cases = reader.cases(seeds)
        drawn = [draw_input(reader, cases, seed, 3) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1]
        assert len({draw_input(reader, cases, 0, number) for number in range(20)}) > 10

"""The benchmark for a GPU, at toy sizes on a CPU: each part gives its rows, and none ends the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import PARTS, Part, main, run_parts
from benchmarks.gpu_rows import Session, table

ROOT = Path(__file__).parents[2]


def session(folder: Path, *asked: str, budget_s: float = 60.0) -> Session:
    return Session(
        device=torch.device("cpu"),
        is_toy=True,
        budget_s=budget_s,
        out=folder / "out",
        scratch=folder / "scratch",
        asked=frozenset(asked),
    )


def measures(name: str) -> Part:
    return Part(lambda session: session.row(name, figure=1.5), 50)


@pytest.mark.slow
def test_all_parts_run_through_at_toy_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))  # `main` names another, for its process alone
    assert main(["--tiny", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "in")]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "gpu.json").read_text())["rows"]
    assert list(rows) == list(PARTS)
    assert [row for part in rows.values() for row in part if "failed" in row] == []
    assert all(any("left_out" not in row for row in part) for part in rows.values())
    parity = next(row for row in rows["parity"] if row.get("dtype") == "float32" and "pipeline_seconds" in row)
    assert parity["largest_difference"] <= 1e-5
    assert sum("same_bits" in row for row in rows["variants"]) == 2
    assert [row["written"] for row in rows["job"] if row["what"] in ("run", "again, nothing to do")] == [6, 0]
    assert all(row["expected_gib"] > 0 for row in (*rows["train"], *rows["evaluate"]) if "left_out" not in row)
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page.strip() in printed
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == list(PARTS)
    assert "measures nothing" in page  # toy sizes on a CPU must not pass for figures
    assert list((tmp_path / "in").iterdir()) == []


def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    def fails(session: Session) -> None:
        session.row("bad", figure=1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand much more")

    parts = {"bad": Part(fails, 40), "on_it": Part(fails, 10, ("bad",)), "good": measures("good")}
    run = session(tmp_path, "on_it", "good")
    run_parts(run, parts)
    failed = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    assert run.rows == {
        "bad": [{"figure": 1}, {"failed": failed}],
        "on_it": [{"left_out": "it needs the part bad, which did not end well"}],
        "good": [{"figure": 1.5}],
    }
    assert run.failures == 1
    assert json.loads((run.out / "gpu.json").read_text())["rows"] == run.rows


def test_what_the_budget_has_no_room_for_is_named(tmp_path: Path) -> None:
    def plans(session: Session) -> None:
        if session.affords("long", 40, what="first"):
            session.row("long", what="first", seconds=40.0)
        session.affords("long", 70, what="second")

    run = session(tmp_path, "long", "short", budget_s=100)
    run_parts(run, {"long": Part(plans, 50), "short": measures("short")})
    first, second = run.rows["long"]
    assert first == {"what": "first", "seconds": 40.0}
    assert re.fullmatch(r"takes about 70 s, (49|50) s are left for this part", str(second["left_out"]))
    assert run.rows["short"] == [{"figure": 1.5}]  # another part's share is not touched

    none = session(tmp_path, "short", budget_s=0)
    run_parts(none, {"short": measures("short")})
    assert [list(row) for row in none.rows["short"]] == [["left_out"]]


def test_a_table_has_a_column_for_every_figure() -> None:
    rows = [{"what": "a|b", "images_per_s": 1.23456}, {"what": "c", "peak_gib": 1234, "same_bits": True}]
    assert table(rows).splitlines() == [
        "| what | images/s | peak, GiB | same bits |",
        "| --- | --- | --- | --- |",
        "| a/b | 1.235 |  |  |",
        "| c |  | 1,234 | yes |",
    ]


@pytest.mark.parametrize(
    ("words", "message"), [(["--only", "train,sleep", "--tiny"], "there is no part 'sleep'"), ([], "sees no GPU")]
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err

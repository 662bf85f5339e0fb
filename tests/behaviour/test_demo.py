"""`theworld demo`, small: from nothing to a page, and on where it stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app


@pytest.mark.slow
def test_the_demo_ends_with_a_page_and_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["demo", "--scenes", "24", "--train-steps", "2", "--device", "cpu"]
    first = CliRunner().invoke(app, small)
    assert first.exit_code == 0, (first.output, first.exception)
    page = (tmp_path / "demo" / "index.html").read_text()
    assert str(tmp_path / "demo" / "index.html") in first.output.replace("\n", "")
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads[0] == "The predicted future"
    assert heads[-2:] == ["What to try next", "Setup"]
    assert {"Accuracy by question type", "Ablations", "What making it took"} <= set(heads)
    for words in ("rollouts in the store", "steps8", "steps0", "shuffled", "frozen", "noise", "theworld ask demo/"):
        assert words in page
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "runs").glob("*/*.safetensors")}
    assert len(trained) == 4
    again = CliRunner().invoke(app, [*small, "--json", "--quiet"])
    assert again.exit_code == 0, (again.output, again.exception)
    said = json.loads(again.stdout)
    assert said["page"] == str(tmp_path / "demo" / "index.html")
    assert [one["arm"] for one in said["evaluations"]] == ["rollout", "frozen", "shuffled", "noise", "rollout"]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained

"""Sources and failures are kept, and damage in them is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.files.sealed import seal, unseal
from theworld.pipeline.store.folder import open_store
from theworld.pipeline.store.ledger import Failure
from theworld.precompute.inputs.manifests import MAX_PATH, MAX_PROMPT

from ...miniatures.store import create, flip, key


def test_sources_add_up_over_runs_and_a_changed_file_shows_all_its_keys(tmp_path: Path) -> None:
    store = create(tmp_path)
    rows = [("a.png", key(1)), ("b \udcff\n.png", key(2)), ("a.png", key(1))]
    store.record_sources(rows)
    store.record_sources(reversed(rows))
    assert len(list((store.path / "sources").iterdir())) == 1
    store.record_sources([("a.png", key(0)), ("c.png", key(1))])
    store.record_sources([])
    assert open_store(tmp_path).sources() == {
        "a.png": (key(0), key(1)),
        "b \udcff\n.png": (key(2),),
        "c.png": (key(1),),
    }
    file = next((store.path / "sources").iterdir())
    flip(file, 15)
    with pytest.raises(DamagedShardError, match="does not match its name"):
        store.sources()


def test_names_and_prompts_as_long_as_a_list_may_hold_come_back(tmp_path: Path) -> None:
    store = create(tmp_path)
    name, prompt = "\U0001f3b2" * MAX_PATH, "\U0001f3b3" * MAX_PROMPT
    store.record_sources([(name, key(1))], {key(1): prompt})
    assert open_store(tmp_path).sources() == {name: (key(1),)}
    assert open_store(tmp_path).prompts() == {key(1): prompt}


def test_a_failure_is_kept_once_an_input_until_it_is_cleared(tmp_path: Path) -> None:
    store = create(tmp_path)
    gone = Failure(source="gone \udcff.png", key=None, reason="missing", message="no such file", attempts=1)
    bad = Failure(source="bad.png", key=key(1), reason="decode", message="not an image", attempts=1)
    store.record_failure(gone)
    store.record_failure(bad)
    store.record_failure(Failure(source="copy.png", key=key(1), reason="nan", message="NaN", attempts=2))
    assert [(f.source, f.attempts) for f in open_store(tmp_path).failures()] == [("copy.png", 2), (gone.source, 1)]
    store.clear_failure(bad)
    store.clear_failure(bad)
    assert store.failures() == [gone]
    flip(next((store.path / "failed").iterdir()), 20)
    with pytest.raises(DamagedShardError, match="failed/"):
        store.failures()


@pytest.mark.parametrize("change", [{"attempts": True}, {"key": "x"}, {"source": 1}, {"more": 1}, {"format": 2}])
def test_a_failure_row_with_wrong_types_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    store = create(tmp_path)
    store.record_failure(Failure(source="a", key=None, reason="decode", message="m", attempts=1))
    file = next((store.path / "failed").iterdir())
    file.write_bytes(seal(json.loads(unseal(file.read_bytes())) | change))
    with pytest.raises(DamagedShardError, match="failed/"):
        store.failures()

"""Default places of commands: the newest run, and the questions of the cache's own scenes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import DEFAULT_CACHE
from ..errors import ConfigError
from ..files.places.store_paths import is_bucket


def newest_run() -> Path:
    """The run folder under runs/ that was written last.

    Raises:
        ConfigError: there is none.
    """
    runs = sorted(Path("runs").glob("*/theworld.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(f"there is no run under {Path('runs').resolve()}; train one first: theworld train --cache")
    return runs[-1].parent


def own_questions(where: Path | str) -> Path:
    """The questions that lie beside the embedded scenes, in the cache folder that holds the store.

    Raises:
        StoreNotFoundError: there is no store either.
        ConfigError: it is of other images.
    """
    from ..store.folder import find_stores, resolve_store

    if is_bucket(where):
        raise ConfigError(f"which questions? {where} is in a bucket, so name their file: --questions FILE")
    store = Path(where)
    for cache in (store, store.parent):
        questions = cache / "scenes" / "questions.jsonl"
        if questions.is_file():
            return questions
    if not find_stores(store):
        resolve_store(store)  # raises where this is none, which comes first
    raise ConfigError(
        f"which questions? {store} has no scenes of its own beside it, so name a file (`theworld questions FILE`, "
        '--questions FILE of other commands) such as FILE.jsonl, one {"image": …, "question": …, "answer": …} a line'
    )


def runs_or_newest(runs: list[Path] | None) -> list[Path]:
    """The run folders that were typed, else the newest one.

    Each is read here, so that what is no run is said before the seconds that torch and transformers take to load.

    Raises:
        ConfigError: none was typed and there is none.
        RunError: one is no run folder.
    """
    from ...train.runs.meta import read_meta

    chosen = runs or [newest_run()]
    for run in chosen:
        read_meta(run)
    return chosen


def with_own_places(flags: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a training, with the usual store and that store's own questions where neither they nor the
    settings file name any. Raises as `own_questions`."""
    places = dict(flags)
    if places["store"] is None and "store" not in table:
        places["store"] = DEFAULT_CACHE
    if places["questions"] is None and "questions" not in table:
        places["questions"] = own_questions(places["store"] or table["store"])
    return places

"""What a command takes where nothing is named: the newest run, the questions of the cache's own scenes."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError


def newest_run() -> Path:
    """The run folder under runs/ that was written last.

    Raises:
        ConfigError: there is none.
    """
    runs = sorted(Path("runs").glob("*/theworld.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(f"there is no run under {Path('runs').resolve()}; train one first: theworld train --cache")
    return runs[-1].parent


def own_questions(store: Path) -> Path:
    """The questions that lie beside the embedded scenes, in the cache folder that holds the store.

    Raises:
        StoreNotFoundError: there is no store either.
        ConfigError: it is of other images.
    """
    from ..store.folder import find_stores, resolve_store

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

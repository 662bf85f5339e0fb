"""The report page of evaluated runs, with pictures of stored and true futures and the outcomes of scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TheWorldError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...precompute.preview.answer_cards import AnswerPictures
    from ...precompute.worldlet.rollout_check import TrueFuture
    from ...train.evaluation.examples import ReportExample
    from ...train.evaluation.results.saved import Evaluation
    from ...train.pages.films import Film
    from ..progress import Progress
    from ..store.latent_store import LatentStore


def write_page(
    evaluations: list[Evaluation],
    path: Path,
    *,
    store: Path | str | None = None,
    images: Path | None = None,
    world: str | None = None,
    futures: Path | str | None = None,
    outcomes: Mapping[str, bool] | None = None,
    device: Any,
    progress: Progress,
    **page: Any,
) -> Path:
    """Write the page, its examples decoded where inputs and world model are at hand.

    Args:
        futures: a store of encoded true futures, shown beside the predicted ones; by default the one that the run was
            trained with. Those of the embedded world's scenes need none.
        outcomes: scene -> whether its rollout ends as the true scene does; where they are not given, those of the
            first test scenes of the embedded world are found out.
        page: further arguments of `run_page`.
    """
    from ...precompute.preview.answer_cards import AnswerPictures
    from ...train.evaluation.report import write_run_report
    from ...train.questions.readers import folder_of

    place = images or folder_of(Path(evaluations[0].questions))
    scenes = Path(evaluations[0].questions).parent
    # by run: each from its own store, the same image being another future there
    decoders: dict[str, AnswerPictures] = {}
    truths = _true_futures(scenes)
    encoded = None if truths else _encoded_futures(evaluations, futures, world, device, progress)
    if outcomes is None and truths:
        outcomes = _outcomes(evaluations, store, scenes, progress)

    def draw(example: ReportExample) -> Film | None:
        from ...train.pages.films import Film

        p, run = example.prediction, example.run.run
        if run not in decoders:
            decoders[run] = AnswerPictures(_store_of(run, store), place, world=world, device=device)
        frames = decoders[run].frames(p.key, p.image, steps=example.run.steps)
        if frames is None:
            return None
        truth = truths.get(p.scene)
        true = None if truth is None else truth.frames()
        if encoded is not None:
            true = encoded(p.id, example.run.steps)
        fits = true is not None and true.shape[1:] == frames.shape[1:]
        return Film(frames, decoders[run].rate, true[: len(frames)] if true is not None and fits else None)

    written = write_run_report(evaluations, path, draw=draw, outcomes=outcomes, **page)
    for note in dict.fromkeys(note for decoder in decoders.values() for note in decoder.notes):
        progress.warn(note)
    return written


def _encoded_futures(
    evaluations: list[Evaluation], futures: Path | str | None, world: str | None, device: Any, progress: Progress
) -> Callable[[str, int], NDArray[np.uint8] | None] | None:
    """(question id, steps) -> the true future, decoded; None where no store of futures is at hand."""
    from ...precompute.preview.answer_cards import AnswerPictures
    from ...train.questions.coverage import resolve_keys
    from ...train.questions.readers import folder_of
    from ...train.questions.record import read_question_file
    from ...train.runs.meta import read_meta
    from ..files.places.store_paths import store_path
    from ..store.folder import open_store

    config = read_meta(Path(evaluations[0].run)).config
    named, file = futures or config.get("futures"), Path(evaluations[0].questions)
    if named is None or not file.exists():
        return None
    try:
        store = open_store(store_path(named))
        questions = read_question_file(file, columns=config.get("columns")).questions
        keys = resolve_keys(questions, file, store, field="future").keys
    except TheWorldError as error:
        progress.warn(f"note: true futures are not shown: {error}")
        return None
    names = {question.id: question.future for question in questions}
    pictures = AnswerPictures(store, folder_of(file), world=world, device=device)
    for note in pictures.notes:
        progress.warn(note)

    def frames(question: str, steps: int) -> NDArray[np.uint8] | None:
        key, name = keys.get(question), names.get(question)
        steps = min(steps, store.recipe.rollout_steps)
        return None if key is None or name is None else pictures.frames(key, name, steps=steps)

    return frames


def own_scenes(questions: Path, path: Path | str) -> tuple[LatentStore, Path] | None:
    """The rollouts and the folder of scenes they are of, where both come from the embedded world."""
    from ...precompute.worlds.source import resolve_world
    from ..store.folder import open_store

    if not (questions.parent / "scenes.jsonl").is_file():
        return None
    store = open_store(path)
    return (store, questions.parent) if store.recipe.world == resolve_world(None).identity else None


def _store_of(run: str, store: Path | str | None) -> LatentStore:
    from ...train.runs.meta import read_meta
    from ..store.find import moved_store
    from ..store.folder import open_store

    meta = read_meta(Path(run))
    return open_store(store or moved_store(meta.store.path, meta.recipe_id))


def _true_futures(scenes: Path) -> Mapping[str, TrueFuture]:
    """Of the embedded world's own scenes; none for other questions."""
    from ...precompute.worldlet.rollout_check import true_futures

    try:
        return true_futures(scenes) if (scenes / "scenes.jsonl").is_file() else {}
    except TheWorldError:  # a file of this name that is something else
        return {}


def _outcomes(
    evaluations: list[Evaluation], store: Path | str | None, scenes: Path, progress: Progress
) -> dict[str, bool] | None:
    """Whether the first test rollouts end as their scenes do; None where that cannot be read off."""
    from ...precompute.worldlet.rollout_check import CHECKED, rollout_outcomes

    run = max(evaluations, key=lambda e: e.steps).run
    try:
        return rollout_outcomes(_store_of(run, store), scenes, splits=("test",), most=CHECKED, progress=progress)
    except TheWorldError as error:
        progress.warn(f"note: which rollouts end correctly is not known: {error}")
        return None

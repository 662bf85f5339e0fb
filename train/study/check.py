"""Check a study before it trains: what would fail after hours fails in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...pipeline.errors import ConfigError, StoreError
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore, open_store
from ..data.arms import open_arm, parse_arm
from ..data.batches import check_answers
from ..data.limits import questions_that_fit
from ..evaluation.draws import arm_of_answers, require_drawn_arm, require_draws_of
from ..language.lm import load_tokenizer_only
from ..language.weights import find_weights
from ..questions.readers import digest_of
from ..questions.record import first_scenes, read_questions, resolve_keys, select_split
from ..questions.shown_choices import all_as_shown
from ..runs.meta import versions
from .folder import facts_of_arm, read_facts
from .plan import TEST, Study, splits_of
from .provenance import Provenance, budget_of, digest_of_keys, provenance_of_arm


def check_study(study: Study, progress: Progress) -> tuple[list[str], dict[str, Any], dict[str, Provenance]]:
    """Check in seconds what would otherwise fail after hours; returns the splits, the facts of the study, and what the
    answers of each arm would come from."""
    settings = study.settings
    everything = read_questions(
        settings.questions, columns=settings.columns, max_bad=settings.max_bad, progress=progress
    )
    store = open_store(settings.store, check_sizes=True)
    train_pool = select_split(everything, "train", settings.questions)
    select_split(everything, TEST, settings.questions)
    first_scenes(train_pool, max(study.labels))
    splits = splits_of(everything)
    steps = store.recipe.rollout_steps if settings.steps is None else settings.steps  # of the arms without a store
    evaluated = {(unit.arm, split, arm) for unit in study.units() for split, arm in study.asked(unit, splits)}
    evaluated |= {(arm, "train", arm) for arm in study.arms}
    stores: dict[str, LatentStore] = {}
    for arm in study.arms:
        place = study.settings_of(arm).store
        with _of_arm(study, arm):
            stores[arm] = open_store(place, check_sizes=True)
            _check_draws(study, arm, stores[arm])
    _tell_untested(study, progress)
    keys: dict[str, str] = {}
    keys_by_arm: dict[str, dict[str, str]] = {}
    for trained, split, arm in sorted(evaluated):
        pool = train_pool if split == "train" else select_split(everything, split, settings.questions)
        arm_settings = study.settings_of(trained)
        own_store, parsed = stores[trained], study.arm_of(arm) if arm == trained else parse_arm(arm)
        own_steps = study.arm_of(trained).stored_steps(own_store.recipe)
        arm_keys, _ = open_arm(
            parsed,
            own_store,
            pool,
            pool,
            settings.questions,
            rollout_steps=own_steps if arm_settings.steps is None else arm_settings.steps,
            futures=arm_settings.futures,
            images=settings.images,
        )
        keys |= arm_keys
        keys_by_arm.setdefault(trained, {}).update(arm_keys)
    tokens = {name: world_tokens_of(study, name, stores[name]) for name in study.arms}
    _require_equal_tokens(study, tokens)
    weights = find_weights(settings.lm)
    speech = load_tokenizer_only(weights)
    world_tokens = max(tokens.values())
    for split in splits:  # each training checks its own training questions
        split_questions = all_as_shown(select_split(everything, split, settings.questions), settings.show_choices)
        check_answers(split_questions, speech)
        questions_that_fit(split_questions, speech, world_tokens=world_tokens, max_bad=0, progress=progress)
    begun = read_facts(study.out).get("lm")  # an earlier version may have named the same model otherwise
    facts = {
        "questions_sha256": digest_of(settings.questions),
        "images_sha256": digest_of_keys(keys),
        "recipe": store.recipe.id,
        "futures": None if settings.futures is None else open_store(settings.futures).recipe.id,
        "lm": begun if isinstance(begun, str) and weights.is_same(begun) else weights.identity,
        "steps": steps,
        "budget": budget_of(settings),
        "versions": versions(),
    }
    own_arms = {name: facts_of_arm(study, name, stores[name]) for name in study.arms if name in study.table.arms}
    if own_arms:
        facts["own_arms"] = own_arms
    pools = [train_pool, *(select_split(everything, split, settings.questions) for split in splits)]
    provenances = {
        name: provenance_of_arm(study, name, stores[name], keys_by_arm[name], pools, weights.content)
        for name in study.arms
    }
    return splits, facts, provenances


@contextmanager
def _of_arm(study: Study, name: str) -> Iterator[None]:
    """Say of which arm an error is, where a table of the study's file is the reason."""
    try:
        yield
    except (ConfigError, StoreError) as error:
        if name not in study.table.arms:
            raise
        raise type(error)(f"[study.arms.{name}]: {error}") from error


def _tell_untested(study: Study, progress: Progress) -> None:
    """Say before hours of training which hypotheses these arms do not test."""
    for name, table in study.table.hypotheses.items():
        if absent := [arm for arm in (table.arm, table.than) if arm not in study.arms]:
            progress.warn(f"note: {name} ({table.text()}) is not tested: no arm {', no arm '.join(absent)} in --arms")


def world_tokens_of(study: Study, name: str, store: LatentStore) -> int:
    """World tokens of a question in an arm, as its training counts them."""
    settings, arm = study.settings_of(name), study.arm_of(name)
    channels, _, height, width = store.sample_shape
    steps = arm.steps(arm.stored_steps(store.recipe) if settings.steps is None else settings.steps)
    frames = arm.frames(steps)
    read = 1 + steps if frames is None else len(frames)
    return settings.token_layout().count(read, height, width, channels=channels) if read else 0


def _require_equal_tokens(study: Study, tokens: Mapping[str, int]) -> None:
    wanted = study.table.world_tokens
    if wanted is None:
        return
    compared = {name: tokens[name] for name in study.arms if study.arm_of(name).kind not in ("text", "steps0", "last")}
    if wrong := {name: count for name, count in compared.items() if count != wanted}:
        counts = ", ".join(f"{name} {count}" for name, count in wrong.items())
        raise ConfigError(
            f"[study] world_tokens = {wanted}, and these arms read another number: {counts}. Give them a patch, or "
            "steps, that makes it equal: train = { patch = 2 } in [study.arms.NAME]; or leave world_tokens out"
        )


def _check_draws(study: Study, name: str, store: LatentStore) -> None:
    """Refuse draws of an arm that shows none, and a store that does not hold enough, of the rollouts of its store."""
    table = study.table.arms.get(name)
    if table is None or table.draws is None or table.draws_store is None:
        return
    settings = study.settings_of(name)
    steps = store.recipe.rollout_steps if settings.steps is None else settings.steps
    require_drawn_arm(arm_of_answers(study.arm_of(name)), steps, table.draws)
    draws_store = open_store(table.draws_store, check_sizes=True)
    require_draws_of(store.recipe, f"the arm {name}", draws_store, table.draws, steps=steps)
    questions = read_questions(settings.questions, columns=settings.columns, max_bad=settings.max_bad)
    for split in splits_of(questions):
        pool = select_split(questions, split, settings.questions)
        resolve_keys(pool, settings.questions, draws_store, images=settings.images).require_complete()

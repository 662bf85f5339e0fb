"""Hold out questions for tests where the file states no split: by image or scene, the same ones each time.

A hash decides for each image (its key, which follows from its bytes; its name where no store is at hand) or, where the
file names them, for each scene or minimal pair. So a file may grow: what was held out is never trained on by a later
run, unless new questions join it to images that are. All questions about one image, scene or pair are on one side.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...pipeline.latents.keys import key_of_digest
from ...pipeline.store.folder import LatentStore
from .coverage import resolve_keys
from .images import parts_of
from .record import Question

TRAIN, TEST, VALIDATION = "train", "test", "validation"

_Label = tuple[str, str]
"""What questions share: `image`, `name`, `scene` or `pair`, and which."""

_Labels = tuple[_Label, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Questions with the splits that a training gives them."""

    questions: tuple[Question, ...]
    counts: dict[str, int]
    """Split -> how many questions were held out for it; empty where the file states its splits."""
    line: str = ""
    """What was held out, in words."""


def hold_out(
    questions: Sequence[Question],
    share: float,
    questions_file: Path,
    store: LatentStore | None = None,
    *,
    images: Path | None = None,
    validation: bool = False,
) -> HeldOut:
    """Give about this share of the images to the split `test`, if no question states a split other than `train`.

    Questions that state a split keep it, and those that share an image or scene with them are trained on, too.

    Args:
        share: 0 holds out nothing.
        store: identifies images by their content. images: as of `resolve_keys`.
        validation: hold out as many again for the split `validation`, at most half of the rest.
    """
    stated = {question.split for question in questions}
    if not share or None not in stated or stated - {None, TRAIN}:
        return HeldOut(tuple(questions), {})
    keys = {} if store is None else resolve_keys(questions, questions_file, store, images=images).keys
    shared: dict[_Labels, int] = {}  # those of an image once, however many questions it has
    numbers = [shared.setdefault(_labels(question, keys.get(question.id)), len(shared)) for question in questions]
    group_of = _groups(shared)
    groups = [group_of[number] for number in numbers]
    until = {TEST: share, VALIDATION: min(2 * share, (1 + share) / 2) if validation else share}
    fixed = {group for group, question in zip(groups, questions, strict=True) if question.split is not None}
    places: defaultdict[int, set[float]] = defaultdict(set)
    for group, labels in zip(group_of, shared, strict=True):
        places[group].add(_place(labels[0]))
    splits = {group: TRAIN if group in fixed else _split(place, until) for group, place in places.items()}
    _fill(splits, {group: max(place) for group, place in places.items() if group not in fixed}, bool(fixed), validation)
    fields_set: dict[frozenset[str], set[str]] = {}
    divided = tuple(
        question if splits[group] == TRAIN else _with_split(question, splits[group], fields_set)
        for question, group in zip(questions, groups, strict=True)
    )
    held = [(question, group) for question, group in zip(divided, groups, strict=True) if splits[group] != TRAIN]
    counts = {split: sum(question.split == split for question, _ in held) for split in (TEST, VALIDATION)}
    counts = {split: count for split, count in counts.items() if count}
    line = _line(counts, held, divided, len(set(groups)), share)
    if counts and store is None:
        line += "; by their names, for no store is named: a training goes by their content"
    return HeldOut(divided, counts, line)


def _line(
    counts: Mapping[str, int],
    held: Sequence[tuple[Question, int]],
    questions: Sequence[Question],
    groups: int,
    share: float,
) -> str:
    if not counts:
        return "nothing is held out for tests, although no split is stated: all questions share an image or scene"
    parts = " and ".join(f"{count:,} for {split}" for split, count in counts.items())
    return (
        f"held out, for no split is stated: of {len(questions):,} questions {parts}, about "
        f"{len({group for _, group in held}):,} of {groups:,} images or scenes (--holdout {share:g})"
    )


def _labels(question: Question, key: str | None) -> _Labels:
    """What ties a question to others; the first decides its place."""
    if key is None and question.image_sha256 is not None:
        key = key_of_digest(bytes.fromhex(question.image_sha256), None)
    labels: list[_Label] = []
    if question.pair is not None:
        labels.append(("pair", question.pair))
    if question.scene is not None:
        labels.append(("scene", question.scene))
    if key is not None:
        labels.append(("image", key))
    return (*labels, ("name", "/".join(parts_of(question.image))))


def _groups(labels: Iterable[_Labels]) -> list[int]:
    """The number of the group of each: those that share a label are in one, and so on."""
    parent: list[int] = []
    number_of: dict[_Label, int] = {}

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for its in labels:
        for label in its:
            if label not in number_of:
                number_of[label] = len(parent)
                parent.append(len(parent))
        first = root(number_of[its[0]])
        for label in its[1:]:
            parent[root(number_of[label])] = first
    return [root(number_of[its[0]]) for its in labels]


def _place(label: _Label) -> float:
    """Where a label lies, from 0 to 1; every file and machine agrees."""
    digest = hashlib.sha256("\0".join(("holdout", *label)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split(places: Iterable[float], until: Mapping[str, float]) -> str:
    """The split of a group: what one of its parts is trained on, all of it is."""
    splits = {next((split for split, end in until.items() if place < end), TRAIN) for place in places}
    return splits.pop() if len(splits) == 1 else TRAIN


def _fill(splits: dict[int, str], free: Mapping[int, float], is_fixed: bool, validation: bool) -> None:
    """Of few groups chance may leave a split without any: the nearest one fills it."""
    order = sorted(free, key=free.__getitem__)
    if len(order) + is_fixed < 2:
        splits.update(dict.fromkeys(order, TRAIN))
        return
    if not is_fixed and all(splits[group] != TRAIN for group in order):
        splits[order[-1]] = TRAIN
    if all(splits[group] != TEST for group in order):
        splits[order[0]] = TEST
    others = [group for group in order if splits[group] == TRAIN]
    if validation and VALIDATION not in splits.values() and len(others) + is_fixed > 1:
        splits[others[0]] = VALIDATION


def _with_split(question: Question, split: str, fields_set: dict[frozenset[str], set[str]]) -> Question:
    """A copy in a split; `fields_set` is shared by all, as record.py says."""
    copy = question.model_copy(update={"split": split})
    given_fields = copy.model_fields_set
    object.__setattr__(copy, "__pydantic_fields_set__", fields_set.setdefault(frozenset(given_fields), given_fields))
    return copy

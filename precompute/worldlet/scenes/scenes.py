"""Which scenes there are: pairs that differ in one element and end differently, as pure functions of a few numbers.

Every scene is half of a *minimal pair*: both halves share all but one ramp or block, the rule of thumb says the same
of both, and they end differently. So whatever the halves share (colours, counts, the rule of thumb) is as frequent
with one answer as with the other, by construction.

Scenes of an open family are not balanced so, since a choice by the end would change what frame 0 says of it: the second
half is a mirror image of the first, and both get a push of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from .buckets import Buckets
from .contact import Contact
from .family import Family
from .physics import SUBSTEPS, VIDEO_FRAMES, Layout, Motion, paint, simulate
from .push import Push
from .race import Race
from .tower import Tower

VERSION = 2
"""Raised whenever a scene of the same name would look, end or be asked differently."""

FAMILIES: dict[str, Family] = {family.name: family for family in (Buckets(), Race(), Tower(), Contact())}
OPEN_FAMILIES: dict[str, Push] = {family.name: family for family in (Push(),)}
"""Families whose frame 0 does not decide how a scene ends. They are made where they are named, and in no default set.
"""
_OPEN_NUMBER = 100  # of the first open family in seeds: others may come before it without changing its scenes
SPLITS = ("video", "train", "validation", "test", "ood")
"""`video`: unlabelled clips for the world model, never asked about. `ood`: more ramps, unseen colours, taller towers,
larger balls."""

_NUDGES = (-0.5, -0.25, 0.25, 0.5)  # px; the answer must survive a start moved by this much …
_OTHER_SUBSTEPS = SUBSTEPS + 2  # … and another physics step
_MAX_TRIES = 5000
_VIDEO_PATIENCE = 8  # tries for one cell: what ends in a rare way is shown more often than chance would
_CHANGES = 10  # tried per first half before another one is drawn


def require_families(names: Sequence[str]) -> None:
    """Check that all of these are families, each named once.

    Raises:
        ConfigError: one is not or is named twice, or none is named.
    """
    known = [*FAMILIES, *OPEN_FAMILIES]
    bad = [name for name in names if name not in known]
    if bad or not names:
        raise ConfigError(f"no family {', '.join(bad) or 'given'}: families are {', '.join(known)}")
    if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
        raise ConfigError(f"family {twice[0]} is named twice: its scenes would have the same names")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene with its truth."""

    id: str
    family: str
    split: str
    pair: str
    """Shared by both halves of a minimal pair."""
    shift: str
    """What is out of distribution about it, or nothing."""
    layout: Layout
    heuristic: str
    """What the rule of thumb answers to the temporal question."""
    answer: str
    """How it ends, in the family's own words."""
    event: int
    """The frame in which that is decided."""
    contacts: int
    """How often something hits something: how hard it is."""
    states: NDArray[np.float64] = field(repr=False)
    """(33, movers, 3): x, y, angle per frame."""
    push: float = 0.0
    """Of an open family: the hidden speed at the start, px per frame, positive to the right."""
    chances: dict[str, float] = field(default_factory=dict[str, float])
    """Of an open family: how likely each answer is, given frame 0. The largest is the best possible accuracy."""

    def frames(self) -> NDArray[np.uint8]:
        """The clip, (33, 64, 64, 3)."""
        return paint(self.layout, self.states)

    def picture(self) -> NDArray[np.uint8]:
        """Frame 0, (64, 64, 3): all that a reader may see."""
        return paint(self.layout, self.states[:1])[0]


def make_pair(family: str, number: int, split: str, *, seed: int = 0) -> tuple[Scene, Scene]:
    """Draw, simulate and judge minimal pair `number` of a family and split.

    Neighbouring pairs fill the cells (heuristic, answer, other answer) once each.

    Raises:
        ValueError: an unknown family or split, or a negative number.
    """
    if family in OPEN_FAMILIES and split in SPLITS and number >= 0:
        return _make_open_pair(family, number, split, seed)
    if family not in FAMILIES or split not in SPLITS or number < 0:
        raise ValueError(f"no pair {number} of family {family!r}, split {split!r}: {list(FAMILIES)}, {list(SPLITS)}")
    kind = FAMILIES[family]
    seed_words = [VERSION, seed, SPLITS.index(split), list(FAMILIES).index(family)]
    cells = [(rule, *answers) for rule in kind.heuristics for answers in permutations(kind.answers, 2)]
    block, place = divmod(number, len(cells))
    order = np.random.default_rng([*seed_words, block, 1]).permutation(len(cells))
    rule, *answers = cells[int(order[place])]
    shift = kind.shifts[number % len(kind.shifts)] if split == "ood" else ""
    # Both orders of a cell are drawn the same way round: some answers are easier to undo than to reach.
    start, end = sorted(answers, key=kind.answers.index)
    rng = np.random.default_rng([*seed_words, number, 0])
    for _ in range(_MAX_TRIES):
        first = kind.draw(rng, heuristic=rule, answer=start, shift=shift)
        if first is None or (first_motion := _settled(kind, first, start)) is None:
            continue
        for _ in range(_CHANGES):
            second = kind.change(rng, first, answer=end)
            if second is None or second == first or (second_motion := _settled(kind, second, end)) is None:
                continue
            halves = [(first, first_motion, start), (second, second_motion, end)][:: 1 if answers[0] == start else -1]
            name = f"{split}-{family}" if seed == 0 else f"{split}-s{seed}-{family}"
            scenes = [
                _scene(f"{name}-{2 * number + half:06d}", f"{name}-{number:06d}p", family, split, shift, rule, *ending)
                for half, ending in enumerate(halves)
            ]
            return scenes[0], scenes[1]
    raise RuntimeError(f"no pair {number} of {family}, {split}, in {_MAX_TRIES} tries: the generator is broken")


def make_video(family: str, number: int, *, seed: int = 0) -> Scene:
    """One unlabelled clip for the world model: like the first half of a pair, without the care that a label needs."""
    if family in OPEN_FAMILIES:
        name = _video(family, number, seed)
        return replace(_make_open_pair(family, number, "video", seed)[0], id=name, pair=name)
    kind = FAMILIES[family]
    rng = np.random.default_rng([VERSION, seed, SPLITS.index("video"), list(FAMILIES).index(family), number, 0])
    rule = answer = ""
    for tries in range(_MAX_TRIES):
        if tries % _VIDEO_PATIENCE == 0:
            rule, answer = str(rng.choice(kind.heuristics)), str(rng.choice(kind.answers))
        layout = kind.draw(rng, heuristic=rule, answer=answer, shift="")
        if layout is None or kind.outcome(layout, motion := simulate(layout)) != answer:
            continue
        name = _video(family, number, seed)
        return _scene(name, name, family, "video", "", rule, layout, motion, answer)
    raise RuntimeError(f"no clip {number} of {family} in {_MAX_TRIES} tries: the generator is broken")


def _video(family: str, number: int, seed: int) -> str:
    return f"video-{family}-{number:06d}" if seed == 0 else f"video-s{seed}-{family}-{number:06d}"


def _make_open_pair(family: str, number: int, split: str, seed: int) -> tuple[Scene, Scene]:
    """A layout that was drawn whatever it leads to, and its mirror image, each with a push of its own."""
    kind = OPEN_FAMILIES[family]
    place = _OPEN_NUMBER + list(OPEN_FAMILIES).index(family)
    rng = np.random.default_rng([VERSION, seed, SPLITS.index(split), place, number, 0])
    shift = kind.shifts[number % len(kind.shifts)] if split == "ood" else ""
    name = f"{split}-{family}" if seed == 0 else f"{split}-s{seed}-{family}"
    for _ in range(_MAX_TRIES):
        layout = kind.draw_any(rng, shift=shift)
        if layout is None or not kind.chances(layout) or not kind.chances(kind.mirrored(layout)):
            continue
        halves: list[Scene] = []
        for half, of_half in enumerate((layout, kind.mirrored(layout))):
            push, motion, answer = _pushed(kind, of_half, rng)
            scene = Scene(
                id=f"{name}-{2 * number + half:06d}",
                family=family,
                split=split,
                pair=f"{name}-{number:06d}p",
                shift=shift,
                layout=of_half,
                heuristic=kind.rule(of_half),
                answer=answer,
                event=kind.event(of_half, motion),
                contacts=motion.contacts,
                states=motion.states[:VIDEO_FRAMES],
                push=push,
                chances=kind.chances(of_half),
            )
            halves.append(scene)
        return halves[0], halves[1]
    raise RuntimeError(f"no pair {number} of {family}, {split}, in {_MAX_TRIES} tries: the generator is broken")


def _pushed(kind: Push, layout: Layout, rng: Generator) -> tuple[float, Motion, str]:
    """A push that leaves no doubt of the end, as those that the chances count; how it moves the layout, and the end."""
    while True:
        push = kind.draw_push(rng)
        motion = simulate(layout, push=push)
        if (answer := kind.outcome(layout, motion)) is not None:
            return push, motion, answer


def _scene(
    id: str, pair: str, family: str, split: str, shift: str, rule: str, layout: Layout, motion: Motion, answer: str
) -> Scene:
    return Scene(
        id=id,
        family=family,
        split=split,
        pair=pair,
        shift=shift,
        layout=layout,
        heuristic=rule,
        answer=answer,
        event=FAMILIES[family].event(layout, motion),
        contacts=motion.contacts,
        states=motion.states[:VIDEO_FRAMES],
    )


def _settled(kind: Family, layout: Layout, answer: str) -> Motion | None:
    """The motion, if it ends in `answer` and small perturbations do not change that."""
    motion = simulate(layout)
    if kind.outcome(layout, motion) != answer:
        return None
    for nudge in _NUDGES:
        if kind.outcome(layout, simulate(layout, nudge=nudge, counted=False)) != answer:
            return None
    return motion if kind.outcome(layout, simulate(layout, substeps=_OTHER_SUBSTEPS, counted=False)) == answer else None


def questions(scene: Scene) -> list[dict[str, object]]:
    """The question records of a scene; wording and order of choices depend on its pair and half alone, not on answers.

    Both halves of a pair are asked in the same words.
    """
    family = (FAMILIES | OPEN_FAMILIES)[scene.family]
    rng: Generator = np.random.default_rng([VERSION, *scene.pair.encode()])
    words = family.words(scene.layout, scene.answer, scene.heuristic)
    rule = family.words(scene.layout, scene.heuristic, scene.heuristic)[family.asks[0].about][0]
    records: list[dict[str, object]] = []
    for ask in family.asks:
        answer, choices = words[ask.about]
        template = ask.templates[rng.integers(len(ask.templates))]
        order = rng.permutation(len(choices))
        records.append(
            {
                "id": f"{scene.id}-{ask.about}",
                "scene": scene.id,
                "image": f"images/{scene.id}.png",
                "family": scene.family,
                "about": ask.about,
                "type": ask.kind,
                "split": scene.split,
                "question": template,
                "answer": answer,
                "choices": [choices[i] for i in order],
                "pair": scene.pair,
                "heuristic": rule,
                "shift": scene.shift,
                "event_frame": scene.event,
                "contacts": scene.contacts,
            }
        )
        if scene.chances and ask.kind == "temporal":
            records[-1]["chances"] = {word: round(chance, 4) for word, chance in scene.chances.items()}
    return records

"""Compare ways to choose how many rollout steps a question reads: by rule or gate, always, never, and an oracle.

    never        the observed frame alone, for all questions
    always       all steps, for all questions
    rule         steps by the question's type, such as static=0; types not named read all
    confidence   all steps if the answer without them is uncertain: the likeliest choice leads the next by little
    agreement    all steps if the rule asks for some and several futures of the image end alike
    oracle       the fewest steps that give a correct answer, if any do: an upper bound for every policy

Every question is answered at each number of steps that some policy may choose, from the prefix of the same stored
rollout; a policy then picks among these answers. So nothing is computed twice, and all policies are compared on the
same answers. Each of the two gates has a threshold. It is the one that gives most correct answers (the fewest rollouts
among equals) on questions that are neither evaluated nor trained on.

The cost of a policy: world tokens per question, and rollouts, which are the images of which some question reads a step.
To judge the agreement of S futures costs S rollouts per image, whatever is then read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Column, Table

from ....pipeline.errors import ConfigError
from ....pipeline.files.atomic import replace
from ....pipeline.files.places.local import file_name
from ....pipeline.machine import DeviceName
from ....pipeline.progress import Progress
from ....pipeline.store.folder import LatentStore, open_store
from ...config import ShowChoices
from ...pages.intervals import as_share
from ...questions.readers import digest_of
from ...questions.record import UNTYPED, select_split
from ..answer import check_steps
from ..metrics import Score, score
from ..own_words import RULES
from ..session import AnswerSession
from ..statistics import paired_p_value
from .answered import AnsweredBySteps, Steps, answer_by_steps, disagreement_of_futures
from .calibration import calibration_split, training_scenes_of
from .gates import Floats, Gate, Rule, choose_threshold

ADAPTIVE = "adaptive.json"


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(_Result):
    """The accuracy of one way to choose steps, and its cost."""

    name: str
    overall: Score
    by_type: dict[str, Score]
    world_tokens: float
    """Mean per question."""
    rollouts: int
    """Needed for these questions."""
    reading: float
    """Share of the questions that read any steps."""
    by_chance: float
    """Expected accuracy if as large a share of the questions, drawn at random, read all steps."""
    lost_to_always: int
    """Questions that `always` answers correctly and this policy does not."""
    won_over_always: int
    p_against_always: float
    """Two-sided, exact: `sign_flips` of scenes, which is McNemar's test where each has one question."""
    gate: Gate | None = None
    steps: tuple[int, ...]
    """Of each question."""


class Adaptive(_Result):
    """All policies on one split."""

    run: str
    split: str | None
    steps: int
    """K, the most that can be read."""
    trained_steps: tuple[int, ...]
    rule: str
    calibration: str
    """What the gates were calibrated on."""
    images: int
    questions: tuple[str, ...]
    """Their ids, in the order of the policies' `steps`."""
    policies: tuple[Policy, ...]
    notes: tuple[str, ...]
    rules: int = 1
    """Version of the rules for own words, as in evaluation.json."""
    show_choices: ShowChoices = "none"
    """As in evaluation.json."""

    def table(self) -> Table:
        """The policies as a table for a terminal."""
        kinds = sorted({kind for policy in self.policies for kind in policy.by_type})
        table = Table(
            *(Column("policy", min_width=len("confidence")), "all", *kinds, "random", "tokens", "rollouts"),
            title=f"{self.run}: steps by question, split {self.split or 'all'}",
            pad_edge=False,
        )
        for policy in self.policies:
            table.add_row(
                policy.name,
                _brief(policy.overall),
                *(_brief(policy.by_type[kind]) for kind in kinds),
                f"{policy.by_chance:.3f}",
                f"{policy.world_tokens:.1f}",
                f"{policy.rollouts} of {self.images}" if policy.rollouts <= self.images else f"{policy.rollouts}",
            )
        return table


def compare_policies(
    run: Path,
    rule: Rule,
    *,
    store: Path | str | None = None,
    questions: Path | None = None,
    split: str | None = "test",
    calibrate: str | None = None,
    draws: Path | None = None,
    batch_size: int = 64,
    max_bad: int | None = None,
    lm: str | None = None,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> Adaptive:
    """Answer a split's questions under each policy, and save the comparison in the run folder.

    Args:
        store, questions: by default those the run was trained on.
        calibrate: the split that thresholds are chosen on; by default `validation`, or else scenes of the training
            split that the run was not trained on. Without any, the gates are left out.
        draws: a store of kind samples of the same images, for the gate on agreement; by default the run's own store
            where it is of that kind.
        max_bad: as of `evaluate_shown`, for each split.
        lm: where the base language model lies now, if it has moved.
    Raises:
        RunError: no run folder, or another base model.
        StoreMismatchError: latents of another recipe.
        QuestionError: no such split, or more than `max_bad` wrong records, questions without latents or too long ones.
        ConfigError: a rule that asks for more steps than there are, a store that does not hold several futures.
    """
    session = AnswerSession.open(
        run, store=store, questions=questions, max_bad=max_bad, lm=lm, device=device, progress=progress
    )
    meta, latents, file = session.loaded.meta, session.store, session.questions_file
    all_steps = check_steps(session.loaded, latents.recipe.rollout_steps, None, session.progress)
    lengths = _lengths(rule, all_steps, latents)
    everything = session.read_questions()
    futures = _open_draws(draws, latents)
    test = answer_by_steps(session, select_split(everything, split, file), lengths, batch_size)
    is_training_file = digest_of(file) == meta.questions.sha256
    training_scenes = training_scenes_of(everything, session.config.get("labels"), file) if is_training_file else None
    calibration_questions, calibration = calibration_split(everything, calibrate, split, training_scenes, file)
    held_out = answer_by_steps(session, calibration_questions, lengths, batch_size) if calibration_questions else None
    notes = list[str]()
    trained_steps = tuple(session.config.get("steps_drawn") or [meta.reader.num_world_steps])
    if (note := _never_read(lengths, trained_steps)) is not None:
        notes.append(note)
    if held_out is None:
        notes.append(f"no gates were learned: {calibration}")

    rule_steps = test.by_rule(rule, all_steps)
    picks: list[tuple[str, Steps, Gate | None]] = [
        ("never", np.zeros_like(rule_steps), None),
        ("always", np.full_like(rule_steps, all_steps), None),
        (f"rule {rule}", rule_steps, None),
    ]
    rollouts = dict[str, int]()
    """By policy, where they are not those of the images that are read."""
    if held_out is not None:
        gate = _choose(held_out, held_out.margins(), held_out.by_rule(Rule({}), all_steps))
        picks.append(("confidence", np.where(gate.passes(test.margins()), all_steps, 0), gate))
        if futures is not None:
            figures = partial(disagreement_of_futures, futures=futures, file=file, images=session.images)
            gate = _choose(held_out, figures(held_out), held_out.by_rule(rule, all_steps))
            passes = gate.passes(figures(test))
            picks.append(("agreement", np.where(passes, rule_steps, 0), gate))
            rollouts["agreement"] = futures.recipe.draws * len(test.images(rule_steps))  # all are judged
        else:
            notes.append("no gate on agreement: it needs several futures of each image, in a store of kind samples")
    oracle_steps = np.zeros_like(rule_steps)
    for length in reversed(lengths):
        oracle_steps[test.right(length)] = length
    picks.append(("oracle", oracle_steps, None))
    tokens = {steps: session.world_tokens(steps) for steps in lengths}
    result = Adaptive(
        run=str(run),
        split=split,
        steps=all_steps,
        trained_steps=trained_steps,
        rule=str(rule),
        calibration=calibration,
        images=len(test.images(np.ones_like(rule_steps))),
        questions=tuple(question.id for question in test.questions),
        policies=tuple(
            _policy(
                name,
                test,
                steps,
                all_steps,
                tokens,
                gate,
                rollouts.get(name, latents.recipe.draws * len(test.images(steps))),
            )
            for name, steps, gate in picks
        ),
        notes=tuple(notes),
        rules=RULES,
        show_choices=session.show_choices,
    )
    name = ADAPTIVE if split == "test" else file_name(f"adaptive-{split or 'all'}") + ".json"
    replace(run, run / name, f"{result.model_dump_json(indent=1)}\n".encode())
    return result


def _never_read(lengths: Sequence[int], trained: Sequence[int]) -> str | None:
    """A note on numbers of steps that the run did not read in training; None without any."""
    untrained = sorted(set(lengths) - set(trained))
    if not untrained:
        return None
    return (
        f"this reader never read {', '.join(map(str, untrained))} steps in training, so it answers worse there than "
        f"a reader that did. To compare fairly, train with --steps {','.join(map(str, sorted({*lengths, *trained})))}"
    )


def _lengths(rule: Rule, all_steps: int, store: LatentStore) -> tuple[int, ...]:
    if store.recipe.traits.is_distribution or not all_steps:
        raise ConfigError(
            f"{store.place} holds {store.recipe.kind} of {all_steps} steps to read: there is nothing to choose from"
        )
    rule_steps = {steps for steps in rule.by_type.values() if steps is not None}
    if rule_steps and max(rule_steps) > all_steps:
        raise ConfigError(
            f"--rule {rule} asks for {max(rule_steps)} steps, the run reads at most {all_steps}. Ask for fewer, or for "
            "all"
        )
    return tuple(sorted({0, all_steps} | rule_steps))


def _open_draws(draws: Path | None, latents: LatentStore) -> LatentStore | None:
    store = latents if draws is None else open_store(draws, check_sizes=True)
    if store.recipe.traits.has_draws and store.recipe.draws > 1:
        return store
    if draws is not None:
        raise ConfigError(
            f"--draws {draws} holds {store.recipe.kind} with {store.recipe.draws} draw, not several futures of each "
            "image. Make them: theworld precompute IMAGES --kind samples --draws 4"
        )
    return None


def _choose(answered: AnsweredBySteps, figure: Floats, steps: Steps) -> Gate:
    """The gate calibrated on these questions: those that pass it read their steps, the others none."""
    without, with_steps = answered.right(0), answered.right_with(steps)
    reading = steps > 0
    threshold = choose_threshold(figure[reading], without[reading], with_steps[reading]) if reading.any() else None
    gate = Gate(reads_up_to=threshold, questions=len(figure), never=0, always=0, gated=0)
    passing = reading & gate.passes(figure)
    return gate.model_copy(
        update={
            "never": float(without.mean()),
            "always": float(with_steps.mean()),
            "gated": float(np.where(passing, with_steps, without).mean()),
        }
    )


def _policy(
    name: str,
    answered: AnsweredBySteps,
    steps: Steps,
    all_steps: int,
    tokens: Mapping[int, int],
    gate: Gate | None,
    rollouts: int,
) -> Policy:
    right, never, always = answered.right_with(steps), answered.right(0), answered.right(all_steps)
    kinds = np.array([question.type or UNTYPED for question in answered.questions])
    share = float((steps > 0).mean())
    lost, won = int((always & ~right).sum()), int((right & ~always).sum())
    clusters = [question.cluster for question in answered.questions]
    return Policy(
        name=name,
        overall=score(right.tolist(), clusters),
        by_type={
            kind: score(right[kinds == kind].tolist(), np.array(clusters)[kinds == kind].tolist())
            for kind in sorted(set(kinds.tolist()))
        },
        world_tokens=sum(tokens[k] * n for k, n in Counter(steps.tolist()).items()) / len(steps),
        rollouts=rollouts,
        reading=share,
        by_chance=float(never.mean() + share * (float(always.mean()) - float(never.mean()))),
        lost_to_always=lost,
        won_over_always=won,
        p_against_always=paired_p_value(zip(clusters, right.tolist(), always.tolist(), strict=True)),
        gate=gate,
        steps=tuple(steps.tolist()),
    )


def _brief(figure: Score) -> str:
    return as_share(figure.accuracy, figure.low, figure.high)

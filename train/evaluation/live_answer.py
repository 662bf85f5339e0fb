"""Answer one question about one image, and roll it out only as far as the answer needs.

The rollout takes nearly all the time of an answer. A rule on the question's type, or the gate on confidence that
`theworld policies RUN` saved in the run folder, decides whether to spend it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from ...pipeline.errors import ConfigError, RunError
from ...pipeline.files.limits import MAX_RESULT_BYTES
from ...pipeline.files.plain import read_json_text
from ...pipeline.messages import command, list_problems
from ...pipeline.progress import Progress
from ..config import AnswerConfig
from ..data.arms import arm_of_run
from ..questions.record import UNTYPED
from ..runs.folder import LoadedRun
from .answer import Answer, ask, read_asked, require_steps
from .policies.adaptive import ADAPTIVE, Adaptive
from .policies.gates import Gate, margin, parse_rule

GATE = "gate"
"""The word for the run's gate, in place of a rule."""

See = Callable[[int], Float[Tensor, "1 C T H W"]]
"""Makes the standardised latents of the input: the observed frame and this number of rollout steps."""


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """An answer, and the latents it was read from."""

    answer: Answer
    steps: int
    """Rollout steps that were read."""
    why: str | None
    """Why that many, if a rule or a gate decided."""
    latents: Tensor
    """(1, C, 1 + steps, H, W); of several draws, the first."""


def answer_live(
    loaded: LoadedRun,
    see: See,
    question: str,
    choices: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    adaptive: str | None = None,
    type: str | None = None,
    image: Path | None = None,
    writing: AnswerConfig | None = None,
    progress: Progress | None = None,
) -> LiveAnswer:
    """Answer a question about an input that is rolled out only as far as it is read.

    Args:
        see: makes the latents; it is called with no more steps than are read.
        choices, image, writing: as of `ask`.
        steps: K, rollout steps to read; by default those it was trained with, or those that `adaptive` says.
        adaptive: a rule (`parse_rule`), or `gate`: answer first without steps, and again with all of them if the
            likeliest choice leads the next by no more than the threshold of the run's gate. A question without choices
            reads all steps, unless the gate never reads any.
        type: of the question, for a rule.
        progress: where warnings go; None is `Progress.to_logger()`.
    Raises:
        ConfigError: both `steps` and `adaptive`; more steps than there are; a type without a rule; a run without a
            gate; or, before anything is rolled out, as of `read_asked`.
        QuestionError: as of `read_asked`, or too long a question.
        RunError: the gate cannot be read.
    """
    progress = progress or Progress.to_logger()
    max_steps = loaded.meta.reader.num_world_steps
    arm = arm_of_run(loaded.meta.config)

    asked = read_asked(loaded, question, choices, writing)

    def answer_with(count: int, reason: str | None = None) -> LiveAnswer:
        require_steps(loaded, arm.stored_steps(loaded.meta.recipe), count)
        asked.require_room(loaded, count)
        latents = see(arm.needed_steps(count, loaded.meta.recipe))
        answer = ask(loaded, latents, question, choices, steps=count, image=image, writing=writing, progress=progress)
        return LiveAnswer(answer, count, reason, latents[:, :, : 1 + count])

    if adaptive is None:
        if type is not None:
            raise ConfigError(f"--type {type} is for a rule that gives steps by type: add --adaptive {type}=0")
        return answer_with(max_steps if steps is None else steps)
    if steps is not None:
        raise ConfigError("--adaptive chooses the steps of the question: leave out --steps")
    if adaptive != GATE:
        rule = parse_rule(adaptive)
        rule_steps = rule.steps_of(type, max_steps)
        if rule_steps > max_steps:
            raise ConfigError(f"--adaptive {rule} asks for {rule_steps} steps, the run reads at most {max_steps}")
        warn_if_new(loaded, rule_steps, progress)
        return answer_with(rule_steps, f"by the rule {rule} for questions of type {type or UNTYPED}")
    if type is not None:
        raise ConfigError("--type is for a rule; the gate only uses the answer. Leave it out")
    gate = read_gate(loaded.path, max_steps)
    warn_if_new(loaded, 0, progress)
    without_rollout = answer_with(0)
    if gate.reads_up_to is None:
        return replace(without_rollout, why="the run's gate never found steps worth reading")
    ranked = without_rollout.answer.ranked
    lead = margin([choice.probability for choice in ranked])
    lead_text = f"without steps the likeliest choice leads by {lead:.3f}" if ranked else "there are no choices to lead"
    reason = f"{lead_text}, and the gate reads on up to {gate.reads_up_to:.3f}"
    if lead > gate.reads_up_to:
        return replace(without_rollout, why=reason)
    return answer_with(max_steps, reason)


def read_gate(run: Path, steps: int) -> Gate:
    """The gate on confidence that was calibrated for a run.

    Args:
        steps: the most that the run reads.
    Raises:
        ConfigError: the run has no gate, or one for another number of steps.
        RunError: the file cannot be read.
    """
    make = f"Calibrate one: {command('policies', run, '--rule', 'static=0')}"
    path = run / ADAPTIVE
    if not os.path.lexists(path):
        raise ConfigError(f"{run} holds no gate: there is no {ADAPTIVE} in it. {make}; or give a rule such as static=0")
    try:
        comparison = Adaptive.model_validate_json(read_json_text(path, MAX_RESULT_BYTES, within=run))
    except (OSError, ValueError) as error:
        why = list_problems(error) if isinstance(error, OSError | ValidationError) else error
        raise RunError(f"{path} is not a file that theworld wrote ({why}). {make}") from error
    gate = next((policy.gate for policy in comparison.policies if policy.name == "confidence"), None)
    if gate is None or comparison.steps != steps:
        reason = "; ".join(comparison.notes) or f"it is for {comparison.steps} steps"
        raise ConfigError(f"{path} holds no gate for this run's {steps} steps ({reason}). {make} --calibrate SPLIT")
    return gate


def warn_if_new(loaded: LoadedRun, steps: int, progress: Progress) -> None:
    """Warn of a number of steps that a run never read in training."""
    trained = loaded.meta.config.get("steps_drawn") or [loaded.meta.reader.num_world_steps]
    if steps not in trained:
        train_steps = ",".join(map(str, sorted({steps, *trained})))
        progress.warn(
            f"warning: {loaded.path} never read {steps} steps in training, so it answers worse there than one that "
            f"did: train with --steps {train_steps}"
        )

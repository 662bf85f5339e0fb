"""Whether a run answers better than one that is shown no image and no future."""

from __future__ import annotations

from collections.abc import Sequence

from .results.saved import Evaluation
from .statistics import paired_p_value

TEXT = "text"
"""The arm that shows no world."""
SURE = 0.05
"""A larger p-value shows no difference."""


def blind_notes(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """Warnings about runs whose accuracy does not differ from that without image and future.

    Args:
        evaluations: of the same questions; those of the arm `text` are the baselines, be they runs or ablations.
    Returns:
        The run and the warning.
    """
    baselines = [e for e in evaluations if e.arm == TEXT]
    readers = [e for e in evaluations if e.arm != TEXT and not e.is_swap]
    notes: list[tuple[str, str]] = []
    for reader in readers:
        for blind in baselines:
            correct = {p.id: p.correct for p in blind.predictions}
            both = [(p.cluster, p.correct, correct[p.id]) for p in reader.predictions if p.id in correct]
            if not both or (p_value := paired_p_value(both)) <= SURE:
                continue
            count = len(both)
            with_world, without = (sum(flags) / count for flags in ([p for _, p, _ in both], [p for *_, p in both]))
            who = "it" if blind.run == reader.run else blind.run
            notes.append(
                (
                    reader.run,
                    f"{with_world:.0%} correct, and shown no image and no future {who} has {without:.0%} correct "
                    f"(exact p {p_value:.2g}, {count:,} questions): no use of what it sees is shown",
                )
            )
    return notes

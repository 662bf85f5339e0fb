"""What an answer costs: its world tokens, and the seconds of its rollouts."""

from __future__ import annotations

from typing import Any

from ...pipeline.store.folder import LatentStore
from ...pipeline.store.records import origins_of
from ..data.arms import Arm
from .draws import DrawnResponses
from .session import AnswerSession

_WITHOUT_ROLLOUT = ("text", "steps0", "frozen", "noise")  # arms that need no rollout


def price_of_arm(
    session: AnswerSession, arm: Arm, steps: int | None, draws: int | None, drawn: DrawnResponses | None
) -> dict[str, Any]:
    """World tokens per question and rollout seconds per image, those of all draws; `steps` is None where no world is
    shown."""
    if steps is None:
        return {"world_tokens": 0, "rollout_seconds": 0.0}
    read_steps = arm.steps(steps)
    tokens = session.world_tokens(read_steps)
    if arm.kind in _WITHOUT_ROLLOUT or not read_steps:
        return {"world_tokens": tokens, "rollout_seconds": 0.0}
    seconds = None if arm.kind == "true" else rollout_seconds(session.store)
    if draws is None or drawn is None:
        return {"world_tokens": tokens, "rollout_seconds": seconds}
    if drawn.rollout_seconds is not None:
        seconds = drawn.rollout_seconds
    elif seconds is not None:  # of all draws in the store
        seconds = float(f"{seconds * draws / session.store.recipe.draws:.4g}")
    return {"world_tokens": draws * tokens, "rollout_seconds": seconds}


def rollout_seconds(store: LatentStore) -> float | None:
    """Mean wall seconds that a worker needed to roll out, or to encode, an image of a store; None if not recorded."""
    rows = seconds = 0.0
    for record in store.records():
        for origin in origins_of(record):
            if origin.work_seconds is not None:
                rows, seconds = rows + origin.rows, seconds + origin.work_seconds
    return float(f"{seconds / rows:.4g}") if rows else None  # not to 4 decimals: small worlds take less

"""Draws of a world beside the chances of each end: does it foresee what may happen, and how likely?

In the four families frame 0 decides the end, so that one end has all the chance. In an open family several ends are
possible, and a world that predicts one future must be wrong as often as the likeliest end does not happen.

    python -m theworld.precompute.worldlet.training.chances WEIGHTS --families push --scenes 400
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...worlds.cosmos.predict2 import CosmosWorld
from ...worlds.source import resolve_world
from ..scenes.outcomes import Video, find, read_outcome
from ..scenes.scenes import FAMILIES, OPEN_FAMILIES, require_families
from .clips import Clips, clips_of, draw_scenes
from .figures import decode_clips, roll_out

_SEEN = 0.35  # strength from which a ball is there in its colour, as in `figures.ball_errors`
_PERFECT_TRIES = 200


def measure_draws(world: CosmosWorld, clips: Clips, *, draws: int = 8, evaluations: int = 9) -> dict[str, Any]:
    """As `compare_draws`, of a world's rollouts of each first frame with the seeds 0, 1, …

    Args:
        evaluations: of the network in a rollout.
    """
    rolled = (roll_out(world, clips, denoise_steps=evaluations + 1, seed=seed) for seed in range(draws))
    return compare_draws(clips, (decode_clips(world, latents) for latents in rolled))


def compare_draws(clips: Clips, drawn: Iterable[Iterable[Video]]) -> dict[str, Any]:
    """Per family, how the ends of several draws stand to the chances of each end.

    - `best_possible`: accuracy of a reader that knows the chances and answers with the likeliest end.
    - `one_draw`, `most_draws`: the chance of the end that one draw shows, and of the end that most draws show (ties are
      shared), on average; that is the accuracy of a reader who answers so.
    - `distance`: total variation between the shares of the ends among the draws and their chances, 0 to 1; and
      `distance_of_perfect`, of as many draws from the chances themselves.
    - `all_agree`: the share of scenes whose draws all end alike.
    - `ball_seen`: the share of draws in which the first ball is seen in its colour in the last frame; of families that
      have a ball.

    Args:
        clips: of scenes; those without `chances` have one possible end.
        drawn: of each draw, a video (33, 64, 64, 3) in 0 to 1 of each clip.
    """
    ends, seen = _ends(clips, drawn)
    draws = len(ends[0])
    families = [fact["family"] for fact in clips.facts]
    figures: dict[str, Any] = {}
    for family in dict.fromkeys(families):
        chosen = [n for n, name in enumerate(families) if name == family]
        answers = list((FAMILIES | OPEN_FAMILIES)[family].answers)
        chances = np.array([_chances(clips.facts[n], answers) for n in chosen])
        counts = np.array([[[end == answer for end in ends[n]] for answer in answers] for n in chosen]).sum(axis=-1)
        most = counts == counts.max(axis=1, keepdims=True)
        figures[family] = {
            "draws": draws,
            "scenes": len(chosen),
            "best_possible": _mean(chances.max(axis=1)),
            "one_draw": _mean((counts / draws * chances).sum(axis=1)),
            "most_draws": _mean((most * chances).sum(axis=1) / most.sum(axis=1)),
            "distance": _mean(_distance(counts / draws, chances)),
            "distance_of_perfect": _mean(_distance_of_perfect(chances, draws)),
            "all_agree": _mean(counts.max(axis=1) == draws),
        }
        if family != "tower":
            figures[family]["ball_seen"] = _mean(np.array([seen[n] for n in chosen]))
    return figures


def _ends(clips: Clips, drawn: Iterable[Iterable[Video]]) -> tuple[list[list[str]], list[list[bool]]]:
    """Of each clip, the end that each draw shows, and whether its first mover is seen in its colour."""
    ends: list[list[str]] = [[] for _ in clips.facts]
    seen: list[list[bool]] = [[] for _ in clips.facts]
    for videos in drawn:
        for n, video in enumerate(videos):
            layout = clips.layout(n)
            ends[n].append(read_outcome(clips.facts[n]["family"], video, layout))
            seen[n].append(find(video[-1], layout.movers[0].color)[2] > _SEEN)
    return ends, seen


def _chances(fact: dict[str, Any], answers: list[str]) -> list[float]:
    chances = fact.get("chances") or {fact["answer"]: 1.0}
    return [chances.get(answer, 0.0) for answer in answers]


def _distance(shares: NDArray[np.floating[Any]], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * np.abs(shares - chances).sum(axis=-1)


def _distance_of_perfect(chances: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(draws, chances / chances.sum(axis=1, keepdims=True), size=(_PERFECT_TRIES, len(chances)))
    return _distance(drawn / draws, chances)


def _mean(values: NDArray[Any]) -> float:
    return round(float(np.mean(values)), 4)


def main(arguments: list[str] | None = None) -> None:
    """Print how the draws of the world in a folder stand to the chances, on unseen scenes of test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--families", nargs="+", default=[*FAMILIES])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument(
        "--evaluations", type=int, help="of the network in a rollout; the world's own number by default"
    )
    options = parser.parse_args(arguments)
    require_families(options.families)
    evaluations = options.evaluations or resolve_world(str(options.weights)).card.denoise_steps - 1
    clips = clips_of(draw_scenes("test", options.scenes, families=options.families))
    world = CosmosWorld.load(options.weights)
    print(json.dumps(measure_draws(world, clips, draws=options.draws, evaluations=evaluations), indent=2))


if __name__ == "__main__":
    main()

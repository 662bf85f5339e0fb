"""Draws beside the chances of each end: a world that knows them comes near to the best possible reader."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from theworld.precompute.worldlet.scenes.physics import VIDEO_FRAMES, paint, simulate
from theworld.precompute.worldlet.scenes.scenes import OPEN_FAMILIES, make_pair
from theworld.precompute.worldlet.training.chances import compare_draws
from theworld.precompute.worldlet.training.clips import Clips, clips_of, draw_scenes

DRAWS = 24


@pytest.fixture(scope="module")
def clips() -> Clips:
    pushed = [scene for number in range(8) for scene in make_pair("push", number, "test")]
    return clips_of([*pushed, *draw_scenes("test", 4, families=["buckets"])])


def simulated(clips: Clips, *, always: float | None = None) -> Iterator[list[NDArray[np.float64]]]:
    """In place of a network, the physics itself: with a push of its own in each draw, or always the same."""
    rng, kind = np.random.default_rng(0), OPEN_FAMILIES["push"]

    def future(n: int) -> NDArray[np.float64]:
        push = kind.draw_push(rng) if always is None else always
        motion = simulate(clips.layout(n), push=push if clips.facts[n]["family"] == "push" else 0.0)
        return paint(clips.layout(n), motion.states[:VIDEO_FRAMES]) / 255

    return ([future(n) for n in range(len(clips))] for _ in range(DRAWS))


def test_a_world_that_draws_as_the_generator_is_as_far_from_the_chances_as_perfect_draws(clips: Clips) -> None:
    push = compare_draws(clips, simulated(clips))["push"]
    assert push["scenes"] == 16
    assert push["most_draws"] == pytest.approx(push["best_possible"], abs=0.05)
    assert push["one_draw"] < push["most_draws"]
    # of pushes that leave a doubt of the end, which the chances leave out, too
    assert push["distance"] == pytest.approx(push["distance_of_perfect"], abs=0.05)
    assert push["ball_seen"] == 1


def test_a_world_with_one_future_is_right_as_often_as_that_future_and_far_from_the_chances(clips: Clips) -> None:
    push = compare_draws(clips, simulated(clips, always=1.0))["push"]
    assert push["all_agree"] == 1
    assert push["one_draw"] == push["most_draws"] < push["best_possible"]
    assert push["distance"] > 2 * push["distance_of_perfect"]


def test_of_draws_that_end_equally_often_each_counts_alike(clips: Clips) -> None:
    first, second = (next(simulated(clips, always=push)) for push in (1.0, -1.0))
    push = compare_draws(clips, [first, second])["push"]
    assert push["all_agree"] < 1
    assert push["most_draws"] == push["one_draw"]


def test_a_ball_is_seen_where_it_is_there_to_the_end_and_towers_have_none() -> None:
    clips = clips_of(draw_scenes("test", 4, families=["buckets", "tower"]))
    whole, lost = (np.asarray(next(simulated(clips))) for _ in range(2))
    lost[:, -1] = 1.0
    figures = compare_draws(clips, [whole, lost])
    assert figures["buckets"]["ball_seen"] == 0.5
    assert "ball_seen" not in figures["tower"]


def test_where_frame_0_decides_all_chance_is_on_the_true_end(clips: Clips) -> None:
    buckets = compare_draws(clips, simulated(clips))["buckets"]
    wanted = {"best_possible": 1, "one_draw": 1, "most_draws": 1, "distance": 0, "distance_of_perfect": 0}
    assert {name: buckets[name] for name in wanted} == wanted
    assert buckets["all_agree"] == 1

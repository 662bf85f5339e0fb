"""Formulas give published values, and intervals hold the truth as often as they say."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.train.evaluation.statistics import (
    Bootstrap,
    Estimate,
    clustered,
    holm,
    p_of_equivalence,
    p_of_sign,
    sign_flips,
    wilson,
)

EVERYTHING = np.ones(400, bool)


# Source: R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3; and the closed form where all are right.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (0, 20, 0, 0.1611),
        (4, 4, 0.5101, 1),
    ],
)
def test_intervals_of_shares_are_wilsons(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_by_cluster_counts_copies_of_an_answer_once() -> None:
    """Ten scenes with six equal answers each are as good as ten answers."""
    right, scenes = [n % 2 == 0 for n in range(10) for _ in range(6)], [f"{n}" for n in range(10) for _ in range(6)]
    low, high = clustered(right, scenes)
    # Wilson's formula with Student's t of 9 degrees of freedom, 2.262157, and 9 questions: by hand
    assert (low, high) == pytest.approx((0.19909, 0.80091), abs=2e-4)
    assert wilson(30, 60) == pytest.approx((0.3774, 0.6226), abs=5e-5)


def test_an_interval_by_cluster_is_wilsons_where_every_question_has_its_own() -> None:
    right = [n % 3 == 0 for n in range(3000)]
    assert clustered(right, [str(n) for n in range(3000)]) == pytest.approx(wilson(1000, 3000), abs=2e-5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=60))
def test_an_interval_by_cluster_is_never_narrower_and_holds_the_share(answers: list[tuple[bool, int]]) -> None:
    right, scenes = [correct for correct, _ in answers], [str(scene) for _, scene in answers]
    low, high = clustered(right, scenes)
    plain_low, plain_high = wilson(sum(right), len(right))
    share = sum(right) / len(right)
    assert 0 <= low <= plain_low + 1e-9
    assert plain_high - 1e-9 <= high <= 1
    assert low - 1e-9 <= share <= high + 1e-9
    if len(set(scenes)) == 1:
        assert (low, high) == (0, 1)


def test_an_interval_by_cluster_holds_the_truth_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    held = {"clustered": 0, "wilson": 0}
    for _ in range(1000):
        chance = np.repeat(rng.beta(1.4, 0.6, size=30), 8)  # scenes differ; the share is .7
        right = (rng.random(240) < chance).tolist()
        scenes = [str(n // 8) for n in range(240)]
        intervals = {"clustered": clustered(right, scenes), "wilson": wilson(sum(right), 240)}
        for name, (low, high) in intervals.items():
            held[name] += low <= 0.7 <= high
    assert 930 <= held["clustered"] <= 975
    assert held["wilson"] < 850


@given(st.integers(1, 3000), st.floats(0, 1))
def test_an_interval_ends_where_a_share_would_lie_1_96_deviations_from_what_was_seen(total: int, share: float) -> None:
    correct = round(share * total)
    for end in wilson(correct, total):
        if 1e-9 < end < 1 - 1e-9:
            deviations = (end - correct / total) / math.sqrt(end * (1 - end) / total)
            assert abs(deviations) == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(10, 2, 158 / 4096), (2, 10, 158 / 4096), (0, 5, 1 / 16), (7, 7, 1), (0, 0, 1)]
)
def test_sign_flips_of_single_questions_are_mcnemars_exact_test(first: int, second: int, p: float) -> None:
    assert sign_flips([1] * first + [-1] * second + [0] * 3) == pytest.approx(p)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_sign_flips_are_all_ways_to_choose_the_signs(differences: list[int]) -> None:
    ways = [sum(way) for way in product(*([-d, d] for d in differences))]
    assert sign_flips(differences) == pytest.approx(sum(abs(way) >= abs(sum(differences)) for way in ways) / len(ways))


def test_equal_readers_are_told_apart_no_oftener_than_said_though_scenes_have_several_questions() -> None:
    rng = np.random.default_rng(0)
    by_scene, alone = 0, 0
    for _ in range(200):
        right = rng.random((2, 100, 1)) < 0.6  # a scene is understood or not …
        right = np.where(rng.random((2, 100, 4)) < 0.8, right, rng.random((2, 100, 4)) < 0.6)  # … mostly
        by_scene += sign_flips((right[0].astype(int) - right[1]).sum(1).tolist()) < 0.05
        alone += sign_flips((right[0].astype(int) - right[1]).ravel().tolist()) < 0.05
    assert by_scene < 0.08 * 200 < 0.15 * 200 < alone


def test_sign_flips_cope_with_thousands_of_questions() -> None:
    assert sign_flips([1, -1] * 2000) == 1
    assert 0 <= sign_flips([*[1] * 4000, -1]) < 1e-300
    # the normal approximation with continuity correction: (|1100 - 1000| - 1) / sqrt(2100)
    some = sign_flips([*[1] * 1000, *[-1] * 1100])
    assert some == pytest.approx(math.erfc(99 / math.sqrt(2100) / math.sqrt(2)), rel=0.01)


def test_p_values_are_adjusted_as_holm_did() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_an_adjusted_p_value_is_the_largest_of_the_groups_of_claims_it_is_in(p_values: list[float]) -> None:
    groups = [group for size in range(1, len(p_values) + 1) for group in combinations(range(len(p_values)), size)]
    for place, adjusted in enumerate(holm(p_values)):
        of = [min(1.0, len(group) * min(p_values[n] for n in group)) for group in groups if place in group]
        assert adjusted == pytest.approx(max(of))


def test_p_values_count_the_replicates_beyond_zero() -> None:
    draws = np.r_[np.full(990, 1.0), np.full(9, -1.0)]
    assert p_of_sign(draws) == pytest.approx(2 * 10 / 1000)
    assert p_of_sign(np.zeros(99)) == 1
    assert p_of_equivalence(draws / 100, 0.02) == pytest.approx(1 / 1000)
    assert p_of_equivalence(draws / 100, 0.01) == pytest.approx(991 / 1000)  # 990 lie on the margin


def test_equivalence_needs_the_whole_90_percent_interval_inside_the_margin() -> None:
    spread = np.linspace(-0.04, 0.04, 1001)
    assert Estimate.of(0, spread / 2).within(0.03)
    assert not Estimate.of(0, spread).within(0.03)
    assert not Estimate.of(0.02, spread / 2 + 0.02).within(0.03)


def simulated(rng: np.random.Generator, *, seeds: int, clusters: int, each: int = 2) -> np.ndarray:
    """Answers of readers that differ, to scenes that differ: right with a chance of .7 plus both their effects."""
    chance = 0.7 + rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.15, (1, clusters)).repeat(each, 1)
    return rng.random((seeds, clusters * each)) < chance


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    clusters = [str(number // 2) for number in range(400)]
    estimates = []
    for study in range(100):
        right = simulated(rng, seeds=5, clusters=200)
        estimate = Estimate.of(*Bootstrap(clusters, 5, replicates=200, seed=study).mean(right, EVERYTHING))
        estimates.append(estimate)
    assert np.mean([estimate.low <= 0.7 <= estimate.high for estimate in estimates]) >= 0.9
    # wider than need be where chance alone decides much, but not by much: drawing both factors counts it three times
    widths = np.mean([estimate.high - estimate.low for estimate in estimates]) / (2 * 1.96)
    assert 0.9 < widths / np.std([estimate.value for estimate in estimates]) < 1.7


def test_clusters_and_seeds_widen_the_interval_that_items_would_give() -> None:
    right = simulated(np.random.default_rng(1), seeds=5, clusters=200)
    by_scene = Bootstrap([str(number // 2) for number in range(400)], 5).mean(right, EVERYTHING)
    pooled = wilson(int(right.sum()), right.size)
    estimate = Estimate.of(*by_scene)
    assert estimate.value == pytest.approx(right.mean())
    assert estimate.high - estimate.low > 1.3 * (pooled[1] - pooled[0])


def test_few_seeds_are_not_made_to_look_alike() -> None:
    means = np.linspace(0.5, 0.9, 5)  # every question alike, so that the seeds alone differ
    right = np.arange(100)[None] < 100 * means[:, None]
    which = np.ones(100, bool)
    _, draws = Bootstrap(["all"] * 100, 5, replicates=4000).mean(right, which)
    assert draws.std() == pytest.approx(means.std(ddof=1) / math.sqrt(5), rel=0.05)


def test_differences_are_paired_by_scene_and_seed() -> None:
    rng = np.random.default_rng(2)
    clusters = [str(number) for number in range(400)]
    first = simulated(rng, seeds=3, clusters=400, each=1)
    second = first.copy()
    second[:, :20] = True  # better on a few, the same on the rest
    bootstrap = Bootstrap(clusters, 3)
    a, b = bootstrap.mean(first, EVERYTHING), bootstrap.mean(second, EVERYTHING)
    gain = Estimate.of(b[0] - a[0], b[1] - a[1])
    assert gain.low >= 0
    assert gain.p < 0.05
    apart = Bootstrap(clusters, 3, seed=1).mean(second, EVERYTHING)[1] - a[1]
    assert (b[1] - a[1]).std() < apart.std() / 3


def test_a_part_of_the_questions_is_counted_within_the_same_draws() -> None:
    right = simulated(np.random.default_rng(3), seeds=2, clusters=200)
    bootstrap = Bootstrap([str(number // 2) for number in range(400)], 2)
    even = np.arange(400) % 2 == 0
    halves = bootstrap.mean(right, even)[1] + bootstrap.mean(right, ~even)[1]
    assert np.allclose(halves / 2, bootstrap.mean(right, EVERYTHING)[1])
    assert np.isnan(bootstrap.mean(right, np.zeros(400, bool))[1]).all()


def test_replicates_without_a_value_prove_nothing() -> None:
    known = np.linspace(-0.02, 0.01, 400)
    with_gaps = np.concatenate([known, np.full(1600, np.nan)])
    assert p_of_equivalence(with_gaps, 0.03) == p_of_equivalence(known, 0.03) == pytest.approx(1 / 401)
    assert p_of_sign(with_gaps) == p_of_sign(known)


def test_an_estimate_holds_the_95_and_the_90_percent_interval_of_its_replicates() -> None:
    replicates = np.append(np.random.default_rng(0).permutation(np.arange(1001) / 1000), np.nan)
    found = Estimate.of(0.5, replicates)
    ends = (found.low, found.low90, found.high90, found.high)
    assert ends == pytest.approx((0.025, 0.05, 0.95, 0.975))
    assert found.p == pytest.approx(2 * 2 / 1002)  # one replicate is 0, and 1 is added to it
    assert not found.within(0.95)
    assert found.within(0.951)
    assert not Estimate.of(-0.5, -replicates).within(0.95)
    assert Estimate.of(-0.5, -replicates).within(0.951)


def test_an_estimate_without_replicates_has_no_interval_and_is_equivalent_to_nothing() -> None:
    none = Estimate.of(0.2, np.array([np.nan, np.nan]))
    assert none.value == 0.2
    assert all(math.isnan(end) for end in (none.low, none.high, none.low90, none.high90, none.p))
    assert not none.within(1)

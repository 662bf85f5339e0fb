"""The open family: frame 0 says how likely each end is, never which it is, and the best possible reader is known."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.precompute.worldlet.scenes.buckets import BINS
from theworld.precompute.worldlet.scenes.files import best_possible, read_truth, write_scenes
from theworld.precompute.worldlet.scenes.outcomes import read_outcome
from theworld.precompute.worldlet.scenes.physics import simulate
from theworld.precompute.worldlet.scenes.push import STRONGEST, WEAKEST, Push
from theworld.precompute.worldlet.scenes.scenes import FAMILIES, Scene, make_pair, make_video, questions
from theworld.train.worldlet.words import new_tokenizer


@cache
def scenes(count: int = 12) -> tuple[Scene, ...]:
    return tuple(scene for number in range(count) for scene in make_pair("push", number, "test"))


def test_it_is_made_where_it_is_named_and_in_no_default_set(tmp_path: Path) -> None:
    assert "push" not in FAMILIES
    write_scenes(tmp_path / "default", splits={"test": 8})
    assert {truth["family"] for truth in read_truth(tmp_path / "default")} == set(FAMILIES)
    assert best_possible(tmp_path / "default") == {}
    with pytest.raises(ConfigError, match=r"families are buckets, race, tower, contact, push"):
        write_scenes(tmp_path / "none", splits={"test": 2}, families=["shove"])
    with pytest.raises(ConfigError, match="family push is named twice"):
        write_scenes(tmp_path / "twice", splits={"test": 2}, families=["push", "push"])


def test_the_same_numbers_give_the_same_scene_and_the_push_moves_it() -> None:
    one = scenes()[0]
    again = make_pair("push", 0, "test")[0]
    assert (one.layout, one.push, one.answer, one.chances) == (again.layout, again.push, again.answer, again.chances)
    assert np.array_equal(one.states, again.states)
    assert WEAKEST <= abs(one.push) <= STRONGEST
    assert make_pair("push", 0, "test", seed=1)[0].layout != one.layout
    moved = one.states[1, 0, 0] - one.states[0, 0, 0]
    assert moved == pytest.approx(one.push, rel=0.05)
    still = simulate(one.layout).states
    assert still[0, 0, 0] == one.states[0, 0, 0]
    assert still[1, 0, 0] == pytest.approx(still[0, 0, 0])


def test_one_picture_may_end_in_several_ways() -> None:
    kind = Push()
    uncertain = next(scene for scene in scenes() if max(scene.chances.values()) < 0.9)
    pushes = np.linspace(-STRONGEST, STRONGEST, 24)
    ends = {kind.outcome(uncertain.layout, simulate(uncertain.layout, push=float(push))) for push in pushes}
    assert len(ends - {None}) > 1
    assert set(uncertain.chances) == set(BINS)
    assert sum(uncertain.chances.values()) == pytest.approx(1)


def test_a_reader_that_knows_the_chances_is_right_about_as_often_as_they_say() -> None:
    kind, rng = Push(), np.random.default_rng(3)
    expected, found = [], []
    for scene in scenes():
        likeliest = max(scene.chances, key=lambda answer: scene.chances[answer])
        for _ in range(12):
            motion = simulate(scene.layout, push=kind.draw_push(rng), counted=False)
            if (end := kind.outcome(scene.layout, motion)) is not None:
                expected.append(scene.chances[likeliest])
                found.append(end == likeliest)
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.08)
    assert 0.55 < np.mean(expected) < 0.9


def test_the_halves_of_a_pair_are_mirror_images_asked_in_the_same_words() -> None:
    for one, two in zip(scenes()[::2], scenes()[1::2], strict=True):
        assert np.abs(one.picture().astype(int) - two.picture()[:, ::-1]).mean() < 0.5  # edges are drawn anew
        assert one.pair == two.pair
        assert one.chances["left"] == pytest.approx(two.chances["right"], abs=0.1)
        for ours, theirs in zip(questions(one), questions(two), strict=True):
            assert (ours["question"], ours["choices"]) == (theirs["question"], theirs["choices"])


def test_its_questions_are_those_of_buckets_with_the_chances_beside_and_only_known_words() -> None:
    tokenizer = new_tokenizer()
    records = [record for scene in scenes(3) for record in questions(scene)]
    assert [record["about"] for record in records[:4]] == ["land", "below", "color", "count"]
    for record in records:
        assert ("chances" in record) == (record["type"] == "temporal")
        for text in (record["question"], record["answer"]):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    assert all("chances" not in record for record in questions(make_pair("buckets", 0, "test")[0]))


def test_the_fixed_parser_reads_how_a_clip_of_it_ends() -> None:
    read = [read_outcome("push", scene.frames() / 255, scene.layout) == scene.answer for scene in scenes(4)]
    assert all(read)
    clip = make_video("push", 0)
    assert (clip.split, clip.id, clip.pair) == ("video", "video-push-000000", "video-push-000000")


def test_the_command_says_how_good_the_best_possible_reader_is(tmp_path: Path) -> None:
    arguments = ["scenes", str(tmp_path / "p"), "--train", "4", "--test", "6", "--families", "push", "--jobs", "1"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "push, test: the best possible reader of frame 0 is right in" in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["best_possible"] == best_possible(tmp_path / "p")
    truths = [truth for truth in read_truth(tmp_path / "p") if truth["split"] == "test"]
    mean = np.mean([max(truth["chances"].values()) for truth in truths])
    assert found["best_possible"]["test"]["push"] == pytest.approx(mean, abs=1e-4)
    assert all(WEAKEST <= abs(truth["push"]) <= STRONGEST for truth in truths)

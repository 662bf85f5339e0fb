"""Scenes of the worldlet: their truth, their balance, their files."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from theworld.precompute.worldlet.buckets import BINS, DIVIDERS_X, bin_of
from theworld.precompute.worldlet.figures import find_ball
from theworld.precompute.worldlet.scenes import make_scene, scene_questions, write_scenes

GOLDEN = "0e6065992c8b3a88"
"""Over the first nine scenes of train. A change of it is a change of every trained weight: raise VERSION."""


def digest() -> str:
    hasher = hashlib.sha256()
    for index in range(9):
        scene = make_scene(index)
        hasher.update(json.dumps([scene.id, scene.answer, scene.bin_below, scene.layout.color]).encode())
        hasher.update(scene.frames.tobytes())
    return hasher.hexdigest()[:16]


def test_scenes_are_the_ones_the_weights_were_trained_on() -> None:
    assert digest() == GOLDEN


def test_a_scene_does_not_depend_on_what_was_made_before_it() -> None:
    make_scene(3)
    alone = make_scene(11, "test")
    again = make_scene(11, "test")
    assert np.array_equal(alone.frames, again.frames)
    assert alone.answer == again.answer


def test_splits_and_seeds_hold_different_scenes() -> None:
    starts = {make_scene(0, split, seed=seed).layout.start for split in ("train", "test") for seed in (0, 1)}
    assert len(starts) == 4


def test_the_bin_under_the_ball_guesses_right_in_one_third_of_the_scenes() -> None:
    scenes = [make_scene(index, "validation") for index in range(36)]
    cells = Counter((scene.bin_below, scene.answer) for scene in scenes)
    assert set(cells.values()) == {4}
    assert len(cells) == 9


def test_the_answer_is_where_the_ball_is_seen_to_rest() -> None:
    for index in range(12):
        scene = make_scene(index, "test")
        x, y, strength = find_ball(scene.frames[-1].astype(np.float32) / 255, scene.layout.color)
        assert bin_of(x) == scene.answer
        assert strength > 0.5
        assert abs(x - scene.positions[-1, 0]) < 1
        assert abs(y - scene.positions[-1, 1]) < 1
        assert min(abs(scene.positions[-1, 0] - edge) for edge in DIVIDERS_X) > 2


def test_a_ball_starts_clear_above_one_bin() -> None:
    for index in range(12):
        scene = make_scene(index)
        x, _ = scene.positions[0]
        assert bin_of(x) == scene.bin_below
        assert min(abs(x - edge) for edge in DIVIDERS_X) >= 2.5


@pytest.mark.parametrize(("index", "split"), [(-1, "train"), (0, "holiday")])
def test_an_impossible_scene_is_refused(index: int, split: str) -> None:
    with pytest.raises(ValueError, match=r"split|index"):
        make_scene(index, split)


def test_each_scene_asks_about_the_future_once_and_about_the_present_three_times() -> None:
    scene = make_scene(5)
    records = scene_questions(scene, "train")
    assert Counter(record["type"] for record in records) == {"temporal": 1, "static": 3}
    for record in records:
        assert record["answer"] in record["choices"]
        assert record["image"] == f"images/{scene.id}.png"
        assert record["question"] == str(record["question"]).lower()
    below = next(record for record in records if record["id"].endswith("below"))
    assert sorted(below["choices"]) == sorted(BINS)


def test_a_folder_holds_pictures_questions_and_futures(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, splits={"train": 3, "test": 2}, videos=True)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records) == 20
    assert Counter(record["split"] for record in records) == {"train": 12, "test": 8}
    for record in records:
        future = np.load(tmp_path / "futures" / f"{record['scene']}.npy", allow_pickle=False)
        assert future.shape == (33, 64, 64, 3)
        with Image.open(tmp_path / record["image"]) as image:
            assert np.array_equal(np.asarray(image), future[0])


def test_a_second_run_changes_nothing_and_a_cut_run_is_completed(tmp_path: Path) -> None:
    splits = {"train": 3, "test": 2}
    write_scenes(tmp_path / "a", splits=splits)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*.*")}
    write_scenes(tmp_path / "a", splits=splits)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*.*")}
    write_scenes(tmp_path / "b", splits={"train": 2})
    (tmp_path / "b/images/train-000001.png").unlink()
    write_scenes(tmp_path / "b", splits=splits)
    for path in (tmp_path / "a").rglob("*.*"):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()

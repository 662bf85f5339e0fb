"""Scenes of the worldlet: their truth, their balance, their pairs, their files."""

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from theworld.pipeline.errors import ConfigError
from theworld.precompute.worldlet.scenes.files import read_truth, write_scenes
from theworld.precompute.worldlet.scenes.outcomes import find, read_outcome
from theworld.precompute.worldlet.scenes.physics import UNSEEN_COLORS, Ball, simulate
from theworld.precompute.worldlet.scenes.scenes import FAMILIES, Scene, make_pair, make_video, questions
from theworld.precompute.worldlet.training.clips import clips_of, layout_of
from theworld.train.questions.record import read_questions
from theworld.train.worldlet.words import new_tokenizer

GOLDEN = {
    "buckets": "ba3dc0f283446ace",
    "race": "e3b4bb685c2db48b",
    "tower": "a0efa50210bfffc2",
    "contact": "44794e3fab924a0e",
}
"""Over the first pair of test and the first clip of video. A change is a change of every trained weight and of every
published figure: raise VERSION."""

families = pytest.mark.parametrize("family", FAMILIES)


@cache
def pairs(family: str, count: int = 6, split: str = "validation") -> tuple[tuple[Scene, Scene], ...]:
    return tuple(make_pair(family, number, split) for number in range(count))


def digest(family: str) -> str:
    hasher = hashlib.sha256()
    for scene in (*make_pair(family, 0, "test"), make_video(family, 0)):
        hasher.update(json.dumps([scene.id, scene.answer, scene.heuristic, questions(scene)]).encode())
        hasher.update(scene.frames().tobytes())
    return hasher.hexdigest()[:16]


@families
def test_scenes_are_the_ones_that_weights_and_figures_were_made_with(family: str) -> None:
    assert digest(family) == GOLDEN[family]


@families
def test_both_halves_of_a_pair_differ_in_one_element_and_end_differently(family: str) -> None:
    for one, two in pairs(family):
        assert one.pair == two.pair
        assert one.answer != two.answer
        assert one.heuristic == two.heuristic
        ours, theirs = one.layout, two.layout
        assert (ours.tint, ours.posts) == (theirs.tint, theirs.posts)
        ramps = sum(a != b for a, b in zip(ours.ramps, theirs.ramps, strict=True))
        movers = sum(a != b for a, b in zip(ours.movers, theirs.movers, strict=True))
        assert ramps + movers == 1


@families
def test_a_pair_is_asked_in_the_same_words_and_answers_the_static_questions_alike(family: str) -> None:
    for one, two in pairs(family):
        for ours, theirs in zip(questions(one), questions(two), strict=True):
            assert ours["question"] == theirs["question"]
            assert ours["choices"] == theirs["choices"]
            assert (ours["answer"] == theirs["answer"]) == (ours["type"] == "static")


@families
def test_every_rule_of_thumb_meets_every_answer_equally_often(family: str) -> None:
    kind = FAMILIES[family]
    cells = len(kind.heuristics) * len(kind.answers) * (len(kind.answers) - 1)  # pairs until each cell was there
    scenes = [scene for pair in pairs(family, min(cells, 6)) for scene in pair]
    counts = Counter((scene.heuristic, scene.answer) for scene in scenes)
    if cells <= 6:
        assert len(counts) == len(kind.heuristics) * len(kind.answers)
        assert len(set(Counter(scene.answer for scene in scenes).values())) == 1


@families
def test_the_parser_reads_the_answer_from_true_frames(family: str) -> None:
    for pair in pairs(family):
        for scene in pair:
            assert read_outcome(family, scene.frames() / np.float32(255), scene.layout) == scene.answer


@families
def test_an_answer_survives_a_nudge(family: str) -> None:
    kind = FAMILIES[family]
    for pair in pairs(family, 3):
        for scene in pair:
            for nudge in (-0.5, -0.25, 0.0, 0.25, 0.5):
                assert kind.outcome(scene.layout, simulate(scene.layout, nudge=nudge)) == scene.answer


@families
def test_a_scene_is_a_function_of_its_name(family: str) -> None:
    make_pair(family, 1, "validation")
    alone = make_pair(family, 0, "validation")
    for again, scene in zip(alone, pairs(family)[0], strict=True):
        assert again.id == scene.id
        assert np.array_equal(again.frames(), scene.frames())
    assert make_pair(family, 0, "validation", seed=1)[0].layout != alone[0].layout


@families
def test_things_are_painted_where_they_are(family: str) -> None:
    for scene in pairs(family)[0]:
        frames = scene.frames() / np.float32(255)
        for number, mover in enumerate(scene.layout.movers):
            if isinstance(mover, Ball):
                x, y, strength = find(frames[-1], mover.color)
                assert strength > 0.5
                assert np.hypot(x - scene.states[-1, number, 0], y - scene.states[-1, number, 1]) < 1.0


@families
def test_the_small_language_model_knows_every_word_it_is_asked(family: str) -> None:
    tokenizer = new_tokenizer()
    said = {str(text) for record in questions(pairs(family)[0][0]) for text in (record["answer"], *record["choices"])}  # type: ignore[misc]
    for text in (*said, *(wording for ask in FAMILIES[family].asks for wording in ask.templates)):
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_what_is_out_of_distribution_says_how() -> None:
    tall = make_pair("tower", 0, "ood")[0]
    assert (tall.shift, len(tall.layout.movers)) == ("tall", 6)
    ramps, colors = make_pair("buckets", 0, "ood")[0], make_pair("buckets", 1, "ood")[0]
    assert (ramps.shift, len(ramps.layout.ramps)) == ("ramps", 4)
    assert colors.shift == "colors"
    assert colors.layout.movers[0].color in UNSEEN_COLORS


def test_a_folder_of_scenes_holds_pictures_questions_truth_and_lossless_futures(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, splits={"train": 4, "test": 4}, families=["buckets", "tower"], videos=True)
    asked = read_questions(path)
    assert len(asked) == 8 * 4
    truth = {record["id"]: record for record in read_truth(tmp_path)}
    assert len(truth) == 8
    scene = make_pair("tower", 0, "test")[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / f"{scene.id}.png")), scene.picture())
    with av.open(tmp_path / "futures" / f"{scene.id}.mp4") as container:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(video, scene.frames())
    assert layout_of(truth[scene.id]["layout"]) == scene.layout


def test_scenes_grow_without_touching_what_is_there(tmp_path: Path) -> None:
    write_scenes(tmp_path, splits={"train": 2}, families=["tower"])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    path = write_scenes(tmp_path, splits={"train": 4, "test": 2}, families=["tower"])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    splits = Counter(question.split for question in read_questions(path))
    assert splits == {"train": 16, "test": 8}


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    for name, jobs in (("one", 1), ("two", 2)):
        write_scenes(tmp_path / name, splits={"train": 8}, families=["tower"], jobs=jobs)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize(
    ("splits", "chosen", "said"),
    [({"video": 2}, ["tower"], "video"), ({"train": -1}, ["tower"], "train"), ({"train": 2}, ["pinball"], "pinball")],
)
def test_what_cannot_be_made_is_refused_by_name(
    tmp_path: Path, splits: dict[str, int], chosen: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        write_scenes(tmp_path, splits=splits, families=chosen)
    with pytest.raises(ConfigError, match="seed"):
        write_scenes(tmp_path, splits={"train": 2}, seed=-1)


def test_clips_keep_what_a_parser_needs() -> None:
    scenes = pairs("contact")[0]
    clips = clips_of(scenes)
    assert clips.layout(0) == scenes[0].layout
    assert clips.masks(0).shape == (6, 33, 64, 64)
    assert np.isnan(clips.states[0, :, 2:]).all()


@pytest.mark.parametrize("name", ["questions.jsonl", "scenes.jsonl"])
@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]\n", b'{"id": 3, "scene": 3, "version": 1}', b"[" * 100_000])
def test_files_that_theworld_did_not_write_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    write_scenes(tmp_path, splits={"train": 2})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} is not what `theworld scenes` wrote"):
        write_scenes(tmp_path, splits={"train": 2})


@pytest.mark.parametrize(
    ("name", "content"),
    [("questions.jsonl", '{"image": "a.png", "question": "where?"}\n'), ("scenes.jsonl", '{"scene": "of my own"}\n')],
)
def test_files_of_the_user_s_own_are_not_overwritten(tmp_path: Path, name: str, content: str) -> None:
    """As with `theworld scenes .` in a folder of one's work, which holds one of the two."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"{name} is not what `theworld scenes` wrote"):
        write_scenes(tmp_path, splits={"train": 2})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content

"""Clips and pictures from a moment of a video, by columns of a list or by an anchor; the true future as an arm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.pipeline.store.upkeep.transfer import merge
from theworld.precompute.inputs.lookup import InputLookup
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.media.video_writing import write_video
from theworld.train.questions.record import Question, resolve_keys

FPS = 12


def moving(frames: int, first: int = 0) -> NDArray[np.uint8]:
    """A square on its way to the right, a pixel each frame."""
    pixels = np.full((frames, 64, 64, 3), 60, np.uint8)
    for at, picture in enumerate(pixels):
        picture[24:40, (first + at) % 48 : (first + at) % 48 + 16] = (240, 220, 40)
    return pixels


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "long.mp4", moving(36), FPS)
    write_video(folder / "late.mp4", moving(24, first=12), FPS)  # long.mp4 from its second second on
    return folder


def made(videos: Path, place: object, **changes: object) -> LatentStore:
    fields = {"images": place, "cache": videos.parent / "cache", "kind": "frames", "steps": 1, "device": "cpu"}
    report = run_precompute(PrecomputeConfig(**(fields | {"in_process": True, "dtype": "float32"} | changes)))
    assert report.bad == 0, report.summary()
    return open_store(report.store)


def write_list(folder: Path, rows: list[dict[str, object]]) -> Path:
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "list.jsonl"


def latent(store: LatentStore, file: Path, start_s: float | None = None) -> NDArray[np.float32]:
    return store.read([key_of_file(file, None, start_s)])[0]


def test_a_clip_begins_where_its_row_says(videos: Path) -> None:
    whole = made(videos, videos)
    rows = [{"video": "long.mp4", "time_start": 1, "time_end": 2.5}, {"video": "late.mp4", "time_start": None}]
    rows.append({"video": "long.mp4", "time_start": "0:00:00.500", "time_end": ""})
    store = made(videos, write_list(videos, rows), start_field="time_start", end_field="time_end")
    assert store.path == whole.path  # the recipe is the same: the start is the key's
    long, late = videos / "long.mp4", videos / "late.mp4"
    np.testing.assert_array_equal(latent(store, long, 1.0), latent(store, late))
    assert np.abs(latent(store, long, 0.5) - latent(store, long, 1.0)).mean() > 0.05
    assert store.starts() == {key_of_file(long, None, 1.0): 1.0, key_of_file(long, None, 0.5): 0.5}
    assert len(store.sources()["long.mp4"]) == 3


def test_a_start_of_zero_is_the_video_and_keys_without_a_start_never_change(videos: Path) -> None:
    long = videos / "long.mp4"
    assert key_of_file(long) == key_of_file(long, None, 0.0) != key_of_file(long, None, 0.001)
    assert key_of_file(long, None, 1.0) == key_of_file(long, None, 1.0004)
    store = made(videos, write_list(videos, [{"video": "long.mp4", "start": 0}]), start_field="start")
    assert list(store.keys) == [key_of_file(long)]


def test_an_image_and_its_own_true_future_have_one_key(videos: Path) -> None:
    rolled = made(videos, videos, kind="rollout", anchor="1", denoise_steps=2)
    real = made(videos, videos, anchor="0:01")
    still = made(videos, videos, kind="posterior", steps=None, anchor="1.0")
    assert sorted(rolled.keys) == sorted(real.keys) == sorted(still.keys)
    long, late = videos / "long.mp4", videos / "late.mp4"
    assert rolled.starts() == {key_of_file(long, None, 1.0): 1.0, key_of_file(late, None, 1.0): 1.0}
    # the first latent frame is the picture at that moment, of both
    np.testing.assert_allclose(latent(rolled, long, 1.0)[:, 0], latent(real, long, 1.0)[:, 0], atol=1e-5)
    np.testing.assert_allclose(latent(still, long, 1.0)[:, 0], latent(real, long, 1.0)[:, 0], atol=1e-5)


def test_an_anchor_may_be_a_column_of_the_list(videos: Path) -> None:
    rows = [{"video": "long.mp4", "at": 1.0}, {"video": "long.mp4", "at": 1.5}]
    store = made(videos, write_list(videos, rows), kind="rollout", anchor="at", denoise_steps=2)
    assert sorted(store.starts().values()) == [1.0, 1.5]
    views = made(videos, videos / "list.jsonl", kind="views", steps=4, anchor="at")
    assert sorted(views.keys) == sorted(store.keys)


def test_a_clip_that_goes_beyond_its_end_is_too_short(videos: Path) -> None:
    rows = [{"video": "long.mp4", "start": 1, "end": 1.2}, {"video": "long.mp4", "start": 1, "end": 1.5}]
    rows += [{"video": "late.mp4", "start": 1.9}]
    place = write_list(videos, rows)
    fields = {"start_field": "start", "end_field": "end", "cache": videos.parent / "c", "kind": "frames", "steps": 1}
    report = run_precompute(PrecomputeConfig(images=place, device="cpu", in_process=True, **fields))
    assert {failure.reason for failure in report.failures} == {"short"}
    assert "from 1.9 s on" in report.summary()


def test_what_is_no_moment_is_a_row_with_its_reason(videos: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": "long.mp4", "start": value} for value in ("soon", -1, True, [1, 2, 3], 1e9)
    ]
    rows += [{"video": "long.mp4", "start": [2, 1]}, {"video": "long.mp4", "start": "['0:00:01.0', '0:00:02.5']"}]
    place = write_list(videos, rows)
    fields = {"start_field": "start", "cache": videos.parent / "c", "kind": "frames", "steps": 1}
    report = run_precompute(PrecomputeConfig(images=place, device="cpu", in_process=True, **fields))
    assert report.written == 1
    assert [failure.reason for failure in report.failures] == ["row"] * 6
    assert "start must be one moment, in seconds or such as 0:12.5" in report.failures[0].message
    assert "the clip ends at 1 s and begins at 2 s" in report.failures[5].message


def test_settings_that_contradict_one_another_or_name_no_column_are_refused(videos: Path) -> None:
    with pytest.raises(ValidationError, match="leave one of them out"):
        PrecomputeConfig(images=videos, anchor="1", start_field="start")
    with pytest.raises(ValidationError, match="of videos, and none are given"):
        PrecomputeConfig(anchor="1")
    with pytest.raises(ConfigError, match=r"no columns, so --start-field cannot choose one"):
        made(videos, videos, start_field="start")
    with pytest.raises(ConfigError, match=r"no column start in any row.*--start-field"):
        made(videos, write_list(videos, [{"video": "long.mp4"}]), start_field="start")


def test_tables_state_moments_as_numbers_texts_or_durations(videos: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "video": ["long.mp4"] * 3,
        "a": [1.0, None, 0.5],
        "b": ["0:01", "", "0.5"],
        "c": pa.array([1000, None, 500], pa.duration("ms")),
        "d": [[1.0, 2.5], None, [0.5, 2.5]],
    }
    parquet.write_table(pa.table(columns), videos / "t.parquet")
    long = videos / "long.mp4"
    wanted = {key_of_file(long, None, start) for start in (None, 1.0, 0.5)}
    for column in "abcd":
        assert set(made(videos, videos / "t.parquet", start_field=column).keys) == wanted


def test_the_input_of_a_key_is_found_again_and_stores_keep_moments_when_merged(videos: Path) -> None:
    store = made(videos, videos, kind="rollout", anchor="1", denoise_steps=2)
    lookup = InputLookup(store, videos)
    for key in store.keys:
        assert lookup.load(key).pixels.shape == (3, 64, 64)
    other = made(videos, videos, kind="rollout", anchor="1.5", denoise_steps=2, cache=videos.parent / "other")
    merge(videos.parent / "merged", [store, other])
    assert sorted(open_store(videos.parent / "merged").starts().values()) == [1.0, 1.0, 1.5, 1.5]


def question(**fields: object) -> Question:
    return Question(**({"id": "q", "image": "long.mp4", "question": "?", "answer": "yes"} | fields))


def test_a_question_chooses_the_moment_it_asks_about(videos: Path) -> None:
    rows = [{"video": "long.mp4", "at": 1.0}, {"video": "long.mp4", "at": 1.5}, {"video": "late.mp4", "at": 1.5}]
    store = made(videos, write_list(videos, rows), kind="rollout", anchor="at", denoise_steps=2)
    real = made(videos, videos / "list.jsonl", anchor="at")
    long = videos / "long.mp4"
    for folder in (videos, videos.parent):  # beside the videos, and where they are not
        file = folder / "q.jsonl"
        for anchor in (1.0, 1.5):
            asked = question(anchor=anchor, future="long.mp4")
            assert resolve_keys([asked], file, store).keys == {"q": key_of_file(long, None, anchor)}
            assert resolve_keys([asked], file, real, field="future").keys == {"q": key_of_file(long, None, anchor)}
        [unclear] = resolve_keys([question()], file, store).missing
        assert "has latents at 2 moments of it; name one in the question's `anchor`" in unclear.reason
        [absent] = resolve_keys([question(anchor=0.25)], file, store).missing
        assert "at 0.25 s" in absent.reason
        assert resolve_keys([question(image="late.mp4")], file, store).keys == {
            "q": key_of_file(videos / "late.mp4", None, 1.5)
        }

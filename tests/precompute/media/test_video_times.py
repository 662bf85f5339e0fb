"""Which frames of a video a clip is made of: the nearest in time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.videos import encoded
from theworld.pipeline.errors import ImageError
from theworld.precompute.media import video
from theworld.precompute.media.video import REPEATED, Window, load_moment, load_video
from theworld.precompute.media.video_files import LATE
from theworld.precompute.media.video_times import ROUNDING_S, Timed, moments, nearest
from theworld.precompute.media.video_writing import write_video


def numbered(count: int) -> NDArray[np.uint8]:
    """Frames that say which they are: number n is of the grey level 4 n."""
    return np.repeat(np.arange(0, 4 * count, 4, dtype=np.uint8), 16 * 16 * 3).reshape(count, 16, 16, 3)


def taken(content: bytes, frames: int, fps: float | None) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the frames that a clip is made of, and its notes."""
    clip = load_video(content, frames, 16, 16, "cover", source="x.mp4", clip_fps=fps)
    levels = ((clip.pixels[0, :, 0, 0] + 1) * 127.5).round().int().tolist()
    return [round(level / 4) for level in levels], clip.notes


def times(stamps_ms: list[int]) -> list[Timed[int]]:
    steps = [b - a for a, b in itertools.pairwise(stamps_ms)]
    durations = [*steps, steps[-1] if steps else 40]
    return [
        Timed(Fraction(stamp, 1000), Fraction(step, 1000), number)
        for number, (stamp, step) in enumerate(zip(stamps_ms, durations, strict=True))
    ]


@given(
    steps=st.lists(st.integers(1, 400), min_size=0, max_size=40),
    fps=st.sampled_from([1.0, 5.0, 12.0, 16.0, 23.976, 24.0, 30000 / 1001, 60.0]),
    count=st.integers(1, 60),
)
def test_every_frame_of_a_clip_is_the_nearest_there_is(steps: list[int], fps: float, count: int) -> None:
    stamps = [sum(steps[:n]) for n in range(len(steps) + 1)]
    video, wanted = times(stamps), moments(count, fps)
    chosen = list(nearest(iter(video), wanted))
    assert chosen == sorted(chosen)
    for moment, number in zip(wanted, chosen, strict=False):
        distances = [abs(frame.time_s - moment) for frame in video]
        assert distances[number] <= min(distances) + ROUNDING_S
        earlier = [at for at in range(number) if distances[at] <= distances[number]]
        assert not earlier  # of two that are equally near, the earlier
    end = video[-1].time_s + video[-1].duration_s / 2 + ROUNDING_S
    assert len(chosen) == sum(moment <= end for moment in wanted)


@given(count=st.integers(1, 30), fps=st.sampled_from([12.0, 16.0, 24000 / 1001, 25.0, 60.0]))
def test_no_frame_is_asked_for_beyond_the_last_that_is_needed(count: int, fps: float) -> None:
    asked: list[int] = []

    def frames() -> Iterator[Timed[int]]:
        for number in range(100):
            asked.append(number)
            yield Timed(Fraction(number) / Fraction(fps), 1 / Fraction(fps), number)

    assert list(nearest(frames(), moments(count, fps))) == list(range(count)) == asked


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([5, 12, 15, 16, 24, 25, 30, 48, 50, 60, Fraction(24000, 1001), Fraction(30000, 1001)]),
    fps=st.sampled_from([12.0, 16.0, 24.0]),
)
def test_a_video_gives_the_same_frames_from_every_container(rate: int | Fraction, fps: float) -> None:
    frames = numbered(40)
    count = 1 + int(Fraction(39) / rate * Fraction(fps))
    numbers = {
        format: taken(encoded(format, codec, pix_fmt, frames, rate=rate, **options), count, fps)[0]
        for format, codec, pix_fmt, options in (
            ("mp4", "libx264rgb", "rgb24", {"crf": "0"}),
            ("matroska", "libx264rgb", "rgb24", {"crf": "0", "bf": "2"}),
            ("avi", "rawvideo", "bgr24", {}),
        )
    }
    exact = [round(Fraction(k) * rate / Fraction(fps) - Fraction(1, 10**6)) for k in range(count)]
    assert numbers == dict.fromkeys(numbers, exact)


@pytest.mark.parametrize(
    ("rate", "fps", "wanted"),
    [
        (12, 12.0, [0, 1, 2, 3, 4]),
        (48, 12.0, [0, 4, 8, 12, 16]),
        (30, 16.0, [0, 2, 4, 6, 7]),
        (24, 16.0, [0, 1, 3, 4, 6]),  # 1.5 and 4.5 are in the middle
        (Fraction(16000, 1001), 16.0, [0, 1, 2, 3, 4]),
        (16, 16000 / 1001, [0, 1, 2, 3, 4]),
        (6, 12.0, [0, 0, 1, 1, 2]),
    ],
)
def test_the_frames_of_usual_rates(rate: int | Fraction, fps: float, wanted: list[int], tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", numbered(20), rate)  # type: ignore[arg-type]
    numbers, notes = taken((tmp_path / "x.mp4").read_bytes(), 5, fps)
    assert numbers == wanted
    assert notes == ((REPEATED,) if rate == 6 else ())


def test_a_video_whose_rate_changes_is_read_by_its_time_stamps() -> None:
    stamps = [*range(0, 400, 40), *range(400, 2400, 400)]  # 25 a second, then 2.5
    content = encoded("matroska", "ffv1", "bgr0", numbered(len(stamps)), stamps_ms=stamps)
    assert taken(content, 9, 5.0) == ([0, 5, 10, 10, 11, 11, 12, 12, 13], (REPEATED,))
    assert taken(content, 9, None) == (list(range(9)), ())


def test_a_video_that_begins_late_or_has_frames_out_of_order_is_read_from_its_first_frame_on() -> None:
    late = encoded("matroska", "ffv1", "bgr0", numbered(9), stamps_ms=range(700, 1600, 100))
    assert taken(late, 4, 5.0) == ([0, 2, 4, 6], ())
    doubled = encoded("matroska", "ffv1", "bgr0", numbered(5), stamps_ms=[0, 100, 100, 200, 300])
    assert taken(doubled, 4, 10.0) == ([0, 1, 3, 4], (LATE,))


def test_a_video_that_is_too_short_says_so_in_seconds(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", numbered(20), 30)
    content = (tmp_path / "x.mp4").read_bytes()
    assert taken(content, 8, 12.0)[0] == [0, 2, 5, 7, 10, 12, 15, 17]
    with pytest.raises(ImageError, match=re.escape("x.mp4 lasts for 8 frames at 12 frames/s, 0.67 s")) as caught:
        taken(content, 9, 12.0)
    assert caught.value.reason == "short"
    for frames in (1, 9):  # of the clip's own rate, exactly as many as there are
        write_video(tmp_path / "x.mp4", numbered(frames), 12)
        assert taken((tmp_path / "x.mp4").read_bytes(), frames, 12.0)[0] == list(range(frames))
        with pytest.raises(ImageError, match=f"lasts for {frames} frames"):
            taken((tmp_path / "x.mp4").read_bytes(), frames + 1, 12.0)


@pytest.mark.parametrize(
    ("format", "codec", "pix_fmt", "options"),
    [
        ("mp4", "libx264", "yuv420p", {"g": "12", "bf": "3"}),
        ("mp4", "libx264", "yuv420p", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
        ("mp4", "libx264", "yuv420p", {"g": "1000"}),
        ("matroska", "libx265", "yuv420p", {"x265-params": "keyint=15:log-level=0"}),
        ("webm", "libvpx-vp9", "yuv420p", {"g": "20", "cpu-used": "8", "deadline": "realtime"}),
        ("avi", "mpeg4", "yuv420p", {"g": "12"}),
        ("mov", "prores_ks", "yuv422p10le", {}),
    ],
)
def test_a_clip_that_begins_later_is_that_of_the_video_decoded_from_its_start(
    format: str, codec: str, pix_fmt: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = np.add.outer(np.arange(64), np.arange(64))
    frames = [np.repeat(((grid + 3 * n) % 128 + n // 4)[..., None], 3, -1).astype(np.uint8) for n in range(200)]
    content = encoded(format, codec, pix_fmt, frames, rate=10, **options)

    def clip(start: float, fps: float | None) -> NDArray[np.float32]:
        window = Window(start)
        return load_video(content, 5, 64, 64, "cover", source="x", clip_fps=fps, window=window).pixels.numpy()

    for start, fps in ((6.0, 10.0), (9.93, 4.0), (12.35, None), (19.0, 20.0)):
        begun_there = clip(start, fps)
        with monkeypatch.context() as patch:
            patch.setattr(video, "_SKIPPED_S", 1e9)
            assert np.array_equal(begun_there, clip(start, fps))
    picture, _, _ = load_moment(content, 9.0, source="x")
    assert np.array_equal(np.asarray(picture), ((clip(9.0, 10.0)[:, 0] + 1) * 127.5).round().transpose(1, 2, 0))


def test_a_clip_begins_at_the_frame_nearest_to_its_start_and_ends_before_its_end(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", numbered(40), 10)
    content = (tmp_path / "x.mp4").read_bytes()

    def numbers(fps: float | None, start: float, end: float | None = None) -> list[int]:
        window = Window(start, end)
        clip = load_video(content, 5, 16, 16, "cover", source="x.mp4", clip_fps=fps, window=window)
        return [round(level / 4) for level in ((clip.pixels[0, :, 0, 0] + 1) * 127.5).round().int().tolist()]

    assert numbers(10.0, 1.0) == numbers(None, 1.0) == [10, 11, 12, 13, 14]
    assert numbers(5.0, 0.42) == [4, 6, 8, 10, 12]
    assert numbers(None, 0.46) == [5, 6, 7, 8, 9]
    assert numbers(None, 0.45) == [4, 5, 6, 7, 8]
    assert numbers(10.0, 3.5, 3.9) == numbers(None, 3.5, 3.9) == [35, 36, 37, 38, 39]
    for fps in (10.0, None):
        with pytest.raises(ImageError, match=r"from 1 s on up to 1\.3 s") as caught:
            numbers(fps, 1.0, 1.3)
        assert caught.value.reason == "short"
        with pytest.raises(ImageError, match=r"from 50 s on"):
            numbers(fps, 50.0)
    with pytest.raises(ImageError, match=r"x\.mp4 ends before 4\.1 s"):
        load_moment(content, 4.1, source="x.mp4")

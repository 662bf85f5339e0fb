from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.videos import encoded, matrix_of
from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.latents.recipe import Fit
from theworld.precompute.media import video_files
from theworld.precompute.media.images import load_image, to_tensor
from theworld.precompute.media.video import load_video
from theworld.precompute.media.video_files import container_of
from theworld.precompute.media.video_showing import Showing
from theworld.precompute.media.video_times import WHOLE, Window
from theworld.precompute.media.video_writing import write_video

H, W = 32, 48
NOISE = np.random.default_rng(0).integers(0, 256, (9, H, W, 3), dtype=np.uint8)


def written(tmp_path: Path, frames: NDArray[np.uint8] = NOISE) -> bytes:
    write_video(tmp_path / "x.mp4", frames, 12)
    return (tmp_path / "x.mp4").read_bytes()


def pixels_of(content: bytes, frames: int = len(NOISE), height: int = H, width: int = W) -> NDArray[np.uint8]:
    clip = load_video(content, frames, height, width, "cover", source="x.mp4").pixels
    return ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def reason_of(content: bytes, frames: int = len(NOISE)) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        load_video(content, frames, H, W, "cover", source="x.mp4")
    assert "x.mp4" in str(caught.value)
    return caught.value.reason, str(caught.value)


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 5), height=st.integers(16, 70), width=st.integers(16, 70), flat=st.booleans())
def test_what_is_written_is_read_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, frames: int, height: int, width: int, flat: bool
) -> None:
    rng = np.random.default_rng(height * width)
    pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8) // (64 if flat else 1)
    content = written(tmp_path_factory.mktemp("v"), pixels)
    assert np.array_equal(pixels_of(content, frames, height, width), pixels)


def test_equal_frames_give_equal_files_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    first = written(tmp_path)
    assert written(tmp_path) == first
    assert written(tmp_path, NOISE[:, :, ::-1]) != first  # also of frames that are a view
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path / "x.mp4", NOISE[:2], 12)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.mp4", before)]


def test_a_video_to_watch_is_what_players_show_and_near_to_its_frames(tmp_path: Path) -> None:
    frames = np.full((5, 64, 48, 3), 90, np.uint8)
    frames[:, 16:32, 16:32] = (200, 40, 40)
    write_video(tmp_path / "x.mp4", frames, 12, lossless=False)
    with av.open(str(tmp_path / "x.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    read = pixels_of((tmp_path / "x.mp4").read_bytes(), 5, 64, 48)
    assert np.abs(read.astype(int) - frames).mean() < 4
    with pytest.raises(ConfigError, match="even"):
        write_video(tmp_path / "x.mp4", frames[:, :63], 12, lossless=False)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [(NOISE[0], 12), (NOISE.astype(np.float32), 12), (NOISE[:0], 12), (NOISE[..., :1], 12), (NOISE, 0)],
)
def test_frames_that_make_no_video_are_refused(tmp_path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    with pytest.raises(ConfigError, match=r"x\.mp4.*\(F, H, W, 3\)"):
        write_video(tmp_path / "x.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


LOSSLESS = {
    "mp4": ("mp4", "libx264rgb", "rgb24", {"crf": "0"}),
    "mp4 with frames out of order": ("mp4", "libx264rgb", "rgb24", {"crf": "0", "bf": "3", "b_strategy": "0"}),
    "mkv": ("matroska", "libx264rgb", "rgb24", {"crf": "0"}),
    "mov": ("mov", "qtrle", "rgb24", {}),
    "avi": ("avi", "rawvideo", "bgr24", {}),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_of_others_give_their_pixels_in_the_order_shown(name: str) -> None:
    format, codec, pix_fmt, options = LOSSLESS[name]
    frames = np.stack([np.roll(NOISE[0] // 8, 2 * i, axis=1) for i in range(9)])  # moves, so that B frames are used
    content = encoded(format, codec, pix_fmt, frames, **options)
    assert container_of(content) is not None
    assert np.array_equal(pixels_of(content), frames)
    assert np.array_equal(pixels_of(content, 3), frames[:3])


@pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4", "libx264"])
def test_colours_of_lossy_files_come_back_about_right(codec: str) -> None:
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (255, 255, 255), (0, 0, 0)]
    frames = np.stack([np.full((H, W, 3), color, dtype=np.uint8) for color in colors])
    back = pixels_of(encoded("matroska", codec, "yuv420p", frames), len(colors))
    assert np.abs(back.astype(int) - frames).max() <= 10


def test_transparency_shows_white_as_in_an_image() -> None:
    clear = np.zeros((2, H, W, 4), dtype=np.uint8)
    assert pixels_of(encoded("mov", "png", "rgba", clear, "rgba"), 2).min() == 255


@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
def test_frames_are_fitted_as_images_are(tmp_path: Path, fit: Fit) -> None:
    clip = load_video(written(tmp_path), 2, 64, 32, fit, source="x").pixels
    assert clip.shape == (3, 2, 64, 32)
    assert clip.dtype == torch.float32
    buffer = io.BytesIO()
    Image.fromarray(NOISE[1]).save(buffer, "PNG")
    assert torch.equal(clip[:, 1], load_image(buffer.getvalue(), 64, 32, fit, source="x"))
    whole = load_video(written(tmp_path), 1, H, W, fit, source="x").pixels
    assert torch.equal(whole[:, 0], to_tensor(Image.fromarray(NOISE[0])))


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    content = written(tmp_path)
    png, avif = io.BytesIO(), io.BytesIO()
    Image.fromarray(NOISE[0]).save(png, "PNG")
    Image.fromarray(NOISE[0]).save(avif, "AVIF")
    for no_video in (b"", b"hello", png.getvalue(), avif.getvalue()):
        assert reason_of(no_video)[0] == "format"
    reason, message = reason_of(content, 10)
    assert (reason, "9 frames" in message, "10" in message, "--steps" in message) == ("short", True, True, True)
    assert reason_of(content[: len(content) // 2])[0] == "decode"
    assert reason_of(content[:8])[0] == "decode"
    reason, message = reason_of(encoded("avi", "flv", "yuv420p", NOISE))
    assert (reason, "codec" in message) == ("format", True)
    sound = io.BytesIO()
    with av.open(sound, "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert reason_of(sound.getvalue()) == ("format", "x.mp4 has no video stream")


def test_frames_beyond_the_cap_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_files, "MAX_PIXELS", H * W - 1)
    monkeypatch.setattr(Showing, "picture", lambda *_: pytest.fail("decoded"))
    assert reason_of(written(tmp_path))[0] == "too_large"


@pytest.mark.parametrize(
    "playlist",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"<?xml version='1.0'?><MPD></MPD>",
    ],
)
def test_a_playlist_opens_nothing(playlist: bytes) -> None:
    assert reason_of(playlist)[0] == "format"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutated_file_gives_frames_or_an_image_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    try:
        fps, window = data.draw(st.sampled_from([None, 10.0, 24.0])), data.draw(st.sampled_from([WHOLE, Window(6.0)]))
        clip = load_video(bytes(content), 5, H, W, "cover", source="x", clip_fps=fps, window=window)
        outcome = str(clip.pixels.shape)
    except ImageError as error:
        outcome = error.reason
    assert outcome in {f"torch.Size([3, 5, {H}, {W}])", "format", "decode", "short", "too_large"}


def as_hlg(stream: Any) -> None:
    stream.codec_context.colorspace, stream.codec_context.color_trc, stream.codec_context.color_primaries = 9, 18, 9
    stream.set_display_matrix(matrix_of(0, 1, -1, 0))


SEEDS = [
    encoded("mp4", "libx264rgb", "rgb24", NOISE[:5] // 64, crf="0"),
    encoded("matroska", "libvpx-vp9", "yuv420p", NOISE[:5]),
    encoded("avi", "mpeg4", "yuv420p", NOISE[:5]),
    encoded("mov", "qtrle", "rgb24", NOISE[:5] // 64),
    encoded("webm", "libvpx-vp9", "yuva420p", np.zeros((5, H, W, 4), np.uint8), "rgba", **{"auto-alt-ref": "0"}),
    encoded("mp4", "libx264", "yuv420p", NOISE[:5], **{"x264-params": "interlaced=1"}),
    encoded("mov", "prores_ks", "yuv422p10le", NOISE[:5], prepare=as_hlg),
]


SMOOTH = np.stack([np.roll(np.linspace(0, 255, H * W * 3).reshape(H, W, 3).astype(np.uint8), n, 0) for n in range(9)])
BITEXACT_BICUBIC = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)


def stock_frames(content: bytes, format: str, interpolation: Interpolation, **options: str) -> list[av.VideoFrame]:
    """The frames that PyAV alone decodes, as RGB."""
    with av.open(io.BytesIO(content), "r", format=format) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = options
        return [
            frame.reformat(format="rgb24", interpolation=interpolation, threads=1) for frame in container.decode(stream)
        ]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_colours_are_converted_with_the_bicubic_filter_of_pyav(pix_fmt: str) -> None:
    content = encoded("matroska", "ffv1", pix_fmt, NOISE)
    wanted = np.stack([frame.to_ndarray() for frame in stock_frames(content, "matroska", BITEXACT_BICUBIC)])
    assert np.array_equal(pixels_of(content), wanted)
    other = BITEXACT_BICUBIC & ~Interpolation.BICUBIC | Interpolation.BILINEAR
    bilinear = np.stack([frame.to_ndarray() for frame in stock_frames(content, "matroska", other)])
    assert not np.array_equal(bilinear, wanted)


def damaged_copies(content: bytes) -> Iterator[bytes]:
    """Copies with one other byte each, always the same ones."""
    draw = random.Random(0)
    for _ in range(200):
        copy = bytearray(content)
        copy[draw.randrange(len(copy) // 8, len(copy))] = draw.randrange(256)
        yield bytes(copy)


def decodes(content: bytes, format: str, **options: str) -> list[bool] | None:
    """Whether each frame is marked as corrupt; None where FFmpeg refuses one."""
    try:
        with av.open(io.BytesIO(content), "r", format=format) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = options
            return [frame.is_corrupt for frame in container.decode(stream)]
    # AttributeError: an unknown codec; IndexError: no video; UnicodeDecodeError: a damaged word of its header
    except (av.error.FFmpegError, AttributeError, IndexError, UnicodeDecodeError):
        return None


def test_damage_that_ffmpeg_would_conceal_is_refused() -> None:
    sound = encoded("avi", "mpeg2video", "yuv420p", SMOOTH)
    concealed = [
        copy
        for copy in damaged_copies(sound)
        if decodes(copy, "avi") == [False] * 9 and decodes(copy, "avi", err_detect="explode") is None
    ]
    assert concealed
    assert all(reason_of(copy)[0] == "decode" for copy in concealed[:5])


def test_a_frame_that_ffmpeg_marks_as_corrupt_is_refused() -> None:
    sound = encoded("mov", "prores_ks", "yuv422p10le", SMOOTH)
    assert decodes(sound, "mov", err_detect="explode") == [False] * 9
    marked = [copy for copy in damaged_copies(sound) if any(decodes(copy, "mov", err_detect="explode") or ())]
    assert marked
    for copy in marked[:5]:
        reason, message = reason_of(copy)
        assert (reason, "is damaged at one of its first frames" in message) == ("decode", True)


def test_ffmpeg_may_open_no_other_decoder_than_those_listed_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, told = av.open, list[dict[str, str]]()

    def listen(*arguments: Any, container_options: dict[str, str], **more: Any) -> Any:
        told.append(dict(container_options))
        return real(*arguments, container_options=container_options, **more)

    content, unread = written(tmp_path), encoded("avi", "flv", "yuv420p", NOISE)
    monkeypatch.setattr(video_files.av, "open", listen)
    assert np.array_equal(pixels_of(content), NOISE)
    assert reason_of(unread)[0] == "format"
    assert [options["enable_drefs"] for options in told] == ["0", "0"]  # no file that a MOV refers to
    for options in told:
        assert "h264" in options["codec_whitelist"].split(",")
        assert "flv" not in options["codec_whitelist"].split(",")

"""What a video file says of its own showing: with it and without, a file gives the same picture, or a note."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from tests.videos import EIGHT, ONE, encoded, matrix_of, turned
from theworld.pipeline.errors import ImageError
from theworld.precompute.media import video_files, video_showing
from theworld.precompute.media.video import load_video

H, W = 32, 48
NOISE = np.random.default_rng(0).integers(0, 256, (3, H, W, 3), dtype=np.uint8)


def shown(
    content: bytes, height: int = H, width: int = W, frames: int = 3
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The frames that world models see, and the notes."""
    clip = load_video(content, frames, height, width, "stretch", source="x.mp4")
    return ((clip.pixels + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy(), clip.notes


def lossless(frames: NDArray[np.uint8] = NOISE, format: str = "mp4", **more: Any) -> bytes:
    return encoded(format, "libx264rgb", "rgb24", frames, crf="0", **more)


def placed(frame: NDArray[np.uint8], a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """The frame with each pixel where the display matrix puts it, one by one."""
    at = {(a * x + c * y, b * x + d * y): frame[y, x] for y in range(frame.shape[0]) for x in range(frame.shape[1])}
    columns, rows = sorted({x for x, _ in at}), sorted({y for _, y in at})
    return np.array([[at[x, y] for x in columns] for y in rows])


@pytest.mark.parametrize("format", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("form", EIGHT)
def test_the_eight_display_matrices_are_applied(format: str, form: tuple[int, int, int, int]) -> None:
    matrix = matrix_of(*form)
    content = lossless(format=format, prepare=lambda stream: stream.set_display_matrix(matrix))
    size = (H, W) if form[0] else (W, H)
    wanted = np.stack([placed(frame, *form) for frame in NOISE])
    frames, notes = shown(content, *size)
    assert np.array_equal(frames, wanted)
    assert notes == (() if form == (1, 0, 0, 1) else (video_showing.TURNED,))
    assert np.array_equal(frames, shown(lossless(wanted), *size)[0])


@pytest.mark.parametrize("form", [(0.7, 0.7, -0.7, 0.7), (0, 0, 0, 0), (1, 1, 0, 0)])
def test_a_display_matrix_that_is_no_quarter_turn_is_noted(form: tuple[float, ...]) -> None:
    content = turned(lossless(), *form)
    frames, notes = shown(content)
    assert np.array_equal(frames, NOISE)
    assert notes in ((video_showing.ODD_MATRIX,), ())
    assert notes or form == (0, 0, 0, 0)  # FFmpeg drops that one
    assert video_showing.ODD_MATRIX in shown(turned(lossless(), 0, 2, -1, 0))[1]


def test_a_display_matrix_that_makes_one_side_longer_is_a_pixel_shape() -> None:
    frames, notes = shown(turned(lossless(), 2, 0, 0, 1), H, 2 * W)
    assert np.array_equal(frames, shown(lossless(prepare=with_aspect(Fraction(2))), H, 2 * W)[0])
    assert notes == (video_showing.STRETCHED,)


def with_aspect(shape: Fraction) -> Callable[[Any], None]:
    return lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", shape)


@pytest.mark.parametrize("format", ["mp4", "mov", "matroska", "avi"])
@pytest.mark.parametrize(
    ("shape", "size"), [(Fraction(2), (H, 2 * W)), (Fraction(3, 4), (43, W)), (Fraction(64, 45), (H, 68))]
)
def test_pixels_that_are_not_square_are_made_so_by_making_the_shorter_side_longer(
    format: str, shape: Fraction, size: tuple[int, int]
) -> None:
    codec = ("mpeg4", "yuv420p") if format == "avi" else ("libx264rgb", "rgb24")
    content = encoded(
        format, *codec, NOISE // 4, prepare=with_aspect(shape), **({} if format == "avi" else {"crf": "0"})
    )
    square = encoded(format, *codec, NOISE // 4, **({} if format == "avi" else {"crf": "0"}))
    height, width = size
    wanted = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
        for frame in shown(square)[0]
    ]
    frames, notes = shown(content, *size)
    assert np.array_equal(frames, np.stack(wanted))
    assert notes == (video_showing.STRETCHED,)


def test_a_pixel_shape_that_cannot_be_meant_is_noted_and_rounding_is_nothing() -> None:
    for shape, wanted in ((Fraction(8), (video_showing.ODD_ASPECT,)), (Fraction(1000, 999), ())):
        frames, notes = shown(lossless(prepare=with_aspect(shape)))
        assert np.array_equal(frames, NOISE)
        assert notes == wanted


def test_a_turned_frame_is_stretched_along_its_stored_side() -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_matrix(matrix_of(0, 1, -1, 0))

    frames, notes = shown(lossless(prepare=prepare), 2 * W, H)
    wide = [np.asarray(Image.fromarray(frame).resize((2 * W, H), Image.Resampling.LANCZOS)) for frame in NOISE]
    assert np.array_equal(frames, np.stack([np.rot90(frame, -1) for frame in wide]))
    assert notes == (video_showing.STRETCHED, video_showing.TURNED)


def test_a_stretched_frame_is_held_to_the_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_files, "MAX_PIXELS", H * W * 3 // 2)
    assert np.array_equal(shown(encoded("mov", "qtrle", "rgb24", NOISE))[0], NOISE)
    with pytest.raises(ImageError, match="limit") as caught:
        shown(encoded("mov", "qtrle", "rgb24", NOISE, prepare=with_aspect(Fraction(2))))
    assert caught.value.reason == "too_large"


def two_streams(first: int, second: int, dispositions: tuple[Disposition, Disposition]) -> bytes:
    """Two streams, of grey frames that differ: 50 and 200, of these heights."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        streams = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for stream, height, disposition in zip(streams, (first, second), dispositions, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, W, "bgr0"
            stream.disposition = disposition
        for stream, grey in zip(streams, (50, 200), strict=True):
            for _ in range(3):
                pixels = np.full((stream.height, W, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode(None))
    return buffer.getvalue()


NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic


@pytest.mark.parametrize(
    ("heights", "dispositions", "grey"),
    [
        ((32, 32), (NONE, DEFAULT), 200),
        ((32, 32), (DEFAULT, NONE), 50),
        ((32, 64), (DEFAULT, DEFAULT), 200),
        ((32, 32), (DEFAULT, DEFAULT), 50),
        ((64, 32), (NONE, DEFAULT), 200),
        ((64, 32), (NONE, NONE), 50),
    ],
)
def test_the_stream_that_players_choose_is_read(
    heights: tuple[int, int], dispositions: tuple[Disposition, Disposition], grey: int
) -> None:
    frames, notes = shown(two_streams(*heights, dispositions))
    assert (frames == grey).all()
    assert notes == (video_files.SEVERAL_STREAMS,)


def with_cover(grey: int, *, film: bool) -> bytes:
    """An MP4 with a cover picture, and a film of that grey."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 256, 256, "yuvj420p", COVER
        stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"}) if film else None
        if stream is not None:
            stream.height, stream.width, stream.pix_fmt = H, W, "rgb24"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((256, 256, 3), 9, np.uint8), "rgb24")))
        container.mux(cover.encode(None))
        if stream is not None:
            for _ in range(3):
                pixels = np.full((H, W, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_cover_picture_is_no_video() -> None:
    frames, notes = shown(with_cover(120, film=True))
    assert (frames == 120).all()
    assert notes == ()
    with pytest.raises(ImageError, match="no video stream"):
        shown(with_cover(120, film=False))


def moment(number: int) -> NDArray[np.uint8]:
    pixels = np.full((64, 64, 3), 60, np.uint8)
    pixels[16:48, 4 + 4 * number : 16 + 4 * number] = 235
    return pixels


def flagged(frames: list[NDArray[np.uint8]], field: str) -> list[av.VideoFrame]:
    """Frames whose lines belong to two moments: the top or the bottom field comes first."""
    graph = Graph()
    entry = graph.add("buffer", "video_size=64x64:pix_fmt=yuv444p:time_base=1/10")
    graph.link_nodes(entry, graph.add("setfield", field), graph.add("buffersink")).configure()
    made: list[av.VideoFrame] = []
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv444p")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        graph.vpush(frame)
        made.append(graph.vpull())
    return made


@pytest.mark.parametrize(
    ("format", "codec", "pix_fmt", "options"),
    [
        ("matroska", "ffv1", "yuv444p", {}),
        ("mp4", "libx264", "yuv444p", {"crf": "0", "x264-params": "interlaced=1"}),
        ("mov", "prores_ks", "yuv444p10le", {"qscale": "1"}),
    ],
)
@pytest.mark.parametrize("field", ["tff", "bff"])
def test_interlaced_frames_are_deinterlaced_and_noted(
    field: str, format: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    woven: list[NDArray[np.uint8]] = []
    for number in range(6):
        first, second = moment(2 * number), moment(2 * number + 1)
        frame = (first if field == "tff" else second).copy()
        frame[1::2] = (second if field == "tff" else first)[1::2]
        woven.append(frame)
    prepare = {"prepare": lambda stream: setattr(stream.codec_context, "flags", 1 << 18 | 1 << 29)}  # interlaced DCT
    made = prepare if codec == "prores_ks" else {}
    smooth, notes = shown(encoded(format, codec, pix_fmt, flagged(woven, field), **options, **made), 64, 64, frames=6)
    combed, no_notes = shown(encoded("matroska", "ffv1", "yuv444p", flagged(woven, "prog")), 64, 64, frames=6)
    assert (notes, no_notes) == ((video_files.INTERLACED,), ())
    wanted = np.stack([moment(2 * number) for number in range(6)]).astype(int)
    assert np.abs(combed - wanted).mean() > 5
    assert np.abs(smooth - wanted).mean() < 2.5  # the field that comes first, and what is between its lines


def test_video_that_is_not_flagged_as_interlaced_goes_through_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_files, "_deinterlacer", lambda _: pytest.fail("deinterlaced"))
    assert np.array_equal(shown(lossless())[0], NOISE)


CLEAR = np.dstack([np.full((64, 64, 3), (40, 90, 200), np.uint8), np.full((64, 64), 255, np.uint8)])
CLEAR[:, :32, 3] = 0
CLEAR[:16, 32:, 3] = 128
OVER_WHITE = np.where(
    CLEAR[..., 3:] == 255, CLEAR[..., :3], 255 - (255 - CLEAR[..., :3].astype(int)) * CLEAR[..., 3:] // 255
)


@pytest.mark.parametrize(
    ("format", "codec", "pix_fmt"),
    [
        ("webm", "libvpx", "yuva420p"),
        ("webm", "libvpx-vp9", "yuva420p"),
        ("matroska", "libvpx-vp9", "yuva420p"),
        ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "qtrle", "argb"),
        ("mov", "png", "rgba"),
        ("matroska", "ffv1", "yuva420p"),
        ("matroska", "ffv1", "bgra"),
        ("avi", "utvideo", "gbrap"),
        ("avi", "rawvideo", "bgra"),
    ],
)
def test_the_alpha_of_every_codec_that_has_it_is_laid_over_white(format: str, codec: str, pix_fmt: str) -> None:
    options = {"auto-alt-ref": "0", "crf": "4", "b": "4M"} if codec.startswith("libvpx") else {}
    frames, notes = shown(encoded(format, codec, pix_fmt, [CLEAR] * 3, "rgba", **options), 64, 64)
    assert np.abs(frames.astype(int) - OVER_WHITE).mean() < 4
    assert (frames[:, 8:56, 4:24] >= 250).all()
    assert notes == (video_showing.TRANSPARENT,)
    opaque, notes = shown(
        encoded(
            format,
            codec,
            pix_fmt,
            [np.dstack([CLEAR[..., :3], np.full((64, 64), 255, np.uint8)])] * 3,
            "rgba",
            **options,
        ),
        64,
        64,
    )
    assert np.abs(opaque.astype(int) - CLEAR[..., :3]).mean() < 4
    assert notes == ()


def with_colours(matrix: int = 2, transfer: int = 2, primaries: int = 2, range_: int = 0) -> Callable[[Any], None]:
    def prepare(stream: Any) -> None:
        context = stream.codec_context
        context.colorspace, context.color_trc, context.color_primaries = matrix, transfer, primaries
        context.color_range = range_

    return prepare


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (6, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_matrix_and_range_are_those_that_the_file_states(matrix: int, red: float, blue: float, full: bool) -> None:
    patches = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (255, 255, 255), (10, 10, 10)], float)
    luma = patches @ [red, 1 - red - blue, blue]
    coded = [luma, (patches[:, 2] - luma) / (2 - 2 * blue) + 0, (patches[:, 0] - luma) / (2 - 2 * red)]
    planes = (
        [coded[0], coded[1] + 128, coded[2] + 128]
        if full
        else [16 + coded[0] * 219 / 255, 128 + coded[1] * 224 / 255, 128 + coded[2] * 224 / 255]
    )
    yuv = [np.repeat(np.rint(plane).astype(np.uint8), 16)[None].repeat(32, axis=0) for plane in planes]
    frame = av.VideoFrame.from_ndarray(np.stack(yuv), "yuv444p")
    frame.color_range, frame.colorspace = (2 if full else 1), matrix
    content = encoded("matroska", "ffv1", "yuv444p", [frame], prepare=with_colours(matrix, range_=2 if full else 1))
    frames, notes = shown(content, 32, 80, frames=1)
    assert np.abs(frames[0, 16, 8::16].astype(int) - patches).max() <= 2
    assert notes == ()


def test_colours_that_are_not_applied_are_noted() -> None:
    for content, note in (
        (with_colours(transfer=8), video_showing.ODD_TRANSFER),
        (with_colours(primaries=10), video_showing.ODD_PRIMARIES),
    ):
        assert shown(encoded("matroska", "ffv1", "yuv444p", NOISE, prepare=content))[1] == (note,)
    with pytest.raises(ImageError, match=r"x\.mp4 is in a colour matrix that is not read, number 8") as caught:
        shown(encoded("matroska", "ffv1", "yuv444p", NOISE, prepare=with_colours(matrix=8)))
    assert caught.value.reason == "format"
    tall = np.zeros((1, 720, 32, 3), np.uint8)
    unstated = shown(encoded("matroska", "ffv1", "yuv420p", tall), frames=1)[1]
    assert unstated == (video_showing.NO_COLOUR_MATRIX,)
    assert shown(encoded("matroska", "ffv1", "yuv420p", tall, prepare=with_colours(matrix=1)), frames=1)[1] == ()


def test_the_number_one_of_a_display_matrix_is_that_of_the_specification() -> None:
    assert matrix_of(1, 0, 0, 1) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 0x40000000)

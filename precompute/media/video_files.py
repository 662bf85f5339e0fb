"""The frames of a video file with their times, decoded by PyAV.

- MP4, MOV, MKV, WebM or AVI, told by content and never by name; at most 1 GiB and 8K frames
- the stream that players choose: no cover picture, marked as default, of the most pixels, the first
- in a codec of a fixed list
- the alpha of VP8 and VP9 in WebM, which a decoder of its own reads
- interlaced frames deinterlaced (FFmpeg's bwdif, a frame of each two fields)
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from av.filter import Graph
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from .video_times import Timed

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
MAX_BYTES = 2**30
MAX_PIXELS = 2**25
"""Pixels of one frame; 8K has 33.2 million."""

# Codecs of cameras, phones, screen recorders and research data. FFmpeg opens no other decoder.
_DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "msmpeg4v2", "msmpeg4v3", "mpeg1video", "mpeg2video"),
    *("mjpeg", "prores", "dnxhd", "ffv1", "ffvhuff", "huffyuv", "utvideo", "qtrle", "png", "rawvideo"),
)
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec -> the decoder that reads the alpha beside it in Matroska, which the usual one passes over."""
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")
"""Brands of still images that use the MP4 container."""
_BEFORE_START_S = 1
"""A moment is looked for from so many seconds before it: containers count by the time of decoding, which is earlier."""
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_DEINTERLACED_FORMATS = ("yuv", "gbr", "gray")
"""How the names of planar formats begin, which bwdif takes as they are."""

INTERLACED = "interlaced; deinterlaced by bwdif"
INTERLACED_STILL = "interlaced, in a pixel format that is not deinterlaced"
SEVERAL_STREAMS = "of several video streams; the one that players choose was used"
NO_TIMES = "without time stamps; their frames were counted at the stated rate"
LATE = "with frames out of the order of their times, which were left out"


class OpenVideo:
    """A video file being decoded."""

    def __init__(self, stream: VideoStream, source: str) -> None:
        self._stream, self._source = stream, source
        self.notes: dict[str, None] = {}
        """What was done with the file, in the order in which it was met."""
        self._first: Fraction | None = None
        """Time stamp of the first frame, where it is known before `timed` begins."""
        self._reach: Fraction | None = None
        """The moment that the first frame of `timed` must not be after."""

    @property
    def rate(self) -> Fraction:
        """Frames a second, on average."""
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(0)
        return rate if 0 < rate <= 1000 else Fraction(25)  # what FFmpeg takes where a file says nothing

    @property
    def rounded_rate(self) -> float:
        """`rate` for people."""
        return round(float(self.rate), 3)

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel by its height: the container's word, else the codec's."""
        return self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio

    def frames(self) -> Iterator[VideoFrame]:
        """The frames in display order, deinterlaced where they are flagged; raises ImageError."""
        yield from self._deinterlaced()

    def skip_to(self, start_s: float) -> None:
        """Begin `timed` shortly before a moment, at a keyframe that the container's index names.

        Where it begins later than that, or the frames there need others before them, `timed` raises ImageError; a video
        that is opened anew and decoded from its start has the right ones.
        """
        first = next(iter(_decode(self._stream)), None)
        base = self._stream.time_base
        if first is None or first.pts is None or first.time_base is None or not base:
            raise ImageError(FailureReason.DECODE, f"{self._source} has no times to find a moment by")
        self._first, self._reach = first.pts * first.time_base, Fraction(start_s)
        target = self._first + Fraction(start_s) - _BEFORE_START_S
        self._stream.container.seek(int(target / base), stream=self._stream)  # type: ignore[attr-defined]

    def timed(self) -> Iterator[Timed[VideoFrame]]:
        """The frames with their times, which grow; raises ImageError."""
        first = self._first
        last = Fraction(-1)
        step = 1 / self.rate
        for frame in self._deinterlaced():
            base = frame.time_base
            if frame.pts is None or base is None:
                self.notes[NO_TIMES] = None
                time_s = Fraction(0) if first is None else last + step
                first = Fraction(0) if first is None else first
            else:
                stamp = frame.pts * base
                first = stamp if first is None else first
                time_s = stamp - first
            if self._reach is not None and last < 0 and time_s > self._reach:
                raise ImageError(FailureReason.DECODE, f"{self._source} has no keyframe before {float(self._reach)} s")
            if time_s <= last:
                self.notes[LATE] = None
                continue
            duration = frame.duration * base if frame.duration and base else (time_s - last if last >= 0 else step)
            yield Timed(time_s, duration, frame)
            last = time_s

    def _decoded(self) -> Iterator[VideoFrame]:
        for frame in _decode(self._stream):
            if frame.is_corrupt:
                raise ImageError(FailureReason.DECODE, f"{self._source} is damaged at one of its first frames")
            check_size(frame.width, frame.height, self._source)
            yield frame

    def _deinterlaced(self) -> Iterator[VideoFrame]:
        graph: Graph | None = None
        form = None
        for frame in self._decoded():
            if graph is not None and form != (frame.width, frame.height, frame.format.name):
                yield from _pushed(graph, None)
                graph = None
            if graph is None and frame.interlaced_frame:
                if frame.format.name.startswith(_DEINTERLACED_FORMATS):
                    self.notes[INTERLACED] = None
                    graph, form = _deinterlacer(frame), (frame.width, frame.height, frame.format.name)
                else:
                    self.notes[INTERLACED_STILL] = None
            if graph is None:
                yield frame
            else:
                yield from _pushed(graph, frame)
        if graph is not None:
            yield from _pushed(graph, None)


def container_of(content: bytes) -> str | None:
    """FFmpeg's name of the container that the first bytes state; None where they state no video."""
    if content[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return "avi"
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and content[8:12] not in _STILL_BRANDS:
        return "mov"
    return None


@contextmanager
def open_video(content: bytes, source: str) -> Generator[OpenVideo]:
    """One video, open for as long as it is decoded.

    Raises:
        ImageError: it cannot be used; `reason` is format, too_large, memory or decode.
    """
    if (format := container_of(content)) is None:
        raise ImageError(FailureReason.FORMAT, f"{source} is not a video in MP4, MOV, MKV, WebM or AVI")
    try:
        # the format is named and never guessed: from a playlist FFmpeg would open the files it points to
        options = {"codec_whitelist": ",".join(_DECODERS), "enable_drefs": "0"}
        with av.open(io.BytesIO(content), "r", format=format, container_options=options) as container:
            streams = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
            if not streams:
                raise ImageError(FailureReason.FORMAT, f"{source} has no video stream")
            stream = max(streams, key=_rank)
            decoder = stream.codec_context
            if decoder is None or decoder.name not in _DECODERS:  # pyright: ignore[reportUnnecessaryComparison]
                name = "an unknown codec" if decoder is None else f"the codec {decoder.name}"
                raise ImageError(
                    FailureReason.FORMAT, f"{source} is in {name}, which is not read; re-encode it as H.264"
                )
            check_size(decoder.width, decoder.height, source)
            _restrain(decoder)
            video = OpenVideo(stream, source)
            if len(streams) > 1:
                video.notes[SEVERAL_STREAMS] = None
            yield video
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            FailureReason.MEMORY, f"{source} takes more memory to decode than one input may have"
        ) from error
    except Exception as error:  # FFmpeg has an exception for each of its codes, and some of Python's
        problem = getattr(error, "strerror", None) or error
        raise ImageError(
            FailureReason.DECODE, f"{source} cannot be decoded: {type(error).__name__}: {problem}"
        ) from error


def check_size(width: int, height: int, source: str) -> None:
    """Raise ImageError for frames that are too large."""
    if width * height > MAX_PIXELS:
        raise ImageError(
            FailureReason.TOO_LARGE, f"{source} has frames of {width} x {height} pixels; the limit is {MAX_PIXELS:,}"
        )


def _rank(stream: VideoStream) -> tuple[bool, int, int]:
    decoder = stream.codec_context
    pixels = 0 if decoder is None else decoder.width * decoder.height  # pyright: ignore[reportUnnecessaryComparison]
    return bool(stream.disposition & Disposition.default), pixels, -stream.index


def _restrain(decoder: VideoCodecContext) -> None:
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}


def _decode(stream: VideoStream) -> Iterator[VideoFrame]:
    usual = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1" or usual.name not in _WITH_ALPHA:
        yield from stream.container.decode(stream)  # type: ignore[attr-defined]
        return
    decoder = VideoCodecContext.create(_WITH_ALPHA[usual.name], "r")
    _restrain(decoder)
    for packet in stream.container.demux(stream):  # type: ignore[attr-defined]
        yield from decoder.decode(packet if packet.size else None)


def _deinterlacer(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    form = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base or '1/25'}"
    colours = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    entry = graph.add("buffer", f"{form}:pixel_aspect=1/1:{colours}")
    filter = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    graph.link_nodes(entry, filter, graph.add("buffersink")).configure()
    return graph


def _pushed(graph: Graph, frame: VideoFrame | None) -> Iterator[VideoFrame]:
    graph.vpush(frame)
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return

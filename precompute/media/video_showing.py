"""From a decoded frame to the picture that a player shows, by what the file states of its display.

matrix, range       by FFmpeg's swscale, as stated; BT.601 where no matrix is, as FFmpeg does
transfer            PQ and HLG to SDR (video_colours.py); others are taken as they are
primaries           to BT.709's, where stated
alpha               over white
pixel shape         the side that is too short is made longer
display matrix      its eight turns and mirrorings
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image

from ...pipeline.errors import ImageError
from ...pipeline.failures import FailureReason
from ...pipeline.files.images.decode import to_rgb
from .video_colours import PRIMARIES, Transfer, to_bt709
from .video_files import check_size

# Slower than swscale's defaults, but with the same bits on every CPU.
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_ROUND_ASPECT, _MOST_ASPECT = Fraction(1, 200), 4
"""A pixel shape so near to a square is rounding; one so far from it is a mistake."""
_HD_HEIGHT = 720

# numbers of ITU-T H.273, which are FFmpeg's
_HDR: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_UNUSUAL_TRANSFERS = {8, 9, 10, 17}  # linear, logarithmic, of cinema
_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}  # swscale's
_UNSTATED, _BT709, _BT2020 = 2, 1, 9
_UNSTATED_PRIMARIES = (0, 2, 3)  # of them, two are reserved
_FULL_RANGE = 2

TURNED = "turned or mirrored as their display matrix says"
ODD_MATRIX = "with a display matrix that is no quarter turn; it was not applied"
STRETCHED = "brought to the pixel shape that they state"
ODD_ASPECT = "with a pixel shape that cannot be meant; taken as square"
FROM_HDR = {"pq": "HDR (PQ), mapped to SDR", "hlg": "HDR (HLG), mapped to SDR"}
PRIMARIES_CONVERTED = "converted from the colour primaries that they state to those of BT.709"
ODD_PRIMARIES = "with colour primaries that are not converted"
ODD_TRANSFER = "with a transfer function that is not applied"
NO_COLOUR_MATRIX = "of HD size without a colour matrix; BT.601's was taken, as FFmpeg does"
TRANSPARENT = "with transparency; it shows white"
STEREO = "of two eyes or all around (3D, 360 degrees); used flat as they are stored"


class Showing:
    """Turns the frames of one video into pictures, and notes what it met."""

    def __init__(self, source: str, notes: dict[str, None]) -> None:
        """
        Args:
            notes: where it adds its own.
        """
        self._source, self._notes = source, notes

    def picture(self, frame: VideoFrame, pixel_aspect: Fraction | None) -> Image.Image:
        """The RGB picture of a frame.

        Raises:
            ImageError: it cannot be shown rightly, or is too large by then.
        """
        image = to_rgb(Image.fromarray(self._pixels(frame)))
        image = self._stretched(image, pixel_aspect)
        stated = cast(Mapping[Type, Any], frame.side_data)
        if Type.STEREO3D in stated or Type.SPHERICAL in stated:
            self._notes[STEREO] = None
        if Type.DISPLAYMATRIX in stated:
            image = self._turned(image, struct.unpack("=9i", bytes(stated[Type.DISPLAYMATRIX])))
        return image

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """8-bit RGB or RGBA in the colours of BT.709, SDR."""
        self._note_colours(frame)
        transfer: Transfer = _HDR.get(int(frame.color_trc), "sdr")
        has_alpha = any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8"
        if transfer == "sdr":
            mode, white = ("rgba" if has_alpha else "rgb24"), 255
        else:
            mode, white = ("rgba64le" if has_alpha else "rgb48le"), _white(frame)
        pixels: NDArray[Any] = np.asarray(frame.to_ndarray(format=mode, interpolation=_CONVERSION, threads=1))
        most = int(np.iinfo(pixels.dtype).max)
        if has_alpha and pixels[..., 3].min() < most:
            self._notes[TRANSPARENT] = None
        primaries = _primaries_of(frame, transfer)
        if transfer == "sdr" and primaries == _BT709:
            return pixels
        self._notes[PRIMARIES_CONVERTED if transfer == "sdr" else FROM_HDR[transfer]] = None
        rgb = to_bt709(pixels[..., :3], transfer, primaries, white=white)
        return np.dstack([rgb, (pixels[..., 3] // (most // 255)).astype(np.uint8)]) if has_alpha else rgb

    def _note_colours(self, frame: VideoFrame) -> None:
        if frame.colorspace not in _MATRICES:
            raise ImageError(
                FailureReason.FORMAT,
                f"{self._source} is in a colour matrix that is not read, number {int(frame.colorspace)} of ITU-T "
                "H.273; convert it to BT.709",
            )
        if frame.color_trc in _UNUSUAL_TRANSFERS:
            self._notes[ODD_TRANSFER] = None
        if frame.color_primaries not in (*_UNSTATED_PRIMARIES, *PRIMARIES):
            self._notes[ODD_PRIMARIES] = None
        if frame.colorspace == _UNSTATED and frame.height >= _HD_HEIGHT and frame.format.name.startswith("yuv"):
            self._notes[NO_COLOUR_MATRIX] = None

    def _stretched(self, image: Image.Image, aspect: Fraction | None) -> Image.Image:
        if not aspect or abs(aspect - 1) < _ROUND_ASPECT:
            return image
        if not Fraction(1, _MOST_ASPECT) <= aspect <= _MOST_ASPECT:
            self._notes[ODD_ASPECT] = None
            return image
        width, height = image.size
        size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        check_size(*size, self._source)
        self._notes[STRETCHED] = None
        return image.resize(size, resample=Image.Resampling.LANCZOS)

    def _turned(self, image: Image.Image, matrix: tuple[int, ...]) -> Image.Image:
        """The picture whose pixel (a x + c y, b x + d y) is the pixel (x, y) of the image."""
        a, b, u, c, d, v = matrix[:6]
        most = max(map(abs, (a, b, c, d)))
        straight, crossed = max(abs(b), abs(c)) * 100 <= most, max(abs(a), abs(d)) * 100 <= most
        # a scale of one side is in the pixel shape, where FFmpeg puts it, but for the wrong side of a turned frame
        scaled = crossed and abs(abs(b) - abs(c)) * 100 > most
        if u or v or straight == crossed or scaled or 0 in ((a, d) if straight else (b, c)):
            self._notes[ODD_MATRIX] = None
            return image
        pixels = np.asarray(image)
        right, down = a > 0, d > 0
        if crossed:
            pixels = pixels.transpose(1, 0, 2)
            right, down = c > 0, b > 0
        elif right and down:
            return image
        self._notes[TURNED] = None
        return Image.fromarray(np.ascontiguousarray(pixels[:: 1 if down else -1, :: 1 if right else -1]))


def _primaries_of(frame: VideoFrame, transfer: Transfer) -> int:
    """Those that the file states; BT.709 where it states none, or those that the numbers of HDR imply."""
    stated = int(frame.color_primaries)
    if stated not in PRIMARIES:
        return _BT709 if transfer == "sdr" else _BT2020
    return _BT709 if PRIMARIES[stated] == PRIMARIES[_BT709] else stated


def _white(frame: VideoFrame) -> int:
    """The 16-bit code that swscale gives a channel of 1."""
    if frame.format.is_rgb:
        return 65535
    if frame.color_range == _FULL_RANGE:
        bits = frame.format.components[0].bits
        return ((1 << bits) - 1) << (16 - bits)
    return 255 << 8

"""Colours of a video to those that 8-bit pictures have: BT.709 primaries, SDR.

A pixel R'G'B' becomes linear light, in units of SDR white, which is 203 cd/m2 (BT.2408):

    SDR   V ** 2.4                                          BT.1886
    PQ    EOTF(V) / 203                                     BT.2100, SMPTE ST 2084
    HLG   1000 / 203 * Ys ** 0.2 * OETF'(V)                 BT.2100, OOTF of a display of 1000 cd/m2

then a 3 x 3 matrix brings it to the primaries and the white of BT.709, and what is negative is clipped to 0. Of HDR,
the largest of the three channels goes through the curve of BT.2390 (section 5.4.1: from 1000 cd/m2 to 203, unchanged up
to 94), and the others keep their ratio to it, so hues stay. Last comes V = L ** (1 / 2.4), rounded to 8 bits. A file's
own word for its brightest pixel is not asked for: PQ beyond 1000 cd/m2 is clipped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Transfer = Literal["sdr", "pq", "hlg"]

SDR_WHITE, PEAK = 203.0, 1000.0
"""cd/m2."""
_GAMMA = 2.4
_BLOCK_PIXELS = 2**20
_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
_BT601_525 = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)
PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: _BT709,
    4: ((0.670, 0.330), (0.210, 0.710), (0.140, 0.080), _C),
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), _D65),
    6: _BT601_525,
    7: _BT601_525,
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
"""Red, green, blue and white as CIE 1931 x, y, by the numbers of ITU-T H.273, which FFmpeg uses too."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_bt709(pixels: NDArray[Any], transfer: Transfer, primaries: int, *, white: int) -> NDArray[np.uint8]:
    """Convert pixels as the head of this file says.

    Args:
        pixels: uint8 or uint16 (H, W, 3).
        primaries: one of `PRIMARIES`.
        white: the code of a channel that is 1.
    Returns:
        uint8 (H, W, 3).
    """
    height, width, _ = pixels.shape
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // width)  # few temporary arrays for a frame of any size
    for top in range(0, height, rows):
        result[top : top + rows] = _convert(pixels[top : top + rows], transfer, primaries, white)
    return result


def _convert(pixels: NDArray[Any], transfer: Transfer, primaries: int, white: int) -> NDArray[np.uint8]:
    # channel by channel, and by tables: a matrix product and a power have other last bits on other CPUs
    table = _light(transfer, int(np.iinfo(pixels.dtype).max), white)
    light = [table[pixels[..., channel]] for channel in range(3)]
    if transfer == "hlg":
        gain = _hlg_gain()[_sqrt_index(_mixed(light, _to_xyz(primaries)[1]))]
        light = [channel * gain for channel in light]
    light = [np.maximum(_mixed(light, row), 0) for row in _matrix(primaries)]
    if transfer != "sdr":
        largest = np.maximum(np.maximum(light[0], light[1]), light[2])
        at = (np.minimum(largest * np.float32(SDR_WHITE / PEAK), 1) * 65535 + 0.5).astype(np.uint16)
        scale = np.minimum(_tone_curve()[at], 1 / np.maximum(largest, 1e-6))
        light = [channel * scale for channel in light]
    return np.stack([_codes()[_sqrt_index(channel)] for channel in light], axis=-1)


def _mixed(light: list[NDArray[np.float32]], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    red, green, blue = (channel * np.float32(weight) for channel, weight in zip(light, weights, strict=True))
    return red + green + blue


def _sqrt_index(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Place in a table of 65536 square roots of light from 0 to 1: finer steps in the dark."""
    return (np.sqrt(np.minimum(light, 1)) * 65535 + 0.5).astype(np.uint16)


@lru_cache(maxsize=8)
def _light(transfer: Transfer, largest: int, white: int) -> NDArray[np.float32]:
    """Linear light of each code."""
    codes = np.minimum(np.arange(largest + 1) / white, 1)
    if transfer == "pq":
        return (pq_eotf(codes) / SDR_WHITE).astype(np.float32)
    return (hlg_inverse_oetf(codes) if transfer == "hlg" else codes**_GAMMA).astype(np.float32)


@lru_cache(maxsize=1)
def _codes() -> NDArray[np.uint8]:
    """8-bit code of each square root of linear light."""
    return np.rint((np.arange(65536) / 65535) ** (2 / _GAMMA) * 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _hlg_gain() -> NDArray[np.float32]:
    """Of each square root of the luminance of a scene, what the OOTF multiplies its light by."""
    return ((np.arange(65536) / 65535) ** 0.4 * PEAK / SDR_WHITE).astype(np.float32)


@lru_cache(maxsize=1)
def _tone_curve() -> NDArray[np.float32]:
    """For light from 0 to the peak, what the curve of BT.2390 multiplies it by."""
    nits = np.linspace(0, PEAK, 65536)
    peak = pq_inverse_eotf(np.array(PEAK))
    code = pq_inverse_eotf(nits) / peak
    most = pq_inverse_eotf(np.array(SDR_WHITE)) / peak
    knee = 1.5 * most - 0.5
    t = (code - knee) / (1 - knee)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    mapped = pq_eotf(np.where(code < knee, code, bent) * peak)
    return np.divide(mapped, nits, out=np.ones_like(nits), where=code >= knee).astype(np.float32)


def pq_eotf(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """cd/m2 of codes from 0 to 1. Source: SMPTE ST 2084."""
    root = codes ** (1 / 78.84375)
    return 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def pq_inverse_eotf(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `pq_eotf`."""
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_inverse_oetf(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light of the scene, from 0 to 1, of codes from 0 to 1. Source: BT.2100, table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)


def _xyz(chromaticity: tuple[float, float]) -> NDArray[np.float64]:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])


@lru_cache(maxsize=16)
def _to_xyz(primaries: int) -> NDArray[np.float64]:
    """Linear R, G, B to X, Y, Z; white has Y = 1."""
    *corners, white = PRIMARIES[primaries]
    columns = np.stack([_xyz(corner) for corner in corners], axis=1)
    return columns * np.linalg.solve(columns, _xyz(white))


@lru_cache(maxsize=16)
def _matrix(primaries: int) -> NDArray[np.float64]:
    """Linear R, G, B to those of BT.709, white to white (Bradford)."""
    ours, theirs = (_BRADFORD @ _xyz(PRIMARIES[number][-1]) for number in (1, primaries))
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(ours / theirs) @ _BRADFORD
    return np.linalg.inv(_to_xyz(1)) @ adapt @ _to_xyz(primaries)

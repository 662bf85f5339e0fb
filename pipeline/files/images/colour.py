"""Colours as files state them, and their conversion to sRGB by lcms.

What is no ICC profile becomes one, so that all go one way. The rendering intent is perceptual, which browsers and
Pillow take too; between profiles of three primaries all intents are the same.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ...errors import ImageError
from ...failures import FailureReason

MAX_PROFILE_BYTES = 4 * 2**20
"""Profiles of printers have about 1 MiB."""

FROM_PROFILE = "colours converted to sRGB from their own profile"
FROM_CMYK_PROFILE = "CMYK converted to sRGB by their own profile"
CMYK_BY_FORMULA = "CMYK without a profile of its own: converted by a formula, so that colours are approximate"
BROKEN = "colour profile that cannot be read; colours used as they are stored"
MISFIT = "colour profile of another kind of image; colours used as they are stored"
SHALLOW = "16-bit colours were read at 8 bits before their colours were converted, so that dark ones are approximate"

_NoTransform = Literal["same", "misfit"]
Point = tuple[float, float]
_CMS: Any = ImageCms  # whose annotations are partial
_D65: Point = (0.3127, 0.3290)
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
_PRIMARIES: Mapping[int, tuple[str, tuple[Point, Point, Point, Point]]] = {
    4: ("BT.470 M", ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316))),
    5: ("BT.601", ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65)),
    6: ("BT.601", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)),
    7: ("SMPTE 240M", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)),
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65)),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351))),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65)),
}
"""ITU-T H.273, table 2; 1 is sRGB, 2 unknown."""
_GAMMAS: Mapping[int, float] = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
_LIKE_SRGB = frozenset({1, 2, 6, 7, 13, 14, 15})
"""Transfer functions of ITU-T H.273 that are shown as sRGB's, as browsers do."""
_HDR: Mapping[int, str] = {16: "PQ", 18: "HLG"}
_CURVE_SRGB = struct.pack(
    ">4sIHHiiiii", b"para", 0, 3, 0, *(round(x * 65536) for x in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True, slots=True)
class Colours:
    """What the numbers of an image mean."""

    profile: bytes | None = None
    """An ICC profile; None for sRGB, and where nothing is known."""
    note: str | None = None
    """What a person should know: with a profile once it is applied, without one at any rate."""


def of_profile(profile: bytes | None) -> Colours:
    """Colours of an embedded ICC profile; None or nothing for one that lacks a part."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return Colours(note=BROKEN)
    return Colours(profile, FROM_CMYK_PROFILE if profile[16:20] == b"CMYK" else FROM_PROFILE)


def of_code_points(primaries: int, transfer: int, *, source: str) -> Colours:
    """Colours of code points of ITU-T H.273.

    Raises:
        ImageError: they are HDR.
    """
    if transfer in _HDR:
        raise ImageError(
            FailureReason.FORMAT,
            f"{source} is an HDR image ({_HDR[transfer]}), which would need tone mapping to 8 bits. Save it as SDR",
        )
    if primaries not in (1, 2, *_PRIMARIES) or transfer not in (*_LIKE_SRGB, *_GAMMAS):
        return Colours(note="primaries or a transfer function that are not known; colours used as they are stored")
    if primaries in (1, 2) and transfer in _LIKE_SRGB:
        return Colours()
    name, points = _PRIMARIES.get(primaries, ("", _SRGB))
    curve = _CURVE_SRGB if transfer in _LIKE_SRGB else _gamma_curve(_GAMMAS[transfer])
    words = f" from {name}" if name else ""
    return Colours(_matrix_profile(points, curve), f"colours converted to sRGB{words}, as their code points say")


def of_gamma(gamma: float | None, chromaticities: tuple[float, ...] | None) -> Colours:
    """Colours of a PNG's gAMA and cHRM.

    Args:
        gamma: of the file, such as 0.45455. chromaticities: x and y of white, red, green and blue.
    """
    points = _SRGB
    if chromaticities is not None:
        white, *primaries = zip(chromaticities[::2], chromaticities[1::2], strict=True)
        points = (primaries[0], primaries[1], primaries[2], white)
    alike = bool(np.allclose(points, _SRGB, atol=0.003))
    if gamma is not None and not 0.05 <= gamma <= 5:
        return Colours(note="gamma that is not possible; colours used as they are stored")
    # 1 / 2.2 is how a file says that it is sRGB to those who know no more than gamma
    if (gamma is None or abs(gamma - 1 / 2.2) < 0.02) and alike:
        return Colours()
    curve = _CURVE_SRGB if gamma is None else _gamma_curve(1 / gamma)
    try:
        return Colours(
            _matrix_profile(points, curve), "colours converted to sRGB by the gamma and primaries that they state"
        )
    except (np.linalg.LinAlgError, ZeroDivisionError, struct.error):
        return Colours(note="primaries that are not possible; colours used as they are stored")


@functools.cache
def adobe_rgb() -> Colours:
    """Colours of a camera that says in EXIF alone that they are Adobe RGB."""
    return Colours(
        _matrix_profile(_ADOBE, _gamma_curve(563 / 256)),
        "colours converted to sRGB from Adobe RGB, which their EXIF data state",
    )


def to_srgb(image: Image.Image, colours: Colours) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in sRGB, and what a person should know of it.

    Args:
        image: of mode L, LA, RGB, RGBA, CMYK or LAB; its pixels may be overwritten.
    Returns:
        An image of mode L, LA, RGB or RGBA.
    """
    if image.mode == "LAB":
        return _from_lab().apply(image), ()
    note = colours.note
    if colours.profile is not None:
        try:
            converted = _convert(image, colours.profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # whatever lcms and Pillow raise on broken ones
            converted, note = None, BROKEN
        if isinstance(converted, Image.Image):
            return converted, (note,) if note else ()
        note = {"same": None, "misfit": MISFIT}.get(converted or "", note)
    notes = (note,) if note else ()
    if image.mode == "CMYK":
        return image.convert("RGB"), (*notes, CMYK_BY_FORMULA)
    return image, notes


def _convert(image: Image.Image, profile: bytes) -> Image.Image | _NoTransform:
    """The image in sRGB, or why it stays as it is."""
    source = (
        "CMYK" if image.mode == "CMYK" else "L" if image.mode in ("L", "LA") and profile[16:20] == b"GRAY" else "RGB"
    )
    transform = _transform(profile, source)
    if not isinstance(transform, ImageCms.ImageCmsTransform):
        return transform
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    pixels = image if image.mode == source else image.convert(source)
    converted = transform.apply_in_place(pixels) if source == "RGB" else transform.apply(pixels)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | _NoTransform:
    """The way from a profile to sRGB; `same` where that changes nothing, `misfit` where it is for other modes."""
    given = _CMS.ImageCmsProfile(io.BytesIO(profile))
    space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]
    if given.profile.xcolor_space.strip() != space or given.profile.device_class not in (
        "mntr",
        "scnr",
        "prtr",
        "spac",
    ):
        return "misfit"
    # the usual table of lcms is off by up to 19 of 255 for inks; the finer one costs 0.1 s to make
    finer = ImageCms.Flags.HIGHRESPRECALC
    transform = ImageCms.ImageCmsTransform(given, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags=finer)
    if mode != "CMYK":
        probe = _probe(mode)
        transformed = np.asarray(transform.apply(probe), dtype=np.int16)
        if np.abs(transformed - np.asarray(probe.convert("RGB"), dtype=np.int16)).max() <= 1:
            return "same"
    return transform


@functools.cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    """Not optimised: the table that lcms would make of it is off by up to 11 of 255."""
    lab = ImageCms.ImageCmsProfile(_CMS.createProfile("LAB"))
    return ImageCms.ImageCmsTransform(lab, _srgb(), "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(_CMS.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """An image of many colours, the darkest and the brightest among them."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return Image.fromarray(cube.reshape(64, 64, 3))


def _gamma_curve(gamma: float) -> bytes:
    return struct.pack(">4sIHHi", b"para", 0, 0, 0, round(gamma * 65536))


@functools.lru_cache(maxsize=32)
def _matrix_profile(points: tuple[Point, Point, Point, Point], curve: bytes) -> bytes:
    """An ICC profile (4.2) of three primaries and a white, each by x and y, with one tone curve for all."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
    white = columns[:, 3]
    to_xyz = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    cones = _BRADFORD @ _D50 / (_BRADFORD @ white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ to_xyz
    tags = [(name, _xyz(adapted[:, number])) for number, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(b"wtpt", _xyz(_D50)), *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC"))]
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags:
        table += struct.pack(">4sII", name, at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s28x", at + len(body), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += struct.pack(">iii", *(round(value * 65536) for value in _D50)) + b"\0" * 48
    return header + struct.pack(">I", len(tags)) + table + body


def _xyz(value: NDArray[Any]) -> bytes:
    return struct.pack(">4s4xiii", b"XYZ ", *(round(float(part) * 65536) for part in value))

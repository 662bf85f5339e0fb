"""What an image file says of its colours, its transparency and its orientation is applied, or noted.

The colours that are wanted come from the formulas of the profiles, by numpy; a few of 255 steps are theirs who round.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images import colour as image_colour
from theworld.pipeline.files.images.decode import BROKEN_EXIF, NO_ADOBE, XMP_TURN, decode_image, read_image
from theworld.pipeline.files.images.stated_colours import GIF_PROFILE

Array = NDArray[Any]
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65)
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50)
Curve = Callable[[Array], Array]


def xyz(point: tuple[float, float]) -> Array:
    return np.array([point[0] / point[1], 1.0, (1 - point[0] - point[1]) / point[1]])


def to_d50(white: Array) -> Array:
    """Bradford's adaptation of a white to that of profiles."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    return np.linalg.inv(cones) @ np.diag(cones @ [0.9642, 1.0, 0.8249] / (cones @ white)) @ cones


def matrix(points: tuple[tuple[float, float], ...]) -> Array:
    """Linear RGB of these primaries and this white to XYZ of D50."""
    columns, white = np.stack([xyz(point) for point in points[:3]], axis=1), xyz(points[3])
    return to_d50(white) @ (columns * np.linalg.solve(columns, white))


def power(gamma: float) -> Curve:
    return lambda values: values**gamma


def srgb_curve(values: Array) -> Array:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: Array) -> Array:
    """8 bits of linear sRGB."""
    light = np.clip(light, 0, 1)
    return np.rint(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255)


def wanted(pixels: Array, points: tuple[tuple[float, float], ...], curve: Curve, bits: int = 8) -> Array:
    """Pixels of these primaries and this curve as sRGB."""
    return encoded(curve(pixels / (2**bits - 1)) @ (np.linalg.inv(matrix(SRGB)) @ matrix(points)).T)


def profile(points: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """An ICC profile of version 2, as cameras and phones embed; gamma 0 is the curve of sRGB."""
    steps = srgb_curve(np.arange(1024) / 1023) * 65535
    numbers = np.rint(steps).astype(">u2").tobytes() if not gamma else struct.pack(">H", round(gamma * 256))
    curve = b"curv" + struct.pack(">II", 0, len(numbers) // 2) + numbers
    columns = [b"XYZ \0\0\0\0" + np.rint(column * 65536).astype(">i4").tobytes() for column in matrix(points).T]
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return icc(b"RGB ", b"XYZ ", dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)) | curves)


def icc(space: bytes, target: bytes, parts: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    at, table, body = 132 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for name, value in parts.items():
        table += struct.pack(">4sII", name, at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    light = struct.pack(">iii", 63190, 65536, 54061)
    head = struct.pack(">I4xI4s4s4s12x4s28x", at + len(body), 0x02400000, kind, space, target, b"acsp")
    return (head + light).ljust(128, b"\0") + table + body


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(gamma * 256))
    return icc(b"GRAY", b"XYZ ", {b"kTRC": curve, b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)})


def cube(steps: int = 8) -> Array:
    values = np.linspace(0, 255, steps).astype(np.uint8)
    return np.stack(np.meshgrid(values, values, values), -1).reshape(steps, -1, 3)


PIXELS = cube()


def saved(image: Image.Image | Array, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks behind its header."""
    further = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return png[:33] + further + png[33:]


def decoded(content: bytes) -> tuple[Array, tuple[str, ...]]:
    result = read_image(content, source="x")
    assert (result.image.mode, result.image.info) == ("RGB", {})
    return np.asarray(result.image).astype(int), result.notes


def farthest(content: bytes, pixels: Array) -> float:
    return float(np.abs(decoded(content)[0] - pixels).max())


PROFILES = {"P3": (P3, 0.0), "Adobe": (ADOBE, 2.2), "ProPhoto": (PROPHOTO, 1.8), "linear": (SRGB, 1.0)}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_an_embedded_profile_is_applied(format: str, options: dict[str, Any], name: str) -> None:
    points, gamma = PROFILES[name]
    content = saved(PIXELS, format, icc_profile=profile(points, gamma), **options)
    # curves of profiles state gamma in 1/256
    curve = power(round(gamma * 256) / 256) if gamma else srgb_curve
    assert farthest(content, wanted(PIXELS, points, curve)) <= 2
    assert decoded(content)[1] == (image_colour.FROM_PROFILE,)


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_a_profile_means_the_same_in_lossy_formats(format: str) -> None:
    with_it = decoded(saved(PIXELS, format, icc_profile=profile(ADOBE, 2.2), quality=95))[0]
    without = decoded(saved(PIXELS, format, quality=95))[0]
    assert np.abs(with_it - wanted(without, ADOBE, power(563 / 256))).max() <= 1


def test_a_profile_of_several_parts_in_a_jpeg_is_one() -> None:
    long = profile(ADOBE, 2.2) + bytes(150_000)
    content = saved(PIXELS, "JPEG", icc_profile=long)
    assert content.count(b"ICC_PROFILE") == 3
    assert decoded(content)[1] == (image_colour.FROM_PROFILE,)


@pytest.mark.parametrize("srgb", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), profile(SRGB, 0)])
def test_a_profile_of_srgb_changes_no_bit_and_is_not_noted(srgb: bytes) -> None:
    for format in ("PNG", "JPEG"):
        pixels, notes = decoded(saved(PIXELS, format, icc_profile=srgb))
        assert np.array_equal(pixels, decoded(saved(PIXELS, format))[0])
        assert notes == ()


def test_grey_has_its_own_profile_or_that_of_colours() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    light = encoded((ramp / 255) ** 1.8)[..., None].repeat(3, -1)
    for content in (
        saved(ramp, icc_profile=grey_profile(1.8)),
        saved(ramp, icc_profile=profile(SRGB, 1.8)),
        saved(ramp.astype(np.uint16) * 257, icc_profile=grey_profile(1.8)),
    ):
        assert farthest(content, light) <= 2
        assert decoded(content)[1] == (image_colour.FROM_PROFILE,)


def test_colours_are_converted_before_they_are_laid_over_white() -> None:
    converted = wanted(PIXELS, ADOBE, power(563 / 256))
    veiled = Image.fromarray(PIXELS)
    veiled.putalpha(128)
    over_white = converted * 128 / 255 + 127
    assert farthest(saved(veiled, icc_profile=profile(ADOBE, 2.2)), over_white) <= 2
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    ramp.putalpha(128)
    light = encoded((np.arange(256) / 255) ** 1.8)[None, :, None] * 128 / 255 + 127
    assert farthest(saved(ramp, icc_profile=grey_profile(1.8)), light) <= 2
    palette = Image.fromarray(PIXELS[:1]).convert("P", palette=Image.Palette.ADAPTIVE)
    drawn = np.asarray(palette.convert("RGB"))
    content = saved(palette, icc_profile=profile(ADOBE, 2.2), transparency=int(np.asarray(palette)[0, 0]))
    seen = wanted(drawn, ADOBE, power(563 / 256))
    seen[np.asarray(palette) == np.asarray(palette)[0, 0]] = 255
    assert farthest(content, seen) <= 2


def cmyk_profile() -> tuple[bytes, Array]:
    """A printer's profile: a table of the 16 mixtures of its inks, and those as CIELab."""
    mixtures = np.array([[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)], float)
    lab = np.stack(
        [
            100 - mixtures @ [20, 25, 5, 50],  # paper is white and all inks are black, so that intents agree
            mixtures @ [-12.0, 14, -2, 0],
            mixtures @ [-10.0, -3, 18, -5],
        ],
        axis=1,
    )
    table = np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)).astype(np.uint8)
    same = bytes(range(256))
    body = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *np.rint(np.eye(3).ravel() * 65536).astype(int))
    parts = {b"A2B0": body + same * 4 + table.tobytes() + same * 3}
    stored = np.stack([table[:, 0] / 2.55, table[:, 1] - 128.0, table[:, 2] - 128.0], 1)
    return icc(b"CMYK", b"Lab ", parts, kind=b"prtr"), stored


def lab_to_srgb(lab: Array) -> Array:
    y = (lab[:, 0] + 16) / 116
    roots = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    values = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.9642, 1.0, 0.8249]
    return encoded(values @ np.linalg.inv(matrix(SRGB)).T)


def test_inks_are_converted_by_their_own_profile_or_by_a_formula_that_is_noted() -> None:
    printer, lab = cmyk_profile()
    inks = np.array([[c, m, y, k] for c in (0, 255) for m in (0, 255) for y in (0, 255) for k in (0, 255)], np.uint8)
    image = Image.frombytes("CMYK", (16, 1), inks.tobytes())
    assert farthest(saved(image, "TIFF", icc_profile=printer), lab_to_srgb(lab)[None]) <= 2
    blocks = image.resize((16 * 16, 16), Image.Resampling.NEAREST)
    jpeg = saved(blocks, "JPEG", icc_profile=printer, quality=100)
    assert np.abs(decoded(jpeg)[0][8, 8::16] - lab_to_srgb(lab)).max() <= 4
    assert decoded(jpeg)[1] == (image_colour.FROM_CMYK_PROFILE,)
    assert decoded(saved(blocks, "JPEG"))[1] == (image_colour.CMYK_BY_FORMULA,)
    unsaid = saved(blocks, "JPEG", icc_profile=printer).replace(b"\xff\xee\0\x0eAdobe", b"\xff\xee\0\x0eOther")
    assert decoded(unsaid)[1] == (image_colour.FROM_CMYK_PROFILE, NO_ADOBE)


def test_a_profile_that_is_broken_or_of_another_kind_leaves_the_pixels_and_is_noted() -> None:
    whole = profile(ADOBE, 2.2)
    for broken in (b"x" * 200, whole[:200], whole + bytes(image_colour.MAX_PROFILE_BYTES)):
        pixels, notes = decoded(saved(PIXELS, icc_profile=broken))
        assert np.array_equal(pixels, PIXELS)
        assert notes == (image_colour.BROKEN,)
    lost = saved(PIXELS, "JPEG", icc_profile=whole).replace(b"ICC_PROFILE\0\x01\x01", b"ICC_PROFILE\0\x01\x02")
    assert decoded(lost)[1] == (image_colour.BROKEN,)
    for other in (grey_profile(1.8), cmyk_profile()[0]):
        pixels, notes = decoded(saved(PIXELS, icc_profile=other))
        assert np.array_equal(pixels, PIXELS)
        assert notes == (image_colour.MISFIT,)
    assert decoded(saved(PIXELS, "GIF") + b"ICCRGBG1012")[1] == (GIF_PROFILE,)


def test_a_profile_of_more_than_a_mebibyte_is_read_from_a_png_too() -> None:
    large = profile(ADOBE, 2.2) + bytes(2 * 2**20)
    assert farthest(saved(PIXELS, icc_profile=large), wanted(PIXELS, ADOBE, power(563 / 256))) <= 2


def chunk_of_gamma(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 1e5))


def chunk_of_points(points: tuple[tuple[float, float], ...]) -> tuple[bytes, bytes]:
    red, green, blue, white = points
    return b"cHRM", struct.pack(">8I", *(round(part * 1e5) for point in (white, red, green, blue) for part in point))


def code_points(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> tuple[bytes, bytes]:
    return b"cICP", bytes([primaries, transfer, matrix, full])


def test_gamma_and_primaries_of_a_png_are_applied_unless_they_are_those_of_srgb() -> None:
    plain = saved(PIXELS)
    for chunks, points, curve in (
        ((chunk_of_gamma(1 / 1.8),), SRGB, power(1.8)),
        ((chunk_of_gamma(1.0),), SRGB, power(1.0)),
        ((chunk_of_gamma(1 / 2.2), chunk_of_points(ADOBE)), ADOBE, power(2.2)),
        ((chunk_of_points(P3),), P3, srgb_curve),
    ):
        content = with_chunks(plain, *chunks)
        assert farthest(content, wanted(PIXELS, points, curve)) <= 1
        assert decoded(content)[1] == ("colours converted to sRGB by the gamma and primaries that they state",)
    usual = chunk_of_gamma(0.45455), chunk_of_points(SRGB)
    for chunks in (usual, usual[:1], usual[1:]):
        pixels, notes = decoded(with_chunks(plain, *chunks))
        assert np.array_equal(pixels, PIXELS)
        assert notes == ()
    for senseless in (chunk_of_gamma(0), chunk_of_points(((0, 0), (0, 0), (0, 0), (0, 0)))):
        assert len(decoded(with_chunks(plain, senseless))[1]) == 1


def test_of_the_chunks_that_state_colours_the_first_by_rank_counts() -> None:
    plain, own = saved(PIXELS), saved(PIXELS, icc_profile=profile(ADOBE, 2.2))
    srgb, gamma = (b"sRGB", b"\0"), chunk_of_gamma(1.0)
    assert farthest(with_chunks(plain, gamma, srgb), PIXELS) == 0
    assert farthest(with_chunks(own, gamma, srgb), wanted(PIXELS, ADOBE, power(563 / 256))) <= 2
    assert farthest(with_chunks(own, gamma, srgb, code_points(12, 13)), wanted(PIXELS, P3, srgb_curve)) <= 1


def test_code_points_of_a_png_are_applied_and_hdr_is_a_row() -> None:
    plain = saved(PIXELS)
    for (primaries, transfer), (points, curve) in {
        (12, 13): (P3, srgb_curve),
        (9, 14): (BT2020, srgb_curve),
        (1, 8): (SRGB, power(1.0)),
        (1, 4): (SRGB, power(2.2)),
    }.items():
        content = with_chunks(plain, code_points(primaries, transfer))
        assert farthest(content, wanted(PIXELS, points, curve)) <= 1
        assert "as their code points say" in decoded(content)[1][0]
    assert decoded(with_chunks(plain, code_points(1, 13)))[1] == ()
    assert "not known" in decoded(with_chunks(plain, code_points(77, 13)))[1][0]
    for hdr, words in ((code_points(9, 16), "HDR image .PQ"), (code_points(9, 18), "HDR image .HLG")):
        with pytest.raises(ImageError, match=words) as caught:
            decode_image(with_chunks(plain, hdr), source="x")
        assert caught.value.reason == "format"
    with pytest.raises(ImageError, match="narrow range"):
        decode_image(with_chunks(plain, code_points(12, 13, full=0)), source="x")


def test_code_points_of_an_avif_are_applied_and_hdr_is_a_row() -> None:
    content = saved(PIXELS, "AVIF", quality=95)
    at, plain = content.index(b"colrnclx") + 8, decoded(content)[0]

    def stating(primaries: int, transfer: int) -> bytes:
        return content[:at] + struct.pack(">HH", primaries, transfer) + content[at + 4 :]

    assert np.abs(decoded(stating(12, 13))[0] - wanted(plain, P3, srgb_curve)).max() <= 1
    with pytest.raises(ImageError, match=r"HDR image .HLG"):
        decode_image(stating(9, 18), source="x")


def test_a_camera_s_adobe_rgb_is_known_by_exif_alone() -> None:
    cases = ((0xFFFF, "R03", True), (2, "", True), (1, "R98", False), (0xFFFF, "R98", False))
    for colour_space, index, applies in cases:
        exif = Image.Exif()
        exif[0x0110] = "a camera"
        exif.get_ifd(0x8769)[0xA001] = colour_space
        if index:
            exif.get_ifd(0x8769)[0xA005] = {1: index}
        for format in ("JPEG", "PNG"):
            pixels, notes = decoded(saved(PIXELS, format, exif=exif))
            plain = decoded(saved(PIXELS, format))[0]
            right = wanted(plain, ADOBE, power(563 / 256)) if applies else plain
            assert np.abs(pixels - right).max() <= 1, (colour_space, index, format)
            assert bool(notes) == applies


def test_sixteen_bits_are_cut_before_colours_are_converted_which_is_noted() -> None:
    deep = np.concatenate([PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.uint16) * 257 // 2])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", deep.shape[1], deep.shape[0], 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + with_chunks(bytes(33), (b"IHDR", header))[33:]
    name = b"p\0\0" + zlib.compress(profile(ADOBE, 2.2))
    content += with_chunks(bytes(33), (b"iCCP", name), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))[33:]
    assert farthest(content, wanted(deep, ADOBE, power(563 / 256), bits=16)) <= 4
    assert decoded(content)[1] == (image_colour.FROM_PROFILE, image_colour.SHALLOW)


def test_a_bmp_s_own_profile_is_applied() -> None:
    whole = saved(PIXELS, "BMP")
    own, pixels = profile(ADOBE, 2.2), whole[54:]
    header = (struct.pack("<I", 124) + whole[18:54]).ljust(56, b"\0") + b"DEBM"
    header = header.ljust(112, b"\0") + struct.pack("<II", 124 + len(pixels), len(own))
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + header.ljust(124, b"\0") + pixels + own
    assert farthest(content, wanted(PIXELS, ADOBE, power(563 / 256))) <= 2


CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [90, 90, 90], [255, 255, 255]]], np.uint8)
TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = CORNERS.repeat(32, 0).repeat(32, 1)
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format in ("JPEG", "AVIF") else {}
    pixels, notes = decoded(saved(large, format, exif=exif, **options))
    right = TURNED[orientation](large)
    assert pixels.shape == right.shape
    assert np.abs(pixels - right)[16::32, 16::32].max() <= 8
    assert notes == ()


def test_orientation_stands_in_exif_whatever_else_is_there() -> None:
    packet = b"<x:xmpmeta>kept as text</x:xmpmeta>\0"
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
    exif += struct.pack("<HHIII", 700, 2, len(packet), 38, 0) + packet
    for format in ("JPEG", "PNG", "WEBP"):
        pixels, notes = decoded(saved(CORNERS, format, exif=exif))
        assert (pixels.shape, notes) == ((3, 2, 3), ())
    tiff = io.BytesIO()
    tags = [(0x0112, 3, 1, 6, True), (700, 2, 0, "<x:xmpmeta>kept as text</x:xmpmeta>", True)]
    tifffile.imwrite(tiff, CORNERS, photometric="rgb", extratags=tags, metadata=None)
    assert decoded(tiff.getvalue())[0].shape == (3, 2, 3)


def test_an_orientation_of_xmp_alone_is_left_and_noted_as_viewers_do() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for format in ("JPEG", "WEBP", "TIFF"):
        options: dict[str, Any] = {"tiffinfo": {700: xmp}} if format == "TIFF" else {"xmp": xmp}
        pixels, notes = decoded(saved(CORNERS, format, **options))
        assert pixels.shape == CORNERS.shape
        assert notes == (XMP_TURN,)


def test_broken_exif_is_noted() -> None:
    pixels, notes = decoded(saved(CORNERS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert pixels.shape == CORNERS.shape
    assert notes in ((), (BROKEN_EXIF,))
    assert decoded(saved(CORNERS, "JPEG", exif=b"Exif\0\0nonsense"))[1] == (BROKEN_EXIF,)

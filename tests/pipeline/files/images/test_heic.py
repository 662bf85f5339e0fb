"""HEIC through pillow-heif, where it is installed: pixels, depth, colours, rotation and transparency."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images.colour import FROM_PROFILE, adobe_rgb
from theworld.pipeline.files.images.decode import decode_image, read_image

pillow_heif: Any = pytest.importorskip("pillow_heif")

ROWS, COLUMNS = np.mgrid[0:64, 0:96]
PIXELS = np.stack([COLUMNS * 2, ROWS * 3, ROWS + COLUMNS], axis=-1).astype(np.uint8)
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}


def heic(image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image or Image.fromarray(PIXELS)).save(buffer, **LOSSLESS, **options)
    return buffer.getvalue()


def farthest(content: bytes, pixels: Any) -> float:
    return float(np.abs(np.asarray(decode_image(content, source="x"), float) - pixels).max())


def test_pixels_are_read_at_8_and_10_bits() -> None:
    assert farthest(heic(), PIXELS) == 0
    deep = io.BytesIO()
    samples = (PIXELS.astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes("RGB;16", (96, 64), samples).save(deep, **LOSSLESS)
    assert farthest(deep.getvalue(), PIXELS) <= 1
    grey = Image.fromarray(PIXELS[..., 0])
    assert farthest(heic(grey), PIXELS[..., :1].repeat(3, -1)) <= 1


def test_colours_are_converted_from_a_profile_or_from_code_points_and_hdr_is_a_row() -> None:
    profile = adobe_rgb().profile
    assert profile is not None
    tagged = Image.fromarray(PIXELS)
    tagged.info["icc_profile"] = profile
    right = ImageCms.profileToProfile(
        Image.fromarray(PIXELS), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    )
    assert farthest(heic(tagged), np.asarray(right, float)) <= 1
    assert read_image(heic(tagged), source="x").notes == (FROM_PROFILE,)
    phone = read_image(heic(color_primaries=12, transfer_characteristics=13), source="x")
    assert phone.notes == ("colours converted to sRGB from Display P3, as their code points say",)
    assert np.asarray(phone.image).tobytes() != PIXELS.tobytes()
    with pytest.raises(ImageError, match=r"HDR image .PQ") as caught:
        decode_image(heic(color_primaries=9, transfer_characteristics=16), source="x")
    assert caught.value.reason == "format"


def test_rotation_is_applied_once_and_transparency_is_laid_over_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert farthest(heic(exif=exif.tobytes()), np.rot90(PIXELS, -1)) == 0
    veiled = Image.fromarray(PIXELS)
    veiled.putalpha(128)
    assert farthest(heic(veiled), PIXELS * (128 / 255) + 127) <= 1


def test_several_pictures_or_damage_are_rows() -> None:
    two = pillow_heif.from_pillow(Image.fromarray(PIXELS))
    two.add_from_pillow(Image.fromarray(PIXELS))
    buffer = io.BytesIO()
    two.save(buffer)
    for content, reason in ((buffer.getvalue(), "animated"), (heic()[:-200], "decode")):
        with pytest.raises(ImageError) as caught:
            decode_image(content, source="x")
        assert caught.value.reason == reason

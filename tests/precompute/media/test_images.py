from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images import decode as image_files
from theworld.pipeline.files.images.colour import adobe_rgb
from theworld.pipeline.files.images.decode import decode_image, read_input_file
from theworld.pipeline.latents.kinds import KindName
from theworld.pipeline.latents.recipe import Fit, Recipe
from theworld.precompute.media.images import fit_image, load_image
from theworld.precompute.rollout.kinds import KINDS

from ...miniatures.lm import SPEC


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reason_of(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(content, source="x.png")
    assert "x.png" in str(caught.value)
    return caught.value.reason


GRADIENT = Image.fromarray(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_their_pixels(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode_image(encoded(GRADIENT, format, **options), source="x")
    assert np.array_equal(np.asarray(decoded), np.asarray(GRADIENT))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 65535 // 2, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values)), source="x"))
    assert decoded[0, :, 0].tolist() == [0, 127, 255]


def test_transparency_shows_white() -> None:
    for image in (
        Image.new("RGBA", (2, 2), (255, 0, 0, 0)),
        Image.new("LA", (2, 2), (0, 0)),
    ):
        assert np.asarray(decode_image(encoded(image), source="x")).min() == 255


def test_a_palette_with_a_transparent_colour_shows_white_there() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    decoded = np.asarray(decode_image(encoded(palette, transparency=0), source="x"))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 1].tolist() == [200, 100, 50]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    assert decode_image(encoded(GRADIENT, "JPEG", exif=exif), source="x").size == (6, 8)


def test_cmyk_becomes_rgb() -> None:
    assert decode_image(encoded(GRADIENT.convert("CMYK"), "JPEG"), source="x").mode == "RGB"


def test_a_phones_jpeg_is_its_photograph_whatever_lies_behind_it() -> None:
    depth = Image.new("L", (4, 4))
    phone = encoded(GRADIENT, "MPO", save_all=True, append_images=[depth])
    alone = encoded(GRADIENT, "JPEG")
    assert decode_image(phone, source="x").tobytes() == decode_image(alone, source="x").tobytes()


def test_what_cannot_be_used_says_why() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert reason_of(animated) == "animated"
    assert reason_of(b"not an image") == "format"
    assert reason_of(encoded(GRADIENT)[:-30]) == "decode"
    assert reason_of(b"%PDF-1.4") == "format"


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (12000, 12000)))
    assert len(bomb) < 100_000
    monkeypatch.setattr(image_files, "to_rgb", lambda _: pytest.fail("decoded"))
    assert reason_of(bomb) == "too_large"


def test_files_that_are_not_plain_content_are_refused_before_reading(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(image_files.MAX_BYTES + 1)
    reasons = {}
    for path in [*tmp_path.iterdir(), tmp_path / "absent.png"]:
        with pytest.raises(ImageError) as caught:
            read_input_file(path)
        reasons[path.name] = caught.value.reason
    assert reasons == {
        "pipe.png": "not_a_file",
        "zero.png": "not_a_file",
        "empty.png": "empty",
        "huge.png": "too_large",
        "absent.png": "missing",
    }


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_file_gives_an_image_or_an_image_error(data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([encoded(GRADIENT, f) for f in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")]))
    content = bytearray(start)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        outcome = decode_image(bytes(content), source="x").mode
    except ImageError as error:
        outcome = error.reason
    assert outcome in {"RGB", "format", "decode", "animated", "too_large"}


def test_cover_crops_pad_adds_grey_and_stretch_distorts() -> None:
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 10, 20))  # the left quarter is blue
    cover, pad, stretch = (np.asarray(fit_image(wide, 16, 16, fit)) for fit in ("cover", "pad", "stretch"))
    assert cover[8, 0, 0] > 240
    assert pad[0, 8].tolist() == [128, 128, 128]
    assert stretch[8, 0, 2] > 200


def test_a_tensor_is_float32_in_minus_one_to_one() -> None:
    tensor = load_image(encoded(GRADIENT), 16, 32, "cover", source="x")
    assert tensor.shape == (3, 16, 32)
    assert tensor.dtype == torch.float32
    for color, value in (("black", -1), ("white", 1)):
        assert (load_image(encoded(Image.new("RGB", (4, 4), color)), 16, 16, "cover", source="x")[0] == value).all()


@pytest.mark.parametrize("kind", ["rollout", "views"])
def test_what_is_noted_of_a_file_comes_with_its_pixels(kind: KindName) -> None:
    recipe = Recipe(kind=kind, world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=4)
    loaded = KINDS[kind].load(encoded(GRADIENT, icc_profile=adobe_rgb().profile), recipe, SPEC, "x")
    assert loaded.notes == ("colours converted to sRGB from their own profile",)
    assert KINDS[kind].load(encoded(GRADIENT), recipe, SPEC, "x").notes == ()


def test_pictures_in_the_container_of_videos_are_not_called_videos() -> None:
    recipe = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=4)
    names = {b"crx ": "camera raw", b"hevc": "HEIC sequence", b"jxl ": "JPEG XL", b"mp42": "a video"}
    for brand, words in names.items():
        with pytest.raises(ImageError, match=f"x is {words}"):
            KINDS["rollout"].load(b"\0\0\0\x18ftyp" + brand + bytes(200), recipe, SPEC, "x")


PHOTO = Image.fromarray(np.random.default_rng(3).integers(0, 256, (41, 67, 3), dtype=np.uint8))
LANCZOS = Image.Resampling.LANCZOS


def test_every_way_of_fitting_resamples_with_pillow_s_lanczos() -> None:
    def same(fitted: Image.Image, wanted: Image.Image) -> bool:
        return np.array_equal(np.asarray(fitted), np.asarray(wanted))

    assert same(fit_image(PHOTO, 32, 48, "stretch"), PHOTO.resize((48, 32), LANCZOS))
    left = (67 - 41) / 2
    assert same(fit_image(PHOTO, 32, 32, "cover"), PHOTO.resize((32, 32), LANCZOS, box=(left, 0, left + 41, 41)))
    padded = Image.new("RGB", (48, 48), (128, 128, 128))
    height = round(41 / 67 * 48)
    padded.paste(PHOTO.resize((48, height), LANCZOS), (0, round((48 - height) / 2)))
    assert same(fit_image(PHOTO, 48, 48, "pad"), padded)


@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
def test_an_image_of_the_recipe_s_size_is_not_resampled(fit: Fit) -> None:
    assert fit_image(PHOTO, 41, 67, fit) is PHOTO

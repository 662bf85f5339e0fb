"""Which files are one image, at the limits: their size, their number of frames, their format."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images import decode as images
from theworld.pipeline.files.images.decode import decode_image, read_input_file


def encoded(format: str, *colors: str) -> bytes:
    buffer = io.BytesIO()
    # new images: Pillow leaves the settings of one format on those it saved
    image, *others = (Image.new("RGB", (8, 6), color) for color in colors)
    image.save(buffer, format, **({"save_all": True, "append_images": others} if others else {}))
    return buffer.getvalue()


def reason_of(content: bytes) -> str:
    with pytest.raises(ImageError, match=r"x\.png") as caught:
        decode_image(content, source="x.png")
    return caught.value.reason


def test_of_a_jpeg_with_a_second_image_the_first_is_taken() -> None:
    red, green, blue = decode_image(encoded("MPO", "red", "blue"), source="x").getpixel((0, 0))
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def test_a_format_without_frames_holds_one_and_two_are_an_animation() -> None:
    assert decode_image(encoded("BMP", "red"), source="x").getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(encoded("GIF", "red"), source="x").size == (8, 6)
    assert reason_of(encoded("GIF", "red", "blue")) == reason_of(encoded("TIFF", "red", "blue")) == "animated"
    assert reason_of(encoded("PPM", "red")) == "format"


def test_an_image_of_exactly_the_limit_is_decoded_and_one_pixel_more_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 48)
    assert decode_image(encoded("PNG", "red"), source="x").size == (8, 6)
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    assert reason_of(encoded("PNG", "red")) == "too_large"


def test_a_file_is_read_up_to_the_limit_if_it_is_a_regular_one(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"12345")
    assert read_input_file(file, max_bytes=5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for reason, name in {"too_large": "a.png", "not_a_file": "pipe", "empty": "empty", "missing": "no"}.items():
        with pytest.raises(ImageError) as caught:
            read_input_file(tmp_path / name, max_bytes=4)
        assert caught.value.reason == reason


def test_float_grey_is_a_share_of_white_from_0_to_exactly_1_and_a_row_beyond() -> None:
    def tiff(*values: float) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.array([values], np.float32)).save(buffer, "TIFF")
        return buffer.getvalue()

    assert np.asarray(decode_image(tiff(0.0, 0.5, 1.0), source="x"))[0, :, 0].tolist() == [0, 128, 255]
    assert {reason_of(tiff(0.0, value)) for value in (1.004, 255.0, 65535.0, -0.1)} == {"format"}
    assert reason_of(tiff(0.0, float("nan"))) == "decode"


def test_the_limits_are_those_the_rules_state() -> None:
    assert (images.MAX_BYTES, images.MAX_PIXELS) == (67_108_864, 64_000_000)

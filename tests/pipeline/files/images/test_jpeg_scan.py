"""Damaged JPEG scans are rows; JPEGs at which decoders grumble, and which are whole, are read."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images.decode import decode_image
from theworld.pipeline.files.images.jpeg_scan import find_scan

PHOTO = Image.fromarray(data.astronaut()).resize((300, 200))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"quality": 90},
    "4:4:4": {"quality": 60, "subsampling": 0},
    "own codes": {"quality": 80, "optimize": True},
    "progressive": {"quality": 90, "progressive": True},
    "restarts a row": {"quality": 90, "restart_marker_rows": 1},
    "restarts": {"quality": 90, "restart_marker_blocks": 7},
}


def jpeg(image: Image.Image = PHOTO, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def is_refused(content: bytes) -> bool:
    reason = None
    try:
        decode_image(content, source="x.jpg")
    except ImageError as error:
        reason = error.reason
    assert reason in (None, "decode")
    return reason is not None


def damages(content: bytes, draw: random.Random) -> list[bytes]:
    """The file with bytes of its scan overwritten, cleared, changed at random, lost and repeated."""
    scan = find_scan(content)
    assert scan is not None
    at = draw.randrange(scan.start, len(content) - 2000)
    end = at + draw.randrange(40, 600)
    return [
        content[:at] + filling + content[behind:]
        for filling, behind in (
            (b"\x55" * (end - at), end),
            (bytes(end - at), end),
            (draw.randbytes(end - at).replace(b"\xff", b"\xfe"), end),
            (b"", end),
            (content[at:end], at),
        )
    ]


# The rest is a valid scan of another picture, which no decoder can know.
@pytest.mark.parametrize(("name", "share"), [*((name, 0.8) for name in list(KINDS)[:3]), ("progressive", 0.7)])
def test_most_damage_that_spoils_a_picture_is_found(name: str, share: float) -> None:
    draw, whole = random.Random(1), jpeg(**KINDS[name])
    right = np.asarray(decode_image(whole, source="x")).astype(int)
    spoilt = found = 0
    for content in (damaged for _ in range(40) for damaged in damages(whole, draw)):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        except OSError:
            continue
        if (np.abs(pixels - right).max(-1) > 50).mean() > 0.04:
            spoilt += 1
            found += is_refused(content)
    assert spoilt > 10
    assert found / spoilt >= share


def test_a_picture_whose_rest_is_grey_is_always_found() -> None:
    for options in KINDS.values():
        whole = jpeg(**options)
        scan = find_scan(whole)
        assert scan is not None
        for share in (0.1, 0.5, 0.9):
            cut = scan.start + int((len(whole) - scan.start) * share)
            assert is_refused(whole[:cut] + b"\xff\xd9")  # an end marker was put in place
            assert is_refused(whole[:cut])


def test_data_that_end_in_zeros_in_place_of_their_own_are_damaged() -> None:
    whole = jpeg(quality=90)
    scan = find_scan(whole)
    assert scan is not None
    for count in (500, 2000, 5000):
        assert is_refused(whole[: scan.end - count] + bytes(count) + b"\xff\xd9")
    assert is_refused(whole[: scan.end] + b"\x55" * 20 + b"\xff\xd9")


def goods() -> list[tuple[str, bytes]]:
    plain = jpeg(quality=90)
    scan = find_scan(plain)
    assert scan is not None
    head, pixels, start = plain[: scan.end], plain[scan.end :], plain.rindex(b"\xff\xda")
    found = [(name, jpeg(**options)) for name, options in KINDS.items()]
    found += [
        (f"{width} x {height}", jpeg(PHOTO.resize((width, height)), **options))
        for width, height in ((1, 1), (7, 9), (8, 8), (16, 17), (33, 16))
        for options in KINDS.values()
    ]
    found += [
        (f"{mode} {number}", jpeg(PHOTO.convert(mode), **options))
        for mode in ("L", "CMYK")
        for number, options in enumerate(KINDS.values())
        if mode == "L" or "subsampling" not in options
    ]
    flat = Image.new("RGB", (200, 200), "white")
    found += [(f"flat {number}", jpeg(flat, **options)) for number, options in enumerate(KINDS.values())]
    found += [(f"quality {quality}", jpeg(quality=quality)) for quality in (1, 10, 100)]
    found += [
        ("no end marker", head),
        ("bytes behind the end", plain + b"junk" * 1000),
        ("another JPEG behind the end", plain + plain),
        ("a few bytes before the end", head + bytes(5) + pixels),
        ("zeros before the end", head + bytes(500) + pixels),
        ("fill before the end", head + b"\xff" * 500 + pixels),
        ("fill before a marker", plain[:start] + b"\xff\xff" + plain[start:]),
        ("progressive, bytes behind the end", jpeg(progressive=True) + b"junk" * 1000),
    ]
    return found


GOODS = goods()


@pytest.mark.parametrize("content", [case[1] for case in GOODS], ids=[case[0] for case in GOODS])
def test_a_whole_jpeg_is_read_as_pillow_reads_it(content: bytes) -> None:
    decoded = decode_image(content, source="x")
    if content[-2:] == b"\xff\xd9":
        assert decoded.tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()

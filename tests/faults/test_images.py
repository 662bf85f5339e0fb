"""Mutated images through the door they come in by: each gives pixels or one row of the ledger, within limits.

The mutations: bytes changed, removed, repeated or cut off; two files spliced; widths, lengths and counts in headers
that lie. All formats that are read, and what is none of them.
"""

import io
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images.colour import adobe_rgb
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.inputs.sandbox import SandboxedDecoder

from ..miniatures.lm import SPEC
from .harness import SEED, amount

IMAGES = amount("IMAGES", 300)
RECIPE = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=1)
REFUSED = {"format", "decode", "animated", "too_large", "memory", "timeout"}


def originals() -> list[bytes]:
    """Small files of every format and many of its modes."""
    draw = np.random.default_rng(SEED)
    noise = Image.fromarray(draw.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    smooth = Image.fromarray(np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)).convert("RGB")
    grey16 = Image.fromarray(draw.integers(0, 65536, (20, 30), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    files: list[bytes] = []

    def add(image: Image.Image, format: str, **options: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files.append(buffer.getvalue())

    for image in (noise, smooth):
        for format, options in (
            ("JPEG", {"exif": exif, "icc_profile": b"x" * 200}),
            ("JPEG", {"progressive": True, "quality": 20}),
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("WEBP", {"exif": exif}),
            ("AVIF", {"quality": 60}),
            ("BMP", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "jpeg"}),
            ("TIFF", {"compression": "tiff_adobe_deflate"}),
            ("GIF", {}),
        ):
            add(image, format, **options)
    add(smooth, "JPEG", restart_marker_rows=1, xmp=b'<x tiff:Orientation="6"/>')
    add(smooth.convert("CMYK"), "JPEG")
    # profiles that lcms reads, so that mutated ones get far into it
    adobe = adobe_rgb().profile
    for format in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
        add(smooth, format, icc_profile=adobe)
    add(smooth.convert("RGBA"), "PNG", icc_profile=adobe)
    add(smooth.convert("L"), "PNG", icc_profile=adobe)
    add(smooth.convert("L"), "JPEG")
    add(grey16, "PNG")
    add(grey16, "TIFF")
    add(smooth, "TIFF", big_tiff=True)
    add(smooth.convert("F"), "TIFF")
    add(smooth.convert("1"), "PNG")
    add(smooth.convert("1"), "TIFF", compression="group4")
    add(smooth.convert("P"), "PNG", transparency=3)
    add(smooth.convert("RGBA"), "PNG")
    add(smooth.convert("LA"), "PNG")
    add(smooth.convert("RGBA"), "WEBP")
    add(smooth.convert("P"), "BMP")
    add(smooth, "GIF", save_all=True, append_images=[noise])
    add(smooth, "PNG", save_all=True, append_images=[noise])
    plain = next(file for file in files if file.startswith(b"\x89PNG"))
    for chunk in (b"\0\0\0\4gAMA\0\0\xd9\x03", b"\0\0\0\4cICP\x0c\x0d\0\1"):
        files.append(mend(plain[:33] + chunk + bytes(4) + plain[33:]))
    files.append(b"%PDF-1.4 nothing of the kind")
    files.append(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    return files


def mutate(draw: random.Random, files: list[bytes]) -> bytes:
    content = bytearray(draw.choice(files))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(content)) if content else 0
        early = draw.randrange(min(len(content), 200)) if content else 0  # where headers are
        match draw.randrange(9):
            case 0:
                content[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                content[early : early + 1] = bytes([draw.randrange(256)])
            case 2 if content:
                content[at] ^= 1 << draw.randrange(8)
            case 3:
                del content[at:]
            case 4:
                del content[at : at + draw.randrange(1, 64)]
            case 5:
                content[at:at] = content[early : early + draw.randrange(1, 512)]
            case 6:
                other = draw.choice(files)
                content[at:] = other[draw.randrange(len(other)) :]
            case 7:  # a number in a header that lies
                size, order = draw.choice((2, 4)), draw.choice(("big", "little"))
                number = draw.choice((0, 1, 2, 255, 7999, 65535, 2**31 - 1, 2**32 - 1)) % 256**size
                content[early : early + size] = number.to_bytes(size, order)
            case 8:
                content[early:early] = draw.randbytes(draw.randrange(1, 32))
    return mend(bytes(content)) if draw.random() < 0.5 else bytes(content)


def mend(content: bytes) -> bytes:
    """With the checksums of a PNG made right, so that what they guard is reached."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    at, mended = 8, bytearray(content)
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        mended[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


@pytest.fixture
def decoder() -> Iterator[SandboxedDecoder]:
    decoder = SandboxedDecoder()
    yield decoder
    decoder.close()


def test_a_mutated_image_is_pixels_or_one_row(decoder: SandboxedDecoder, figure: Callable[[str], None]) -> None:
    draw, files = random.Random(SEED), originals()
    outcomes: Counter[str] = Counter()
    slowest, most, escapes = 0.0, 0, list[str]()
    decoder.load(files[0], RECIPE, SPEC, "the first")  # which waits until there is a decoder
    started = time.monotonic()
    for number in range(IMAGES):
        content = mutate(draw, files)
        before = time.monotonic()
        try:
            loaded = decoder.load(content, RECIPE, SPEC, f"{number}.png")
            outcomes["pixels" if loaded.pixels.shape == (3, 32, 32) else "shape"] += 1
        except ImageError as error:
            outcomes[error.reason] += 1
            if error.reason not in REFUSED:
                escapes.append(str(error))
        slowest = max(slowest, time.monotonic() - before)
        if number % 500 == 499 or number == IMAGES - 1:
            most = max(most, *(int(peak_bytes(pid)) for pid in decoder.pids))
    taken = time.monotonic() - started
    figure(
        f"{IMAGES} mutated images of {len(files)} files (seed {SEED}) in {taken:.1f} s, slowest "
        f"{slowest * 1000:.0f} ms, peak {most / 2**20:.0f} MiB: "
        f"{', '.join(f'{count} {name}' for name, count in outcomes.most_common())}"
    )
    assert not escapes
    assert set(outcomes) <= {"pixels", *REFUSED}
    assert most < 2 * 2**30


def peak_bytes(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

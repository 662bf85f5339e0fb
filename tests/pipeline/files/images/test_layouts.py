"""What is read is decoded rightly: format by mode by tag, against numpy, tifffile or FFmpeg; anything else is a row.

Each case states pixels, writes them without Pillow where another writer exists, and compares what is decoded. FFmpeg's
decoders of BMP, GIF, WebP, AVIF, JPEG and CCITT faxes are not those of Pillow.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from theworld.pipeline.errors import ImageError
from theworld.pipeline.files.images.decode import decode_image

Pixels = NDArray[Any]
DRAW = np.random.default_rng(0)
HEIGHT, WIDTH = 24, 40
RAMP = np.stack(np.mgrid[0:64, 0:96], axis=-1)
SMOOTH = np.stack([RAMP[..., 0] * 3, RAMP[..., 1] * 2, RAMP.sum(-1)], axis=-1).astype(np.uint8)


def noise(bits: int, *channels: int) -> Pixels:
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return DRAW.integers(0, 2**bits, (HEIGHT, WIDTH, *channels), dtype=dtype)


def shown(values: Pixels, bits: int, alpha: Pixels | None = None) -> Pixels:
    """8-bit RGB of grey or colours of any depth, over white."""
    share = values / (2**bits - 1)
    if share.ndim == 2:
        share = np.repeat(share[..., None], 3, axis=-1)
    if alpha is not None:
        opaque = (alpha / (2**bits - 1))[..., None]
        share = share * opaque + 1 - opaque
    return np.rint(share * 255)


def png(
    rows: Pixels, depth: int, colour: int, *chunks: tuple[bytes, bytes], width: int = WIDTH, wrong: bytes = b""
) -> bytes:
    """A PNG of rows of bytes, unfiltered. wrong: the chunk whose checksum is."""
    data = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body) ^ (kind == wrong))
    return content


def packed(values: Pixels, bits: int) -> Pixels:
    """Samples as the bytes of rows."""
    if bits == 16:
        return values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    if bits == 8:
        return values.reshape(len(values), -1)
    digits = np.unpackbits(values.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., -bits:]
    return np.packbits(digits.reshape(len(values), -1), axis=-1)


def png_cases() -> Iterator[tuple[str, bytes, Pixels, int]]:
    for bits in (1, 2, 4, 8, 16):
        grey = noise(bits)
        yield f"PNG grey {bits}", png(packed(grey, bits), bits, 0), shown(grey, bits), 0
        seen = np.where(grey == grey[0, 0], 0, 2**bits - 1)
        key = (b"tRNS", struct.pack(">H", grey[0, 0]))
        yield f"PNG grey {bits} tRNS", png(packed(grey, bits), bits, 0, key), shown(grey, bits, seen), 0
        if bits <= 8:
            colours, veil = noise(8, 3).reshape(-1, 3)[: 2**bits], noise(8).reshape(-1)[: 2**bits]
            palette = (b"PLTE", colours.tobytes())
            yield f"PNG palette {bits}", png(packed(grey, bits), bits, 3, palette), shown(colours[grey], 8), 0
            veiled = png(packed(grey, bits), bits, 3, palette, (b"tRNS", veil.tobytes()))
            yield f"PNG palette {bits} tRNS", veiled, shown(colours[grey], 8, veil[grey]), 1
    for bits in (8, 16):
        # Pillow cuts 16 bits to 8 where there is colour or alpha: up to 1 of 255, and 2 once it is blended
        colours = noise(bits, 3)
        yield f"PNG RGB {bits}", png(packed(colours, bits), bits, 2), shown(colours, bits), bits // 16
        key, seen = (b"tRNS", struct.pack(">3H", *colours[0, 0])), np.full((HEIGHT, WIDTH), 2**bits - 1)
        seen[(colours == colours[0, 0]).all(-1)] = 0
        yield f"PNG RGB {bits} tRNS", png(packed(colours, bits), bits, 2, key), shown(colours, bits, seen), bits // 16
        for colour, channels in ((4, 2), (6, 4)):
            values = noise(bits, channels)
            base = values[..., 0] if channels == 2 else values[..., :3]
            name = f"PNG {'grey' if channels == 2 else 'RGB'} {bits} alpha"
            yield name, png(packed(values, bits), bits, colour), shown(base, bits, values[..., -1]), 1 + bits // 16


def tiff(pixels: Pixels, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def packed_tiff(values: Pixels, bits: int, photometric: int, order: str, palette: Sequence[int] = ()) -> bytes:
    """Samples of less than a byte, or of one and a half, in one strip."""
    data = packed(values, bits).tobytes()
    size = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: HEIGHT, 279: len(data)}
    content = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8 + len(data)) + data
    content += struct.pack(order + "H", len(size) + bool(palette))
    for tag, value in size.items():
        content += struct.pack(order + "HHII", tag, 4, 1, value)
    if palette:
        content += struct.pack(order + "HHII", 320, 3, len(palette), len(content) + 16)
    return content + bytes(4) + struct.pack(order + f"{len(palette)}H", *palette)


def tiff_cases() -> Iterator[tuple[str, bytes, Pixels, int]]:
    for order in "<>":
        for compression in (None, "zlib"):
            how: dict[str, Any] = {"byteorder": order, "compression": compression}
            name = f"TIFF {order} {compression}"
            for bits in (8, 16):
                colours, grey, veil = noise(bits, 3), noise(bits), noise(bits)
                yield f"{name} RGB {bits}", tiff(colours, photometric="rgb", **how), shown(colours, bits), bits // 16
                tiled = tiff(colours, photometric="rgb", tile=(16, 16), **how)
                yield f"{name} RGB {bits} tiled", tiled, shown(colours, bits), bits // 16
                if bits == 8 or compression:
                    planes = tiff(np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate", **how)
                    yield f"{name} RGB {bits} planes", planes, shown(colours, bits), bits // 16
                yield f"{name} grey {bits}", tiff(grey, photometric="minisblack", **how), shown(grey, bits), 0
                if bits == 8 or order == "<":
                    negative = tiff(grey, photometric="miniswhite", **how)
                    yield f"{name} grey {bits} white is zero", negative, shown(2**bits - 1 - grey, bits), 0
                both = np.dstack([colours, veil])
                for kind, wanted in (
                    ("unassalpha", shown(colours, bits, veil)),
                    ("unspecified", shown(colours, bits)),
                    ("assocalpha", None),
                ):
                    if wanted is None:  # colours that are multiplied by alpha already
                        both[..., :3] = both[..., :3].astype(np.uint64) * veil[..., None] // (2**bits - 1)
                        opaque = shown(veil, bits)
                        wanted = shown(both[..., :3], bits) + 255 - opaque
                    written = tiff(both, photometric="rgb", extrasamples=[kind], **how)
                    yield f"{name} RGB {bits} {kind}", written, wanted, 1 + 2 * (bits == 16)
                inks = noise(bits, 4)
                share = 1 - inks / (2**bits - 1)
                by_formula = np.rint(share[..., :3] * share[..., 3:] * 255)
                yield f"{name} CMYK {bits}", tiff(inks, photometric="separated", **how), by_formula, 2
            grey, veil = noise(8), noise(8)
            pair: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", **how}
            for kind, wanted in (("unassalpha", shown(grey, 8, veil)), ("unspecified", shown(grey, 8))):
                yield f"{name} grey 8 {kind}", tiff(np.dstack([grey, veil]), extrasamples=[kind], **pair), wanted, 1
            both = np.dstack([(grey.astype(int) * veil // 255).astype(np.uint8), veil])
            wanted = shown(both[..., 0], 8) + 255 - shown(veil, 8)
            yield f"{name} grey 8 assocalpha", tiff(both, extrasamples=["assocalpha"], **pair), wanted, 1
            both = noise(8, 4)
            alpha = tiff(both, photometric="rgb", extrasamples=["unassalpha"], **how)
            tag = struct.pack(order + "HH", 338, 3)
            unsaid = alpha.replace(tag, struct.pack(order + "HH", 65000, 3))  # a fourth sample that has no kind
            assert unsaid != alpha
            yield f"{name} RGB 8 and another", unsaid, shown(both[..., :3], 8, both[..., 3]), 1
            inks = noise(8, 5)
            spots = tiff(inks, photometric="separated", extrasamples=["unspecified"], **how)
            yield f"{name} CMYK 8 and another", spots, np.rint((1 - inks[..., :3] / 255) * (255 - inks[..., 3:4])), 2
            colours = DRAW.integers(0, 65536, (3, 256), dtype=np.uint16)
            palette = tiff(grey, photometric="palette", colormap=colours, **how)
            yield f"{name} palette 8", palette, np.moveaxis(colours[:, grey] >> 8, 0, -1), 0
            if order == "<":
                deep = noise(32)
                yield f"{name} grey 32", tiff(deep, photometric="minisblack", **how), shown(deep, 32), 0
            if order == "<" or compression is None:
                light = DRAW.random((HEIGHT, WIDTH)).astype(np.float32)
                yield f"{name} float", tiff(light, photometric="minisblack", **how), shown(light, 1), 0
        for bits in (1, 2, 4):
            grey = noise(bits)
            yield f"TIFF {order} grey {bits}", packed_tiff(grey, bits, 1, order), shown(grey, bits), 0
            negative = packed_tiff(grey, bits, 0, order)
            yield f"TIFF {order} grey {bits} white is zero", negative, shown(2**bits - 1 - grey, bits), 0
        for bits in (1, 2, 4):
            colours, index = DRAW.integers(0, 256, (3, 2**bits)), noise(bits)
            written = packed_tiff(index, bits, 3, order, [*(colours * 257).ravel()])
            yield f"TIFF {order} palette {bits}", written, np.moveaxis(colours[:, index], 0, -1), 0
    # no other decoder of these is at hand, but their pixels are known
    for compression, tolerance in {"lzma": 0, "zstd": 0, "tiff_deflate": 0, "jpeg": 8}.items():
        buffer = io.BytesIO()
        Image.fromarray(SMOOTH).save(buffer, "TIFF", compression=compression, **({"quality": 95} if tolerance else {}))
        yield f"TIFF {compression}", buffer.getvalue(), SMOOTH.astype(float), tolerance
    grey = noise(12)
    yield "TIFF grey 12", packed_tiff(grey, 12, 1, "<"), shown(grey, 12), 0


def lab_case() -> tuple[str, bytes, Pixels, int]:
    lab = np.stack(np.meshgrid(np.arange(60, 200, 20), np.arange(-20, 21, 10), np.arange(-20, 21, 10)), -1)[0]
    y = (lab[..., 0] * 100 / 255 + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_rgb = [[3.13386, -1.61687, -0.49061], [-0.97877, 1.91614, 0.03345], [0.07195, -0.22899, 1.40524]]
    light = np.clip(xyz @ np.array(to_rgb).T, 0, 1)
    wanted = np.rint(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255)
    return "TIFF CIELab", tiff((lab & 255).astype(np.uint8), photometric="cielab"), wanted, 1


def bmp(pixels: Pixels, *masks: int) -> bytes:
    """A BMP from the top down, of whole pixels whose bits the masks share out: red, green, blue and alpha."""
    bits, data = 8 * pixels.dtype.itemsize, pixels.tobytes()
    header = struct.pack("<IiiHHIIIIII", 108, WIDTH, -HEIGHT, 1, bits, 3 if masks else 0, len(data), 0, 0, 0, 0)
    header = (header + struct.pack("<4I", *masks, *[0] * (4 - len(masks)))).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + header + data


def bmp_cases() -> Iterator[tuple[str, bytes, Pixels, int]]:
    blue, green, red, veil = (noise(8).astype(np.uint32) for _ in range(4))
    colours = np.dstack([red, green, blue])
    pixels = blue | green << 8 | red << 16 | veil << 24
    masks = (0xFF0000, 0xFF00, 0xFF)
    yield "BMP 32 alpha", bmp(pixels, *masks, 0xFF000000), shown(colours, 8, veil), 1
    yield "BMP 32 without alpha", bmp(pixels, *masks), shown(colours, 8), 0
    yield "BMP 32 without masks", bmp(pixels), shown(colours, 8), 0
    five = colours >> 3
    whole = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype(np.uint16)
    yield "BMP 16 of 5 bits", bmp(whole, 0x7C00, 0x3E0, 0x1F), shown(five, 5), 1
    six = noise(6).astype(np.uint32)
    whole = (five[..., 0] << 11 | six << 5 | five[..., 2]).astype(np.uint16)
    wanted = np.dstack([shown(five, 5)[..., 0], shown(six, 6)[..., 0], shown(five, 5)[..., 2]])
    yield "BMP 16 of 5, 6 and 5 bits", bmp(whole, 0xF800, 0x7E0, 0x1F), wanted, 1


def by_ffmpeg(content: bytes, codec: str) -> Pixels:
    """RGB of one still image; over white where it is transparent."""
    decoder: Any = av.CodecContext.create(codec, "r")
    (frame,) = [*decoder.decode(av.Packet(content)), *decoder.decode(None)][:1]
    pixels = frame.to_ndarray(format="rgba").astype(float)
    opaque = pixels[..., 3:] / 255
    return np.rint(pixels[..., :3] * opaque + 255 * (1 - opaque))


def ffmpeg_cases() -> Iterator[tuple[str, bytes, Pixels, int]]:
    smooth = Image.fromarray(SMOOTH)
    veiled = smooth.copy()
    veiled.putalpha(Image.fromarray(SMOOTH[..., 1]))
    for name, image, codec, options, tolerance in (
        ("BMP RGB", smooth, "bmp", {}, 0),
        ("BMP grey", smooth.convert("L"), "bmp", {}, 0),
        ("BMP 1", smooth.convert("1"), "bmp", {}, 0),
        ("BMP palette", smooth.convert("P"), "bmp", {}, 0),
        ("GIF palette", smooth.convert("P"), "gif", {}, 0),
        ("GIF interlaced", smooth.convert("P"), "gif", {"interlace": 1}, 0),
        ("GIF transparent", smooth.convert("P"), "gif", {"transparency": 7}, 0),
        ("WEBP lossless", smooth, "webp", {"lossless": True}, 0),
        ("WEBP lossless alpha", veiled, "webp", {"lossless": True, "exact": True}, 1),
        ("WEBP", smooth, "webp", {"quality": 95}, 6),  # chroma at half resolution, interpolated in another way
        ("JPEG 4:4:4", smooth, "mjpeg", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG grey", smooth.convert("L"), "mjpeg", {"quality": 95}, 2),
        ("JPEG progressive", smooth, "mjpeg", {"quality": 95, "subsampling": 0, "progressive": True}, 4),
        ("JPEG restarts", smooth, "mjpeg", {"quality": 95, "subsampling": 0, "restart_marker_rows": 1}, 4),
        ("TIFF lzw", smooth, "tiff", {"compression": "tiff_lzw"}, 0),
        ("TIFF packbits", smooth, "tiff", {"compression": "packbits"}, 0),
        ("TIFF CCITT 3", smooth.convert("1"), "tiff", {"compression": "group3"}, 0),
        ("TIFF CCITT 4", smooth.convert("1"), "tiff", {"compression": "group4"}, 0),
        ("TIFF CCITT RLE", smooth.convert("1"), "tiff", {"compression": "tiff_ccitt"}, 0),
    ):
        buffer = io.BytesIO()
        image.save(buffer, name.split()[0], **options)
        yield name, buffer.getvalue(), by_ffmpeg(buffer.getvalue(), codec), tolerance
    buffer = io.BytesIO()
    smooth.save(buffer, "AVIF", quality=100, subsampling="4:4:4")
    with av.open(io.BytesIO(buffer.getvalue()), format="mov") as container:
        frame = next(container.decode(video=0))
    yield "AVIF", buffer.getvalue(), frame.to_ndarray(format="rgb24").astype(float), 4


CASES = [*png_cases(), *tiff_cases(), lab_case(), *bmp_cases(), *ffmpeg_cases()]


@pytest.mark.parametrize(("content", "wanted", "tolerance"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_what_is_read_equals_an_independent_decoder(content: bytes, wanted: Pixels, tolerance: int) -> None:
    decoded = np.asarray(decode_image(content, source="x"), dtype=float)
    assert decoded.shape == wanted.shape
    assert np.abs(decoded - wanted).max() <= tolerance


def unread_cases() -> Iterator[tuple[str, bytes]]:
    """What Pillow opens, and decodes wrongly or by a guess."""
    yield "signed 8", tiff(noise(8).astype(np.int8), photometric="minisblack")
    yield "signed 16", tiff(noise(15).astype(np.int16), photometric="minisblack")
    yield "signed 32", tiff(noise(31).astype(np.int32), photometric="minisblack")
    yield "32 bits of small numbers", tiff(noise(16).astype(np.uint32), photometric="minisblack")
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    yield "planes of 16 bits", tiff(np.moveaxis(noise(16, 3), -1, 0), **planes)
    light = np.ones((HEIGHT, WIDTH), np.float32)
    yield "big-endian float, compressed", tiff(light, photometric="minisblack", byteorder=">", compression="zlib")
    yield "negative float", tiff(light, photometric="miniswhite")
    yield "float of 64 bits", tiff(light.astype(np.float64), photometric="minisblack")
    yield "float to 255", tiff(light * 255, photometric="minisblack")
    yield "further alpha", tiff(noise(8, 5), photometric="rgb", extrasamples=["unspecified", "unassalpha"])
    yield "CMYK with alpha", tiff(noise(8, 5), photometric="separated", extrasamples=["unassalpha"])
    yield "ICC Lab", tiff(noise(8, 3), photometric="icclab")
    yield "YCbCr", tiff(noise(8, 3), photometric="ycbcr")
    yield "big-endian, white is zero", tiff(noise(16), photometric="miniswhite", byteorder=">")
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, "JPEG")
    for name, marker in (("lossless JPEG", b"\xff\xc3"), ("arithmetic JPEG", b"\xff\xc9")):
        yield name, buffer.getvalue().replace(b"\xff\xc0", marker, 1)
    deep = buffer.getvalue().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1)
    yield "JPEG of 12 bits", deep


UNREAD = list(unread_cases())


@pytest.mark.parametrize("content", [case[1] for case in UNREAD], ids=[case[0] for case in UNREAD])
def test_what_is_not_known_to_be_decoded_rightly_is_a_row_that_says_what_to_do(content: bytes) -> None:
    with pytest.raises(ImageError, match=r"x\.tif .*[Ss]ave it") as caught:
        decode_image(content, source="x.tif")
    assert caught.value.reason == "format"


def test_thumbnails_of_a_tiff_are_passed_over_and_further_pages_are_not() -> None:
    def pages(*kinds: int) -> bytes:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            for number, kind in enumerate(kinds):
                pixels = np.full((HEIGHT, WIDTH, 3), 50 * number, np.uint8)
                writer.write(pixels, photometric="rgb", subfiletype=kind, metadata=None)
        return buffer.getvalue()

    assert not np.asarray(decode_image(pages(0, 1), source="x")).any()
    assert not np.asarray(decode_image(pages(0, 1, 1), source="x")).any()
    for kinds, reason in {(0, 0): "animated", (0, 1, 0): "animated", (2, 2): "animated", (1, 0): "format"}.items():
        with pytest.raises(ImageError) as caught:
            decode_image(pages(*kinds), source="x")
        assert caught.value.reason == reason


def test_a_chunk_of_a_png_with_a_wrong_checksum_is_damage_that_of_a_text_included() -> None:
    pixels, text = noise(8, 3), (b"tEXt", b"Comment\0words")
    assert np.array_equal(np.asarray(decode_image(png(packed(pixels, 8), 8, 2, text), source="x")), pixels)
    for chunk in (b"IHDR", b"IDAT", b"tEXt"):
        with pytest.raises(ImageError, match=f"checksum of its '{chunk.decode()}'") as caught:
            decode_image(png(packed(pixels, 8), 8, 2, text, wrong=chunk), source="x")
        assert caught.value.reason == "decode"

"""HDR and wide primaries of videos, against calculations of their own: the formulas the other way round."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.videos import encoded
from theworld.precompute.media import video_showing
from theworld.precompute.media.video import load_video
from theworld.precompute.media.video_colours import to_bt709

Floats = NDArray[np.float64]

# ITU-R BT.2087-0, section 2: linear BT.709 to linear BT.2020
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
# SMPTE EG 432-1, linear BT.709 to linear P3 with the white D65
TO_P3 = np.array([[0.8225, 0.1774, 0.0000], [0.0332, 0.9669, 0.0000], [0.0171, 0.0724, 0.9108]])
# ITU-R BT.601-7, 525 lines: the primaries of SMPTE 170M, by the chromaticities
TO_170M = np.array([[1.0654, -0.0554, -0.0100], [-0.0196, 1.0364, -0.0167], [0.0016, 0.0044, 0.9940]])

rng = np.random.default_rng(3)
CHART = np.concatenate([rng.integers(20, 150, (60, 3)), np.repeat(np.arange(0, 160, 40)[:, None], 3, axis=1)]).astype(
    float
)
"""8-bit BT.709 colours that are darker than the knee of the tone curve, and greys."""


def pq(nits: Floats) -> Floats:
    """SMPTE ST 2084, the inverse EOTF."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.power(nits / 10000, m1)
    return np.power((c1 + c2 * power) / (1 + c3 * power), m2)


def hlg(nits: Floats) -> Floats:
    """BT.2100 HLG of a display of 1000 cd/m2: the inverse OOTF, then the OETF."""
    luminance = nits @ [0.2627, 0.6780, 0.0593]
    scene = nits / 1000 * np.power(np.maximum(luminance, 1e-9)[:, None] / 1000, 1 / 1.2 - 1)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def file_of(codes: Floats, *, transfer: int, primaries: int, bits: int = 10, full: bool = False) -> bytes:
    """A video of colours side by side, R'G'B' from 0 to 1, in the matrix of BT.2020, limited or full range."""
    luma = codes @ [0.2627, 0.6780, 0.0593]
    blue, red = (codes[:, 2] - luma) / 1.8814, (codes[:, 0] - luma) / 1.4746
    scale = 2 ** (bits - 8)
    most = 2**bits - 1
    values = (
        (luma * most, blue * most + 2 ** (bits - 1), red * most + 2 ** (bits - 1))
        if full
        else (scale * (16 + 219 * luma), scale * (128 + 224 * blue), scale * (128 + 224 * red))
    )
    planes = np.stack([np.rint(np.repeat(plane, 16))[None].repeat(16, axis=0) for plane in values])
    frame = av.VideoFrame(len(codes) * 16, 16, "yuv444p10le" if bits == 10 else "yuv444p")
    for plane, numbers in zip(frame.planes, planes, strict=True):
        row = np.zeros((16, plane.line_size), np.uint8)
        data = np.clip(numbers, 0, most).astype("<u2" if bits == 10 else np.uint8).view(np.uint8).reshape(16, -1)
        row[:, : data.shape[1]] = data
        plane.update(row.tobytes())
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = (
        9,
        2 if full else 1,
        transfer,
        primaries,
    )

    def prepare(stream: Any) -> None:
        context = stream.codec_context
        context.colorspace, context.color_range = 9, 2 if full else 1
        context.color_trc, context.color_primaries = transfer, primaries

    return encoded("matroska", "ffv1", frame.format.name, [frame], prepare=prepare)


def colours_of(content: bytes, count: int) -> tuple[Floats, tuple[str, ...]]:
    """The colours that world models see, 8 bits, and the notes."""
    clip = load_video(content, 1, 16, 16 * count, "stretch", source="x.mkv")
    return ((clip.pixels[:, 0, 8, 8::16] + 1) * 127.5).T.numpy().astype(float), clip.notes


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("transfer", "primaries"), [(16, 9), (18, 9), (16, 2), (18, 2), (16, 12), (16, 1)])
def test_hdr_gives_the_colours_that_were_graded_for_sdr_white_at_203_nits(
    transfer: int, primaries: int, full: bool
) -> None:
    to_file = {9: TO_2020, 2: TO_2020, 12: TO_P3, 1: np.eye(3)}[primaries]
    nits = 203 * (CHART / 255) ** 2.4 @ to_file.T
    codes = pq(nits) if transfer == 16 else hlg(nits)
    got, notes = colours_of(file_of(codes, transfer=transfer, primaries=primaries, full=full), len(CHART))
    assert np.abs(got - CHART).max() <= 4  # of 255; 10 bits of PQ are steps of up to two
    assert np.abs(got - CHART).mean() < 0.8
    assert notes == (video_showing.FROM_HDR["pq" if transfer == 16 else "hlg"],)


def bt2390(nits: Floats) -> Floats:
    """ITU-R BT.2390-11, section 5.4.1, from 1000 cd/m2 to 203, on one number."""
    e1, most = pq(nits) / pq(np.array(1000.0)), float(pq(np.array(203.0)) / pq(np.array(1000.0)))
    knee = 1.5 * most - 0.5
    t = (e1 - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    e2 = np.where(e1 < knee, e1, spline) * pq(np.array(1000.0))
    grid = np.linspace(0, 1000, 200001)
    return np.interp(e2, pq(grid), grid)  # the EOTF


def test_light_above_the_knee_follows_the_curve_of_bt_2390_and_ends_at_white() -> None:
    nits = np.array([50.0, 94, 150, 203, 400, 700, 1000])
    got, _ = colours_of(file_of(np.repeat(pq(nits)[:, None], 3, 1), transfer=16, primaries=9), len(nits))
    wanted = 255 * (bt2390(nits) / 203) ** (1 / 2.4)
    assert np.abs(got[:, 0] - wanted).max() <= 2
    assert got[-1].tolist() == [255, 255, 255]
    above, _ = colours_of(file_of(np.repeat(pq(np.array([4000.0]))[:, None], 3, 1), transfer=16, primaries=9), 1)
    assert above.min() == 255
    # of a colour, the channels keep their ratio
    colour = np.array([[800.0, 400, 200]])
    got, _ = colours_of(file_of(pq(colour @ TO_2020.T), transfer=16, primaries=9), 1)
    light = (got[0] / 255) ** 2.4
    assert np.allclose(light / light[0], colour[0] / 800, atol=0.02)


@pytest.mark.parametrize(("primaries", "to_file"), [(9, TO_2020), (12, TO_P3), (6, TO_170M), (7, TO_170M)])
@pytest.mark.parametrize("transfer", [1, 13, 14, 2])
def test_stated_primaries_become_those_of_bt_709(primaries: int, to_file: Floats, transfer: int) -> None:
    chart = np.clip(CHART * 1.6, 30, 255)
    light = (chart / 255) ** 2.4 @ to_file.T
    codes = np.clip(light, 0, 1) ** (1 / 2.4)
    got, notes = colours_of(file_of(codes, transfer=transfer, primaries=primaries), len(chart))
    inside = ((light > 0.001) & (light < 1)).all(axis=1)  # others the primaries of the file cannot show
    assert inside.sum() > 25
    assert np.abs(got - chart)[inside].max() <= 5
    assert np.abs(got - chart)[inside].mean() < 1
    assert notes == (video_showing.PRIMARIES_CONVERTED,)


@pytest.mark.parametrize("primaries", [1, 2])
def test_primaries_that_are_not_stated_or_those_of_bt_709_change_nothing(primaries: int) -> None:
    got, notes = colours_of(file_of(CHART / 255, transfer=1, primaries=primaries), len(CHART))
    assert np.abs(got - CHART).max() <= 1
    assert notes == ()


def test_eight_bits_of_hdr_are_read_too() -> None:
    codes = hlg(203 * (CHART / 255) ** 2.4 @ TO_2020.T)
    got, _ = colours_of(file_of(codes, transfer=18, primaries=9, bits=8), len(CHART))
    assert np.abs(got - CHART).mean() < 2


def test_white_stays_white_and_grey_grey_whatever_the_primaries() -> None:
    greys = np.repeat(np.array([0, 17, 128, 254, 255], np.uint8)[:, None], 3, axis=1)[None]
    for primaries in (1, 4, 5, 6, 7, 8, 9, 11, 12, 22):
        assert np.array_equal(to_bt709(greys, "sdr", primaries, white=255), greys)


def test_the_size_of_a_block_of_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from theworld.precompute.media import video_colours

    pixels = np.random.default_rng(0).integers(0, 65536, (50, 40, 3), dtype=np.uint16)
    whole = to_bt709(pixels, "hlg", 9, white=65280)
    monkeypatch.setattr(video_colours, "_BLOCK_PIXELS", 130)
    assert np.array_equal(to_bt709(pixels, "hlg", 9, white=65280), whole)

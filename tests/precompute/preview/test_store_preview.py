"""What `cache preview` draws: the pixels that the store decodes to, at the place and time they belong to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.kinds import KINDS
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.preview.contact_sheet import Row, Words, draw_animation, draw_sheet, gif
from theworld.precompute.preview.drawing import LARGEST_SIDE, SMALLEST_SIDE, drawable, tile_side, to_frames
from theworld.precompute.preview.store_preview import Preview, preview
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld

from ...miniatures.image_store import make_images, make_store
from ...miniatures.world_model import save_mini_world

SIDE = 96
"""Of a tile here: 32 pixels, three times."""


@dataclass
class Made:
    store: LatentStore
    images: Path
    world: Path
    true: LatentStore

    def preview(self, out: Path, **options: Any) -> Preview:
        given = {"images": self.images, "world": str(self.world), "device": "cpu"} | options
        return preview(self.store, out, **given)

    def decoded(self, key: str, store: LatentStore | None = None) -> np.ndarray:
        latents = as_tensor((store or self.store).read([key])).float()
        return to_frames(CosmosWorld.load(self.world).decode(latents))[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Five images and the videos that they begin."""
    root = tmp_path_factory.mktemp("preview")
    world, images = save_mini_world(root / "mini"), make_images(root / "in", 5)
    videos = root / "videos"
    videos.mkdir()
    for image in sorted(images.iterdir()):
        first = np.asarray(Image.open(image))
        write_video(videos / f"{image.stem}.mp4", np.stack([np.roll(first, 3 * n, axis=1) for n in range(9)]), 12)
    frames = {"kind": "frames", "denoise_steps": None, "compute_dtype": None}
    true = make_store(videos, root / "true", world, **frames)
    return Made(make_store(images, root / "cache", world), images, world, true)


def tiles_of(picture: Image.Image, wanted: np.ndarray) -> list[tuple[int, int]]:
    """Where in a picture a frame stands as a tile; its outline aside."""
    pixels = np.asarray(picture)
    tile = wanted.repeat(3, axis=0).repeat(3, axis=1)[1:-1, 1:-1]
    corners = np.argwhere((pixels[: -SIDE + 3, : -SIDE + 3] == tile[0, 0]).all(-1))
    return [(x, y) for y, x in corners.tolist() if (pixels[y : y + SIDE - 2, x : x + SIDE - 2] == tile).all()]


def test_a_row_is_the_input_and_what_the_store_decodes_to(made: Made, tmp_path: Path) -> None:
    done = made.preview(tmp_path / "out", samples=2)
    sheet = Image.open(done.files[0])
    lefts: list[list[int]] = []
    for key, name in done.samples:
        frames = made.decoded(key)
        source = np.asarray(Image.open(made.images / name))
        places = [tiles_of(sheet, pixels) for pixels in (source, frames[4], frames[8])]
        assert [len(place) for place in places] == [1, 1, 1]
        assert len({y for [(_, y)] in places}) == 1, "in one row"
        lefts.append([x for [(x, _)] in places])
    assert lefts[0] == lefts[1] == sorted(lefts[0]), "the same columns in every row"
    [note] = done.notes
    assert (done.without_source, "guardrail" in note) == ({}, True)


def test_without_its_input_the_decoded_first_frame_begins_a_row(made: Made, tmp_path: Path) -> None:
    done = made.preview(tmp_path / "out", samples=1, images=None)
    [(key, _)] = done.samples
    assert len(tiles_of(Image.open(done.files[0]), made.decoded(key)[0])) == 1
    assert done.without_source == {"missing": 1}
    assert "1 of 1 rows begin with the decoded first frame, as no --images" in done.notes[0]


def test_the_true_future_stands_below_its_rollout_under_the_same_times(made: Made, tmp_path: Path) -> None:
    done = made.preview(tmp_path / "out", samples=2, true=made.true)
    sheet = Image.open(done.files[0])
    for key, name in done.samples:
        true = made.decoded(made.true.sources()[f"{Path(name).stem}.mp4"][0], made.true)
        [(x, y)], [(true_x, true_y)] = (tiles_of(sheet, pixels[8]) for pixels in (made.decoded(key), true))
        assert x == true_x
        assert SIDE < true_y - y < SIDE + 20
    with pytest.raises(ConfigError, match="--true"):
        made.preview(tmp_path / "out", true=made.store)


def test_the_draw_is_fixed_and_inputs_can_be_named(made: Made, tmp_path: Path) -> None:
    drawn = [made.preview(tmp_path, samples=2, seed=seed).samples for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    key = made.store.sources()["003.png"][0]
    for name in (key, "003.png", str(made.images / "003.png")):
        assert made.preview(tmp_path, wanted=[name], samples=4).samples == ((key, "003.png"),)
    with pytest.raises(ConfigError, match=r"'009.png' is no key, input or file.*000\.png"):
        made.preview(tmp_path, wanted=["009.png"])


def test_the_animation_plays_in_real_time_and_the_video_too(made: Made, tmp_path: Path) -> None:
    done = made.preview(tmp_path, samples=3, steps=1, video=True)
    with Image.open(done.files[1]) as animation:
        assert (getattr(animation, "n_frames", 0), animation.info["loop"]) == (5, 0)
        delays = []
        for number in range(5):
            animation.seek(number)
            delays.append(animation.info["duration"])
        size = animation.size
    assert sum(delays[1:-1]) == pytest.approx(3 / 16 * 1000, abs=10), "Cosmos' 16 frames a second, in hundredths"
    with av.open(str(done.files[2])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.pix_fmt, stream.average_rate) == ("yuv420p", 16)
        assert (stream.codec_context.width, stream.codec_context.height) == size


def test_frames_that_do_not_follow_one_another_are_decoded_alone(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "rollout", replace(KINDS["rollout"], is_clip=False))
    done = made.preview(tmp_path, samples=1)
    [(key, _)] = done.samples
    latents = as_tensor(made.store.read([key])).float()
    alone = to_frames(CosmosWorld.load(made.world).decode(latents[:, :, 2:3]))[0]
    assert len(tiles_of(Image.open(done.files[0]), alone[0])) == 1
    with Image.open(done.files[1]) as animation:
        assert getattr(animation, "n_frames", 0) == 3


def test_a_store_of_frames_is_shown_by_the_number_of_each(made: Made, tmp_path: Path) -> None:
    arguments = [made.true.path, "000.mp4", "--world", made.world, "--out", tmp_path / "p", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["cache", "preview", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert [Path(file).suffix for file in said["files"]] == [".png", ".gif"]
    assert [row["name"] for row in said["samples"]] == ["000.mp4"]
    assert said["without_source"] == {"missing": 1}
    assert len(tiles_of(Image.open(said["files"][0]), made.decoded(said["samples"][0]["key"], made.true)[0])) == 1


def test_tiles_are_legible_and_not_enormous() -> None:
    assert tile_side(64, 64) == (128, 128)
    assert tile_side(16, 32) == (96, 192)
    assert tile_side(224, 224) == (LARGEST_SIDE, LARGEST_SIDE)
    assert tile_side(832, 480) == (LARGEST_SIDE, 111)
    for side in (tile_side(*size) for size in ((17, 95), (96, 96), (150, 128))):
        assert min(side) >= SMALLEST_SIDE


def test_any_name_and_any_number_of_rows_can_be_drawn() -> None:
    frames = np.zeros((9, 480, 832, 3), np.uint8)
    names = ["photo.png", "Äpfel/ß→中.png", "\udcff\x07.png", "x" * 300, ""]
    rows = [Row(name=name, key="0" * 32, frames=frames, true=frames if n % 2 else None) for n, name in enumerate(names)]
    words = Words(title="t" * 400, about="a", columns=[(0, "now"), (4, "+1.00 s"), (8, "+2.00 s")], predicted_from=1)
    assert draw_sheet(rows, words).width < 1000
    pictures = draw_animation(rows, words, ["now"] * 9)
    assert all(length % 2 == 0 for length in pictures[0].size)
    assert gif(pictures[:2], 16.0)[:3] == b"GIF"
    assert "\x07" not in drawable(names[2])
    single = Words(title="", about="", columns=[(0, "now")], predicted_from=1)
    assert draw_sheet([Row(name="a", key="b", frames=frames[:1])], single).height > 100


def test_an_empty_store_has_nothing_to_show(tmp_path: Path) -> None:
    from ...miniatures.store import create

    store = create(tmp_path)
    with pytest.raises(ConfigError, match="is empty"):
        preview(open_store(store.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_looking_reads_the_vae_alone_and_so_does_without_the_transformer(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = shutil.copytree(made.world, tmp_path / made.world.name)
    (weights,) = (world / "transformer").glob("*.safetensors")
    weights.unlink()
    monkeypatch.setattr(CosmosWorld, "load", None)
    alone = made.preview(tmp_path / "alone", samples=2, world=str(world))
    whole = made.preview(tmp_path / "whole", samples=2)
    assert alone.files[0].read_bytes() == whole.files[0].read_bytes()


def test_another_vae_is_told_by_an_input_and_without_one_a_note_says_that_nobody_looked(
    made: Made, tmp_path: Path
) -> None:
    other = save_mini_world(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="other latents than the store has"):
        made.preview(tmp_path / "out", samples=2, world=str(other))
    (tmp_path / "empty").mkdir()
    unseen = made.preview(tmp_path / "out", samples=2, images=tmp_path / "empty")
    assert any("was not checked" in note for note in unseen.notes)
    assert not any("was not checked" in note for note in made.preview(tmp_path / "out", samples=2).notes)

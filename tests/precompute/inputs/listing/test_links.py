"""Links: in a folder that the user names they are followed; a list leads out of its folder by none of them."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.errors import ImageError
from theworld.precompute.inputs.listing.inputs import Listing, list_inputs
from theworld.precompute.inputs.lookup import InputLookup

PNG = b"\x89PNG\r\n\x1a\n"


def picture(path: Path, content: bytes = b"1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG + content)
    return path


def sources(listing: Listing) -> list[str]:
    return [sample.source for sample in listing.samples]


def wrong(listing: Listing) -> dict[str, str]:
    return {failure.source: failure.reason for failure in listing.refused}


def test_links_to_files_and_folders_are_inputs_under_their_own_names(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    picture(place / "cats" / "a.png", b"a")
    picture(elsewhere / "b.png", b"b")
    picture(elsewhere / "inner" / "c.png", b"c")
    (place / "dogs").symlink_to(elsewhere)
    (place / "more").mkdir()
    (place / "more" / "cats").symlink_to("../cats")
    (place / "d.png").symlink_to(elsewhere / "b.png")
    names = ["cats/a.png", "d.png", "dogs/b.png", "dogs/inner/c.png", "more/cats/a.png"]
    for pattern in (place, place / "**" / "*.png"):
        listing = list_inputs(pattern, "rollout")
        assert (sources(listing), listing.refused, len(listing.unique())) == (names, (), 3)


def test_a_loop_of_links_is_counted_and_all_else_is_taken(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "above").symlink_to(tmp_path)  # leads to the folder itself, by its parent
    listing = list_inputs(tmp_path / "in", "rollout")
    assert (sources(listing), listing.left_out) == (["sub/a.png"], {"in a loop of links": 2})


def test_a_link_to_nothing_is_a_row_that_says_where_it_leads(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to("/mnt/not mounted/x.png")
    (tmp_path / "train").symlink_to("/mnt/not mounted")  # was it a folder?
    (tmp_path / "notes.txt").symlink_to("nowhere")
    listing = list_inputs(tmp_path, "rollout")
    assert wrong(listing) == {"gone.png": "missing", "train": "missing"}
    assert "train is a link to /mnt/not mounted, which is not there" in listing.refused[1].message
    assert listing.left_out == {".txt": 1}


def test_hard_links_and_names_that_differ_in_case_are_inputs_each(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", b"a")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    picture(tmp_path / "A.png", b"A")
    listing = list_inputs(tmp_path, "rollout")
    assert (sources(listing), len(listing.unique())) == (["A.png", "a.png", "b.png"], 2)


def test_a_row_of_a_list_leads_out_by_no_link_and_below_an_image_root_it_may(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    picture(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "list.txt").write_text("a.png\nb.png\n")
    listing = list_inputs(tmp_path / "in" / "list.txt", "rollout")
    assert (sources(listing), wrong(listing)) == (["b.png"], {"list.txt:1": "not_a_file"})
    assert "name the folder itself: there links are followed" in listing.refused[0].message
    assert len(list_inputs(tmp_path / "in", "rollout").samples) == 2
    assert len(list_inputs(tmp_path / "in" / "list.txt", "rollout", image_root=tmp_path / "in").samples) == 2


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """What `snapshot_download` makes: a folder of links to the blobs of its repository."""
    repository = tmp_path / "hub" / "datasets--org--name"
    place = repository / "snapshots" / "0123abcd"
    files = {name: PNG + name.encode() for name in ("a.png", "data/b.png")}
    files["metadata.jsonl"] = b"".join(
        json.dumps({"file_name": name}).encode() + b"\n" for name in ("a.png", "data/b.png", "out.png")
    )
    for number, (name, content) in enumerate(files.items()):
        blob = repository / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(os.path.relpath(blob, (place / name).parent))
    return place


def test_a_snapshot_of_the_hubs_cache_is_a_folder_like_others(snapshot: Path) -> None:
    listing = list_inputs(snapshot, "rollout")
    assert (sources(listing), listing.refused, listing.left_out) == (["a.png", "data/b.png"], (), {".jsonl": 1})


def test_a_list_in_a_snapshot_names_blobs_of_its_repository_and_nothing_else(snapshot: Path, tmp_path: Path) -> None:
    picture(tmp_path / "private.png")
    (snapshot / "out.png").symlink_to(tmp_path / "private.png")
    listing = list_inputs(snapshot / "metadata.jsonl", "rollout")
    assert (sources(listing), wrong(listing)) == (["a.png", "data/b.png"], {"metadata.jsonl:3": "not_a_file"})


def test_tars_and_tables_of_a_snapshot_are_read(snapshot: Path) -> None:
    for name in ("a.png", "data/b.png"):
        (snapshot / name).unlink()
    blobs = snapshot.parent.parent / "blobs"
    with tarfile.open(blobs / "t", "w") as tar:
        tar.add(picture(snapshot.parent / "c.png"), "c.png")
    (snapshot / "data" / "000.tar").symlink_to("../../../blobs/t")
    assert sources(list_inputs(snapshot, "rollout")) == ["data/000.tar:c.png"]
    (snapshot / "data" / "000.tar").unlink()
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"image": [PNG + b"1", PNG + b"2"]}), blobs / "p")
    (snapshot / "data" / "train.parquet").symlink_to("../../../blobs/p")
    assert len(list_inputs(snapshot, "rollout").samples) == 2


def test_the_inputs_of_a_store_are_found_again_behind_links_and_not_behind_names_that_lead_out(tmp_path: Path) -> None:
    images = make_images(tmp_path / "elsewhere", 2)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(images)
    store = make_store(tmp_path / "in", tmp_path / "cache", save_mini_world(tmp_path / "mini"))
    keys = list(store.keys)
    inputs = InputLookup(store, tmp_path / "in")
    assert all(inputs.has(key) for key in keys)
    assert inputs.load(keys[0]).pixels.shape[0] == 3
    guarded = InputLookup(store, tmp_path / "in", named_by_user=False)
    with pytest.raises(ImageError):
        guarded.load(keys[0])
    store.record_sources([("../elsewhere/000.png", keys[0])], {})
    (tmp_path / "in" / "linked").unlink()
    assert not InputLookup(store, tmp_path / "in").has(keys[0])

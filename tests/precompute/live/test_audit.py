"""Samples made again from their inputs: what is sound is equal, what is not the recipe's is found, and why is said."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, TheWorldError
from theworld.pipeline.store.folder import PROMPT, LatentStore, open_store
from theworld.pipeline.store.upkeep.transfer import export
from theworld.pipeline.store.upkeep.verify import verify
from theworld.precompute.live import audit as audit_module
from theworld.precompute.live.audit import TOLERANCE, audit
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.worlds.builtin import BUILT_IN

from ...miniatures.image_store import make_images, make_store, tamper
from ...miniatures.wan22 import save_mini_two_stage
from ...miniatures.world_model import add_text_encoder, save_mini_world
from ...permissions import open_folder, record, record_file, reseal


@dataclass
class Made:
    store: LatentStore
    images: Path
    world: Path

    def audit(self, count: int = 6, **options: Any) -> audit_module.Audit:
        given = {"seed": 0, "images": self.images, "world": str(self.world), "device": "cpu"} | options
        return audit(open_store(self.store.path), count, **given)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Six images in shards of 4 and 2."""
    root = tmp_path_factory.mktemp("audit")
    world, images = save_mini_world(root / "mini"), make_images(root / "in", 6)
    return Made(make_store(images, root / "cache", world), images, world)


@pytest.fixture
def made(original: Made) -> Iterator[Made]:
    """A copy of it, to be harmed."""
    with open_folder() as folder:
        path = shutil.copytree(original.store.path, folder / "c" / original.store.path.name)
        yield Made(open_store(path), shutil.copytree(original.images, folder / "in"), original.world)


def theworld(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)])
    if isinstance(result.exception, TheWorldError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def facts(store: LatentStore, shard: int, **changes: Any) -> None:
    """Change what a record says of who made it."""
    reseal(record_file(store, shard), facts=record(store, shard)["facts"] | changes)


def test_a_sound_store_is_made_again_bit_by_bit(original: Made) -> None:
    done = original.audit()
    assert {one.verdict for one in done.samples} == {"equal"}
    assert {one.key for one in done.samples} == set(original.store.keys)
    assert all(one.max_difference == one.rms_difference == one.tolerance == 0 for one in done.samples)
    assert {one.source for one in done.samples} == {f"{n:03d}.png" for n in range(6)}
    assert "6 bit-equal" in done.lines()[-1]


def test_another_place_in_a_batch_is_no_difference(tmp_path: Path) -> None:
    """On some CPUs a product of these sizes rounds otherwise in the first and the last rows of a batch."""
    world, images = save_mini_two_stage(tmp_path / "world"), make_images(tmp_path / "in", 3)
    made = Made(
        make_store(images, tmp_path / "cache", world, size="32x48", batch_size=3, dtype="float32"), images, world
    )
    for seed in range(2):  # which sample stands where
        assert {one.verdict for one in made.audit(2, seed=seed).samples} == {"equal"}


def test_latents_that_somebody_changed_and_sealed_again_are_found(made: Made) -> None:
    victim = made.store.keys[2]
    tamper(made.store, victim, 0.05)
    assert not verify(made.store.path, level="deep").damage, "every checksum is right"
    done = made.audit()
    assert [one.key for one in done.different] == [victim]
    assert done.different[0].max_difference == pytest.approx(0.05, abs=2e-3)
    flags = ("--images", made.images, "--world", made.world, "--device", "cpu", "--seed", 1)
    code, out, _ = theworld("verify", made.store.path, "--recompute", 6, *flags)
    assert code == 1
    assert "DIFFERENT" in out
    assert "1 DIFFERENT" in out.splitlines()[-1]
    code, out, _ = theworld("verify", made.store.path, "--recompute", 6, "--json", *flags)
    said = json.loads(out)
    assert (code, said["damaged"], said["audit"]["different"], said["audit"]["seed"]) == (1, 0, 1, 1)


def test_two_latents_exchanged_are_both_found(made: Made) -> None:
    a, b = (key for key in made.store.keys[:2])
    values = {key: made.store.read([key])[0].copy() for key in (a, b)}
    for key, other in ((a, b), (b, a)):
        written = made.store.layout.new_row()
        crcs = made.store.layout.encode(key, values[other], written)
        from ...permissions import put_row

        put_row(made.store, 0, made.store.row_of(key), written.tobytes(), crcs)
    assert {one.key for one in made.audit().different} == {a, b}


def test_another_is_drawn_for_an_input_that_is_gone_or_changed(made: Made) -> None:
    (made.images / "000.png").unlink()
    Image.new("RGB", (32, 32)).save(made.images / "001.png")
    done = made.audit(4)
    assert len(done.samples) == 4
    assert {one.source for one in done.samples} == {f"{n:03d}.png" for n in range(2, 6)}
    assert {(source, reason) for source, reason, _ in done.unusable} <= {("000.png", "missing"), ("001.png", "changed")}
    all_of_them = made.audit(6)
    assert (len(all_of_them.samples), len(all_of_them.unusable)) == (4, 2)
    assert "4 of 6 asked for" in all_of_them.lines()[-1]


def test_inputs_that_cannot_be_found_at_all_are_asked_for(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--images FOLDER"):
        made.audit(images=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"of the 6 images .* none is in .*empty"):
        made.audit(images=tmp_path / "empty")


def test_names_that_lead_out_of_the_folder_are_not_followed(made: Made) -> None:
    shutil.move(made.images, made.images.with_name("elsewhere"))
    made.images.mkdir()
    for path in (made.store.path / "sources").iterdir():
        path.unlink()
    keys = made.store.keys
    made.store.record_sources([(f"../elsewhere/{n:03d}.png", key) for n, key in enumerate(keys)] + [("a\0b", keys[0])])
    with pytest.raises(ConfigError, match="none is in"):
        made.audit()


def test_other_weights_are_one_clear_error(made: Made, tmp_path: Path) -> None:
    other = save_mini_world(tmp_path / "other", seed=3)
    with pytest.raises(ConfigError, match="these latents are of the weights") as caught:
        made.audit(world=str(other))
    assert made.store.recipe.world in str(caught.value)


def test_another_version_of_the_engine_makes_other_latents_by_design(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BUILT_IN["cosmos-predict2"], "engine", 2)
    with pytest.raises(ConfigError, match="version 1 of the engine, this theworld has version 2"):
        made.audit()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"versions": {"torch": "1.0", "diffusers": "0"}}, "torch 1.0 then"),
        ({"cpu": "abacus"}, "cpu abacus then"),
        ({"batch_size": "many"}, "batch of many then, of 1 now"),
        ({"threads": None}, "threads not recorded"),
        ({"engine": {"float32": "ieee", "compiled": True}}, "compiled True then, False now"),
        ({"device": "cuda NVIDIA H200"}, "device cuda NVIDIA H200 then"),
    ],
)
def test_where_it_was_made_otherwise_a_tolerance_holds_and_is_explained(
    made: Made, changed: dict[str, Any], words: str
) -> None:
    tamper(made.store, made.store.keys[0], 1e-3)  # within
    tamper(made.store, made.store.keys[1], 0.05)  # not
    facts(made.store, 0, **changed)
    done = made.audit()
    verdicts = {one.key: one.verdict for one in done.samples}
    assert [verdicts[key] for key in made.store.keys[:2]] == ["within", "different"]
    assert set(verdicts.values()) <= {"within", "different", "equal"}
    assert {one.tolerance for one in done.samples} == {0.0, TOLERANCE["float32"][0]}, "the second shard is as it was"
    assert any(words in line for line in done.lines())
    strict = {one.key: one.verdict for one in made.audit(tolerance=0.0).samples}
    assert strict[made.store.keys[0]] == "different"
    lax = {one.verdict for one in made.audit(tolerance=0.1).samples}
    assert "different" not in lax


def test_another_device_is_held_to_the_precision_that_its_record_states(made: Made) -> None:
    facts(made.store, 0, device="cuda NVIDIA H200")
    facts(made.store, 1, device="cuda NVIDIA H200", engine=None)  # before precision was recorded, torch's default
    done = {one.shard: one for one in made.audit().samples}
    assert (done[0].tolerance, done[0].rms_tolerance) == TOLERANCE["float32"]
    assert (done[1].tolerance, done[1].rms_tolerance) == TOLERANCE["bfloat16"]
    assert "float32 tf32 then, ieee now" in done[1].differs_by


def test_a_copy_is_audited_by_what_is_known_of_its_makers(made: Made, tmp_path: Path) -> None:
    copy, _ = export(made.store, tmp_path, shard_size=6)
    done = Made(copy, made.images, made.world).audit()
    assert {one.verdict for one in done.samples} == {"equal"}
    assert {one.differs_by for one in done.samples} == {()}, "both shards were made alike"
    facts(made.store, 1, batch_size=2)
    mixed, _ = export(open_store(made.store.path), tmp_path / "mixed", shard_size=6)
    done = Made(mixed, made.images, made.world).audit()
    assert all("batch of unknown size" in one.differs_by[0] for one in done.samples)


def test_a_prompt_comes_from_the_store_that_keeps_it(tmp_path: Path) -> None:
    world = add_text_encoder(save_mini_world(tmp_path / "mini"))
    images = make_images(tmp_path / "in", 2)
    store = make_store(images, tmp_path / "c", world, prompt="a ball falls", guardrail="external")
    made = Made(store, images, world)
    assert {one.verdict for one in made.audit(2).samples} == {"equal"}
    (store.path / PROMPT).unlink()
    with pytest.raises(ConfigError, match=PROMPT):
        made.audit(2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_encoded_videos_are_audited_too_in_every_dtype(tmp_path: Path, original: Made, dtype: str) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(2):
        clip = np.random.default_rng(number).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
        write_video(videos / f"{number}.mp4", clip, 12)
    changes = {"kind": "frames", "denoise_steps": None, "compute_dtype": None, "dtype": dtype}
    made = Made(make_store(videos, tmp_path / "c", original.world, **changes), videos, original.world)
    done = made.audit(2)
    assert [one.verdict for one in done.samples] == ["equal", "equal"]
    tamper(made.store, made.store.keys[1], 0.5)
    assert [one.key for one in made.audit(2).different] == [made.store.keys[1]]


def test_a_seed_draws_the_same_samples_whatever_the_order_of_shards(original: Made, tmp_path: Path) -> None:
    chosen = [[one.key for one in original.audit(2, seed=seed).samples] for seed in (5, 5, 6)]
    assert chosen[0] == chosen[1] != chosen[2]
    copy, _ = export(original.store, tmp_path, shard_size=1, keys=list(reversed(original.store.keys)))
    again = Made(copy, original.images, original.world).audit(2, seed=5)
    assert [one.key for one in again.samples] == chosen[0]


def test_flags_of_an_audit_without_one_and_damage_before_it_are_said(made: Made) -> None:
    code, out, err = theworld("verify", made.store.path, "--seed", 3)
    assert (code, out) == (2, "")
    assert "--seed belongs to an audit: add --recompute" in err
    payload = made.store.payload_path(0)
    payload.write_bytes(payload.read_bytes()[:-1])
    code, out, _ = theworld("verify", made.store.path, "--recompute", 1, "--images", made.images)
    assert code == 1
    assert "nothing was recomputed" in out


def test_what_lies_in_tars_is_found_there_again(made: Made, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 4)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for path in sorted(images.iterdir()):
            tar.add(path, path.name)
    store = make_store(tmp_path / "tars", tmp_path / "cache", made.world)
    again = audit(store, 4, seed=0, images=tmp_path / "tars", world=str(made.world))
    assert [one.verdict for one in again.samples] == ["equal"] * 4
    assert not again.unusable

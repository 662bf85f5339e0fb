"""Which world models there are: those built in, those installed packages bring, and what is said of all others."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.installed import drift_code, install, save_drift
from tests.miniatures.cosmos25 import save_mini_world25
from tests.miniatures.world_model import save_mini_wan, save_mini_world
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, RecipeError, WorldModelError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.worlds.registry import list_worlds, registered
from theworld.precompute.worlds.source import find_family, resolve_world


@pytest.mark.parametrize(
    ("defaults", "words"),
    [({"window": "nine"}, "window"), ({"fps": 0}, "fps"), ([1], "dict"), (None, "dict"), ({"width": 2.5}, "width")],
)
def test_a_card_that_says_what_no_card_can_is_named(tmp_path: Path, defaults: object, words: str) -> None:
    world = save_mini_world(tmp_path / "mini")
    (world / "card.json").write_text(json.dumps({"defaults": defaults}))
    with pytest.raises(WorldModelError, match=rf"card\.json, defaults: .*{words}"):
        resolve_world(str(world))
    (world / "card.json").write_text(json.dumps({"defaults": {"fps": 12, "window": 5}, "more": 1}))
    assert (resolve_world(str(world)).card.fps, resolve_world(str(world)).card.window) == (12, 5)


@pytest.fixture(scope="module")
def cosmos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_world(tmp_path_factory.mktemp("world") / "cosmos")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_wan(tmp_path_factory.mktemp("world") / "wan")


def edited(folder: Path, to: Path, file: str, **changes: object) -> Path:
    """A copy of a world model with other words in one config; None drops a word."""
    copy = Path(shutil.copytree(folder, to))
    config = (json.loads((copy / file).read_text()) if (copy / file).exists() else {}) | changes
    (copy / file).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return copy


def test_a_folder_s_configs_say_what_it_is(cosmos: Path, wan: Path) -> None:
    assert "Cosmos" in find_family(None).title
    assert "Cosmos" in find_family(str(cosmos)).title
    assert "Wan" in find_family(str(wan)).title
    card = resolve_world(str(wan)).card
    assert (card.height, card.width, card.window, card.fps, card.denoise_steps) == (480, 832, 21, 16.0, 50)
    assert resolve_world("worldlet").identity == resolve_world(None).identity


def test_a_world_has_one_identity_by_name_and_by_folder() -> None:
    weights = Path(__file__).parents[3] / "precompute" / "worldlet" / "weights"
    assert resolve_world(str(weights)).identity == resolve_world(None).identity


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "Cosmos2_5_PredictBasePipeline"}, ["no cosmos-predict2.5", "UniPC"]),
        ("model_index.json", {"_class_name": "Cosmos2_5_TransferPipeline"}, ["Cosmos-Transfer2.5", "control video"]),
        ("transformer/config.json", {"use_crossattn_projection": True}, ["a Cosmos-Predict2.5 model, of the family"]),
        ("transformer/config.json", {"in_channels": 16}, ["no image"]),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": False}, ["Karras"]),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, ["draws noise of its own"]),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, ["AutoencoderKL,"]),
    ],
)
def test_cosmos_models_that_the_engine_does_not_run_are_refused_with_what_is_supported(
    cosmos: Path, tmp_path: Path, file: str, changes: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(WorldModelError) as caught:
        resolve_world(str(edited(cosmos, tmp_path / "other", file, **changes)))
    for word in [*words, "cosmos-predict2", "wan2.1-i2v", "theworld worlds"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("transformer/config.json", {"img_context_dim_in": 8}, "follows a control"),
        ("transformer/config.json", {"controlnet_block_every_n": 7}, "follows a control"),
        ("transformer/config.json", {"use_crossattn_projection": False}, "does not project its text"),
        ("transformer/config.json", {"in_channels": 16}, "no channel for the observed frames"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "along a flow"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": False}, "Karras"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "UniPC"),
        ("model_index.json", {"_class_name": "Cosmos2TextToImagePipeline"}, "Cosmos2TextToImagePipeline"),
    ],
)
def test_relatives_of_predict_2_5_are_refused_by_their_difference(
    tmp_path: Path, file: str, changes: dict[str, object], words: str
) -> None:
    folder = save_mini_world25(tmp_path / "world")
    assert find_family(str(folder)).title == "NVIDIA Cosmos-Predict2.5"
    with pytest.raises(WorldModelError, match=words):
        resolve_world(str(edited(folder, tmp_path / "other", file, **changes)))


def test_settings_without_a_meaning_for_predict_2_5_are_refused(tmp_path: Path) -> None:
    world = resolve_world(str(save_mini_world25(tmp_path / "world")))
    recipe = make_recipe(PrecomputeConfig(kind="continuation", steps=4), world)
    assert (recipe.observed_frames, recipe.denoise_steps, recipe.fps) == (5, 20, None)
    for refused, words in (
        ({"fps": 16.0}, "--fps 16 has no meaning"),
        ({"solver": "2ab"}, "--solver 2ab means nothing"),
        ({"kind": "continuation", "steps": 8, "observed_frames": 9}, "can be shown 5 frames at the most"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_recipe(PrecomputeConfig(**refused), world)
    with pytest.raises(WorldModelError, match=r"no text_encoder/, so it cannot follow a prompt"):
        resolve_world(str(world.folder), with_text=True)


@pytest.mark.parametrize(
    ("file", "changes", "word"),
    [
        ("model_index.json", {"boundary_ratio": 0.9}, "Wan 2.2"),
        ("model_index.json", {"expand_timesteps": True}, "Wan 2.2"),
        ("model_index.json", {"_class_name": "WanPipeline"}, "WanPipeline"),
        ("transformer/config.json", {"image_dim": None}, "text-to-video"),
        ("transformer/config.json", {"pos_embed_seq_len": 514}, "last frame"),
        ("transformer/config.json", {"in_channels": 32}, "32 channels, not 36"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "along a flow"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ("image_encoder/config.json", {"model_type": "siglip"}, "siglip"),
    ],
)
def test_other_models_of_wan_s_makers_are_refused_by_their_difference(
    wan: Path, tmp_path: Path, file: str, changes: dict[str, object], word: str
) -> None:
    with pytest.raises(WorldModelError, match=word):
        resolve_world(str(edited(wan, tmp_path / "other", file, **changes)))


def test_a_folder_that_no_family_knows_is_refused_with_each_reason_once(cosmos: Path, tmp_path: Path) -> None:
    other = edited(cosmos, tmp_path / "other", "model_index.json", _class_name="CogVideoXPipeline")
    with pytest.raises(WorldModelError, match=r"a CogVideoXPipeline, which none of them runs\. Supported are cosmos"):
        resolve_world(str(other))
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "config.json").write_text("{}")
    with pytest.raises(WorldModelError, match=r"a folder for each part.*…-Diffusers") as caught:
        resolve_world(str(tmp_path / "original"))
    assert "a part of no stated class without parts, which none of them runs" in str(caught.value)
    (tmp_path / "original" / "config.json").unlink()
    with pytest.raises(WorldModelError, match=r"a folder for each part.*…-Diffusers") as caught:
        resolve_world(str(tmp_path / "original"))
    assert str(caught.value).count("no vae/") == 1


def test_the_text_encoder_is_a_part_of_wan_s_identity_and_of_cosmos_s_with_a_prompt_only(
    wan: Path, tmp_path: Path
) -> None:
    other = edited(wan, tmp_path / "other", "text_encoder/config.json", comment="another")
    assert resolve_world(str(other)).identity != resolve_world(str(wan)).identity
    shutil.rmtree(other / "text_encoder")
    with pytest.raises(WorldModelError, match="text_encoder"):
        resolve_world(str(other))


def test_an_installed_package_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_drift(tmp_path / "weights")
    with pytest.raises(WorldModelError, match="no supported family"):
        resolve_world(str(folder))
    code = drift_code().replace("names = {}", f"names = {{'drift-tiny': {str(folder)!r}}}")
    code = code.replace("text = Pushes()", "text = None")
    install(tmp_path / "site", monkeypatch, package="drift-world", code=code, name="drift")
    assert registered()["drift"].origin == "drift-world 1.2"
    world = resolve_world("drift-tiny")
    assert world.name == "drift-tiny"
    assert world.identity == resolve_world(str(folder)).identity
    recipe = make_recipe(PrecomputeConfig(), world)
    assert (recipe.height, recipe.width, recipe.denoise_steps) == (32, 48, 2)
    assert world.latent_spec().sample_shape(32, 48, 8) == (4, 9, 8, 12)
    with pytest.raises(WorldModelError, match="reads no prompts"):
        resolve_world("drift-tiny", with_text=True)


def test_a_package_that_is_installed_while_a_process_runs_is_there_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "drift" not in registered()
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    monkeypatch.setattr("sys.path", list(dict.fromkeys(sys.path)))  # as it was: the folder stands there once
    assert "drift" in registered()
    shutil.rmtree(tmp_path / "site" / "drift_world-1.2.dist-info")
    assert "drift" not in registered()


def test_a_broken_entry_point_is_named_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch, package="bad-world", code="import nothing_of_this_name", name="bad")
    with pytest.raises(WorldModelError) as caught:
        resolve_world(None)
    for word in ("bad = bad_world:FAMILY", "bad-world 1.2", "nothing_of_this_name"):
        assert word in str(caught.value)


def test_an_entry_point_that_is_no_family_is_named_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = drift_code().replace("    engine = 1", "    motor = 1")
    install(tmp_path / "site", monkeypatch, package="half-world", code=code, name="half")
    with pytest.raises(WorldModelError, match=r"half_world:FAMILY of half-world 1.2 .* has no engine"):
        registered()


@pytest.mark.parametrize("name", ["wan2.1-i2v", "twice"])
def test_two_packages_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for package in ("first-world", "second-world"):
        install(tmp_path / package, monkeypatch, package=package, code=drift_code(), name=name)
    with pytest.raises(WorldModelError) as caught:
        registered()
    assert name in str(caught.value)
    assert "-world 1.2" in str(caught.value)


def test_two_families_that_claim_one_folder_or_one_name_are_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_drift(tmp_path / "weights")
    for package in ("first-world", "second-world"):
        install(tmp_path / package, monkeypatch, package=package, code=drift_code(), name=package)
    with pytest.raises(WorldModelError, match=r"claimed by (first|second)-world .* and (first|second)-world"):
        resolve_world(str(folder))
    code = drift_code().replace("names = {}", "names = {'worldlet': '/nowhere'}")
    install(tmp_path / "third", monkeypatch, package="third-world", code=code, name="third")
    with pytest.raises(WorldModelError, match="--world worldlet would mean two things"):
        resolve_world(None)


def test_a_size_off_the_latents_grid_and_what_wan_has_no_use_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wan: Path
) -> None:
    code = drift_code().replace("FRAMES = 4, 4, 2", "FRAMES = 4, 32, 2")
    install(tmp_path / "site", monkeypatch, package="drift-world", code=code, name="drift")
    folder = save_drift(tmp_path / "weights")
    with pytest.raises(ConfigError, match=r"32x32 pixels; --size 64x80.*Choose --size 64x"):
        make_recipe(PrecomputeConfig(size="64x80"), resolve_world(str(folder)))
    world = resolve_world(str(wan))
    make_recipe(PrecomputeConfig(steps=20), world)
    for refused, words in (
        ({"fps": 16.0}, r"--fps 16 has no meaning for Wan 2\.1"),
        ({"solver": "2ab"}, r"--solver 2ab means nothing for Wan 2\.1.*the scheduler in its folder"),
        ({"kind": "continuation", "steps": 4}, r"--observed-frames 5: Wan 2\.1.*1 frame at the most"),
        ({"steps": 40, "chunk_context": 5}, r"--chunk-context 5: Wan 2\.1.*Choose --chunk-context 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_recipe(PrecomputeConfig(**refused), world)
    with pytest.raises(ConfigError, match=r"(?s)21 .*at most 20"):
        make_recipe(PrecomputeConfig(steps=21), world)
    with pytest.raises(RecipeError, match="needs a text"):
        make_recipe(PrecomputeConfig(guidance=5.0), world)


def test_what_a_family_s_engines_lack_is_refused_by_its_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = 'names = {}\n    lacks = frozenset({"encode_video", "posterior", "decode"})'
    code = drift_code().replace("names = {}", says)
    install(tmp_path / "site", monkeypatch, package="drift-world", code=code, name="drift")
    world = resolve_world(str(save_drift(tmp_path / "weights")))
    for refused, words in (
        ({"kind": "frames"}, "--kind frames: drifting cells encodes single images and no videos"),
        ({"kind": "continuation", "observed_frames": 3}, "--observed-frames 3: drifting cells encodes single images"),
        ({"kind": "posterior"}, "--kind posterior: drifting cells encodes to points"),
        ({"steps": 20, "chunk_context": 1}, "decoded frames: drifting cells decodes no latents"),
        ({"guidance": 2.0, "prompt": "red"}, "--guidance 2: drifting cells has no guidance"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_recipe(PrecomputeConfig(**refused), world)
    for possible in ({}, {"kind": "views", "steps": 4}, {"kind": "samples"}):
        make_recipe(PrecomputeConfig(**possible), world)


def test_the_command_lists_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    done = CliRunner().invoke(app, ["worlds", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert rows == list_worlds()
    by_name = {row["world"]: row for row in rows}
    worldlet = by_name["worldlet"]
    assert (worldlet["height"], worldlet["window"], worldlet["prompts"]) == (64, 9, False)
    assert by_name["cosmos-predict2-2b"]["at"] == "nvidia/Cosmos-Predict2-2B-Video2World"
    assert (by_name["wan2.1-i2v-480p"]["window"], by_name["wan2.1-i2v-480p"]["prompts"]) == (21, True)
    assert (by_name[None]["family"], by_name[None]["from"]) == ("drift", "drift-world 1.2")
    table = " ".join(CliRunner().invoke(app, ["worlds"], env={"COLUMNS": "120"}).stdout.split())
    said = ("worldlet", "wan2.1-i2v-480p", "drift*", "drift: of the package drift-world 1.2")
    assert all(words in table for words in said)


def test_names_of_any_length_leave_the_table_whole_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a-very-long-name-of-a-world-of-some-package-14b-480p"
    code = drift_code().replace("names = {}", f"names = {{{long!r}: 'a/b'}}")
    install(tmp_path / "site", monkeypatch, package="drift-world", code=code, name="drift-in-latents-of-its-own")
    lines = CliRunner().invoke(app, ["worlds"], env={"COLUMNS": "80"}).stdout.splitlines()
    assert lines[0].split() == ["--world", "family", "size", "window", "fps", "steps", "prompts"]
    assert max(map(len, lines)) <= 80
    for row in list_worlds():
        steps = str(row["denoise_steps"]) if (row["settings"] or {}).get("noise", True) else "none"
        numbers = [f"{row['height']}x{row['width']}", str(row["window"]), f"{row['fps']:g}", steps]
        assert any(all(number in line.split() for number in numbers) for line in lines)

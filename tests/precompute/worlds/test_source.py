from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.miniatures.world_model import save_mini_world
from tests.patience import ends_within
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.worlds.family import ROOT
from theworld.precompute.worlds.source import (
    CONFIGS,
    COSMOS,
    files_of_parts,
    find_dimensions,
    resolve_world,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_world(tmp_path_factory.mktemp("world") / "mini")


def test_identity_is_the_content_of_weights_and_configs_not_their_place(folder: Path, tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "README.md").write_text("notes do not matter")
    identity = resolve_world(str(folder)).identity
    assert resolve_world(str(moved)).identity == identity
    config = moved / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"rope_scale": [', '"rope_scale": [ '))
    assert resolve_world(str(moved)).identity != identity


def test_the_latent_space_comes_from_the_vae_config(folder: Path) -> None:
    spec = resolve_world(str(folder)).latent_spec()
    assert (spec.channels, spec.spatial_stride, spec.temporal_stride) == (16, 8, 4)
    assert spec.sample_shape(224, 224, 4) == (16, 5, 28, 28)


def test_an_unreachable_hub_fails_in_seconds_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there, on any machine
    with pytest.raises(WorldModelError) as caught, ends_within(20):
        resolve_world(COSMOS)
    assert all(word in str(caught.value) for word in (COSMOS, "cannot be reached", "HF_HOME", "--world"))


@pytest.mark.parametrize(
    ("world", "word"),
    [
        ("no/such/folder/here", "no folder"),
        ("./missing", "no folder"),
        ("justaname", "Hub id"),
        ("~nosuchuser/world", "--world ~nosuchuser/world cannot be read"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_a_name_that_is_nothing_is_refused(world: str, word: str) -> None:
    with pytest.raises(WorldModelError, match=word):
        resolve_world(world)


def test_parts_of_another_pipeline_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = other / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(WorldModelError, match="WanTransformer3DModel"):
        resolve_world(str(other))
    shutil.rmtree(other / "scheduler")
    with pytest.raises(WorldModelError):
        resolve_world(str(other))


def test_settings_that_are_not_given_come_from_the_card(folder: Path) -> None:
    (folder / "card.json").write_text(json.dumps({"defaults": {"height": 96, "width": 64, "window": 9}}))
    try:
        world = resolve_world(str(folder))
        recipe = make_recipe(PrecomputeConfig(), world)
        assert (recipe.height, recipe.width, recipe.rollout_steps, recipe.denoise_steps) == (96, 64, 8, 10)
        assert make_recipe(PrecomputeConfig(size="32x48"), world).width == 48
        with pytest.raises(ConfigError, match=r"(?s)9 .*at most 8"):
            make_recipe(PrecomputeConfig(steps=9), world)
        with pytest.raises(ConfigError, match="at most 4"):
            make_recipe(PrecomputeConfig(steps=5, stride=2), world)
    finally:
        (folder / "card.json").unlink()


def test_a_size_off_the_grid_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 16"):
        PrecomputeConfig(size="225x224")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperal_downsample", [2**40]), ("temperal_downsample", [True] * 64), ("temperal_downsample", "yes"),
        ("z_dim", "16"), ("latents_mean", ["a"] * 16), ("latents_std", [0.0] * 16), ("latents_std", [10**400] * 16),
    ],
)  # fmt: skip
def test_a_config_of_no_latent_space_is_refused_at_once(tmp_path: Path, name: str, value: object) -> None:
    folder = save_mini_world(tmp_path / "world")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))
    with ends_within(20), pytest.raises(WorldModelError, match="describes no latent space"):
        resolve_world(str(folder)).latent_spec()


@pytest.mark.parametrize("stages", [[10**11, 1], [True] * 4000, "abc", [0.5]])
def test_strides_that_a_config_states_are_not_computed_unless_they_can_be(tmp_path: Path, stages: object) -> None:
    world = save_mini_world(tmp_path / "world")
    config = world / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "temperal_downsample": stages}))
    with pytest.raises(WorldModelError, match=r"describes no latent space: .*temperal_downsample") as refused:
        find_dimensions(str(world))
    assert len(str(refused.value)) < 300


def test_of_a_repository_only_the_files_of_a_model_s_parts_are_fetched() -> None:
    from huggingface_hub.utils import filter_repo_objects

    def fetched(repository: list[str], *patterns: str) -> set[str]:
        return set(filter_repo_objects(repository, allow_patterns=list(patterns)))

    flat = ["README.md", "config.json", "model.safetensors", "video_preprocessor_config.json", "notebook.ipynb"]
    assert fetched(flat, *CONFIGS) == {"config.json"}
    assert fetched(flat, *files_of_parts((ROOT,))) == set(flat) - {"README.md", "notebook.ipynb"}
    assert fetched(flat, *files_of_parts((ROOT,), with_weights=False)) == {
        "config.json",
        "video_preprocessor_config.json",
    }
    parts = ["model_index.json", "vae/config.json", "vae/model.safetensors", "text_encoder/model.safetensors"]
    assert fetched(parts, *CONFIGS) == {"model_index.json", "vae/config.json"}
    assert fetched(parts, *files_of_parts(("vae",))) == {"vae/config.json", "vae/model.safetensors"}
    assert fetched(parts, *files_of_parts(("vae",), with_weights=False)) == {"vae/config.json"}

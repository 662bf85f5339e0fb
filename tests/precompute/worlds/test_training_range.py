"""Warnings of recipes that are far from what a world model was trained on."""

from pathlib import Path

import pytest

from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.source import WorldSource, resolve_world
from theworld.precompute.worlds.training_range import far_from_training


def of_family(name: str) -> WorldSource:
    family = BUILT_IN[name]
    return WorldSource(name=name, folder=Path("nowhere"), identity="hub:a/b@c", family=family, card=family.card)


def recipe(**settings: object) -> Recipe:
    stated = {"world": "sha256:x", "height": 432, "width": 768, "rollout_steps": 23, "denoise_steps": 35, **settings}
    return Recipe.model_validate(stated)


def test_a_trained_size_length_and_many_denoise_steps_need_no_warning() -> None:
    assert far_from_training(of_family("cosmos-predict2"), recipe()) == []
    assert far_from_training(of_family("cosmos-predict2"), recipe(height=480, width=480)) == []
    assert far_from_training(of_family("cosmos-predict2"), recipe(solver="2ab", denoise_steps=20)) == []


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((224, 224), "480x480"), ((224, 384), "432x768"), ((1440, 1440), "960x960")],
)
def test_a_size_far_from_training_names_the_nearest_trained_one(size: tuple[int, int], nearest: str) -> None:
    [warning] = far_from_training(of_family("cosmos-predict2"), recipe(height=size[0], width=size[1]))
    assert f"{size[0]}x{size[1]} is far from the sizes" in warning
    assert f"--size {nearest}" in warning


def test_a_short_clip_names_the_trained_length_and_the_stride_that_reaches_it_with_the_same_steps() -> None:
    [warning] = far_from_training(of_family("cosmos-predict2"), recipe(rollout_steps=4))
    assert "5 latent frames is far shorter than the 24" in warning
    assert "--steps 23, or --stride 5 with these steps" in warning
    assert far_from_training(of_family("cosmos-predict2"), recipe(rollout_steps=4, stride=5)) == []


def test_a_model_that_was_also_trained_on_short_clips_takes_them() -> None:
    settings = {"height": 256, "width": 256, "fps": 24.0, "denoise_steps": 20}
    assert far_from_training(of_family("cosmos3"), recipe(rollout_steps=8, **settings)) == []
    [warning] = far_from_training(of_family("cosmos3"), recipe(rollout_steps=4, **settings))
    assert "--steps 12" in warning


@pytest.mark.parametrize(("solver", "effect"), [("euler", "keep about 75% of"), ("2ab", "keep about 134% of")])
def test_denoise_steps_that_change_the_spread_name_those_that_keep_it(solver: str, effect: str) -> None:
    [warning] = far_from_training(of_family("cosmos-predict2"), recipe(solver=solver, denoise_steps=10))
    assert effect in warning
    assert "--solver euler --denoise-steps 26 or --solver 2ab --denoise-steps" in warning


def test_of_other_families_few_denoise_steps_are_told_by_their_card() -> None:
    small = recipe(height=480, width=832, rollout_steps=20)
    [warning] = far_from_training(of_family("wan2.1-i2v"), small.model_copy(update={"denoise_steps": 10}))
    assert "Choose --denoise-steps 50" in warning
    assert far_from_training(of_family("wan2.1-i2v"), small) == []


def test_real_frames_are_judged_by_their_size_alone() -> None:
    frames = Recipe(world="sha256:x", height=224, width=224, kind="frames", rollout_steps=4)
    [warning] = far_from_training(of_family("cosmos-predict2"), frames)
    assert "--size 480x480" in warning


def test_the_worldlet_at_its_own_size_is_warned_of_nothing_and_far_from_it_of_the_size() -> None:
    worldlet = resolve_world(None)
    own = recipe(height=64, width=64, rollout_steps=8, denoise_steps=10)
    assert far_from_training(worldlet, own) == []
    [warning] = far_from_training(worldlet, own.model_copy(update={"height": 224, "width": 224}))
    assert "--size 64x64" in warning


def test_draws_of_one_evaluation_of_the_worldlet_are_warned_of() -> None:
    settings = {"height": 64, "width": 64, "rollout_steps": 32, "kind": "samples", "draws": 4}
    [warning] = far_from_training(resolve_world(None), recipe(**settings, denoise_steps=2))
    assert "draws differ little. Choose --denoise-steps 10" in warning
    assert far_from_training(resolve_world(None), recipe(**settings, denoise_steps=10)) == []


def test_hidden_states_are_not_denoised_and_so_not_judged_by_denoise_steps() -> None:
    fields = {
        "height": 480,
        "width": 480,
        "rollout_steps": 23,
        "denoise_steps": 10,
    }  # the default, which hidden states keep
    [warning] = far_from_training(of_family("cosmos-predict2"), recipe(**fields))
    assert "denoise steps" in warning
    assert far_from_training(of_family("cosmos-predict2"), recipe(**fields, kind="hidden", hidden_block=3)) == []


def test_a_card_that_states_another_size_replaces_the_familys(tmp_path: Path) -> None:
    folder = save_mini_world(tmp_path / "world")
    (folder / "card.json").write_text('{"defaults": {"height": 32, "width": 48}}')
    here = resolve_world(str(folder))
    assert not here.knows_scenes_alone
    assert far_from_training(here, recipe(height=32, width=48)) == []

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.config import load_config
from theworld.pipeline.errors import ConfigError, RecipeError
from theworld.pipeline.keys import is_key, key_of_bytes, noise_seed
from theworld.pipeline.latent_spec import latent_frames, video_frames
from theworld.pipeline.recipe import NO_MEANING, Recipe, difference, parse_recipe
from theworld.precompute.config import PrecomputeConfig

BASE = {"world": "sha256:" + "0" * 64, "height": 64, "width": 96}

# One other value for every field: adding a field without a line here fails the test below.
OTHER = {
    "kind": "frames",
    "world": "hub:nvidia/Cosmos-Predict2-2B-Video2World@" + "a" * 40,
    "height": 80,
    "width": 64,
    "fit": "pad",
    "image_rules": 2,
    "rollout_steps": 4,
    "stride": 2,
    "denoise_steps": 35,
    "guidance": 7.0,
    "prompt": "a ball falls",
    "negative_prompt": "blur",
    "fps": 16.0,
    "seed": 1,
    "draw": 1,
    "compute_dtype": "bfloat16",
    "dtype": "float32",
    "engine": 2,
}
ONLY_ONE_VALUE_YET = {"solver"}


def test_the_recipe_id_of_version_one_never_changes() -> None:
    # golden: a change here orphans every store ever written
    assert Recipe(**BASE).id == "b285bcbd8d0f2194b2eb762674c145824fab8c501c51b9998c1df616558c08a9"


def test_the_id_of_a_recipe_of_frames_never_changes() -> None:
    assert Recipe(**BASE, kind="frames").id == "ace1c6f74cbfc7f06c922f4c6f07dc644970488b5cb454fe66a3a839926e4f8c"


def test_every_field_changes_the_id() -> None:
    assert set(Recipe.model_fields) == set(OTHER) | ONLY_ONE_VALUE_YET
    prompted = BASE | {"prompt": "p", "guidance": 2.0}
    for name, value in OTHER.items():
        base = prompted if name in {"guidance", "prompt", "negative_prompt"} else BASE
        assert Recipe(**base).id != Recipe(**(base | {name: value})).id, name


def test_equal_fields_give_equal_ids_through_json() -> None:
    recipe = Recipe(**BASE, guidance=3.0, prompt="Straße ⚽")
    assert Recipe.model_validate_json(recipe.model_dump_json()).id == recipe.id


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"height": 65}, ["height", "multiple of 16"]),
        ({"rollout_steps": -1}, ["rollout_steps"]),
        ({"denoise_steps": 1}, ["denoise_steps"]),  # one level would return pure noise
        ({"guidance": 7.0}, ["guidance", "prompt"]),
        ({"negative_prompt": "x"}, ["negative_prompt", "guidance"]),
        ({"prompt": "  "}, ["prompt", "empty"]),
        ({"prompt": "a\0b"}, ["prompt", "NUL"]),
        ({"denoise": 3}, ["denoise"]),
        ({"rollout_steps": "4"}, ["rollout_steps"]),
        ({"guidance": float("nan")}, ["guidance"]),
    ],
)
def test_a_wrong_field_is_named(wrong: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE | wrong, where="here")
    assert all(word in str(caught.value) for word in ["here", *words])


def test_difference_names_the_fields_that_differ() -> None:
    assert difference(Recipe(**BASE, seed=1), Recipe(**BASE, seed=2)) == {"seed": (1, 2)}


@pytest.mark.parametrize("field", sorted(NO_MEANING["frames"] - ONLY_ONE_VALUE_YET))
def test_what_means_nothing_for_real_frames_is_refused_by_name(field: str) -> None:
    default = Recipe.model_fields[field].default
    assert Recipe(**BASE, kind="frames", **{field: default}).id == Recipe(**BASE, kind="frames").id
    wrong = {"kind": "frames", "guidance": 2.0, "prompt": "p", field: OTHER[field]}
    with pytest.raises(RecipeError, match=rf"{field}.*without meaning for kind frames"):
        parse_recipe(BASE | wrong, where="here")
    if field in PrecomputeConfig.model_fields:
        with pytest.raises(ConfigError, match=rf"{field}: without meaning for kind frames; leave it out"):
            load_config(PrecomputeConfig, "precompute", None, {"kind": "frames", field: OTHER[field]})


def test_recipes_of_two_kinds_differ_in_what_both_have() -> None:
    real = Recipe(**BASE, kind="frames")
    assert difference(Recipe(**BASE, denoise_steps=35, seed=1), real) == {"kind": ("rollout", "frames")}
    assert difference(real, Recipe(**BASE, rollout_steps=2)) == {
        "kind": ("frames", "rollout"),
        "rollout_steps": (8, 2),
    }


def test_a_rollout_step_is_one_latent_frame_and_four_video_frames() -> None:
    assert [latent_frames(c) for c in (0, 4, 8)] == [1, 5, 9]
    assert [video_frames(c) for c in (0, 4, 8)] == [1, 17, 33]
    assert video_frames(4, stride=3) == 49


def test_a_key_is_what_sha256sum_prints() -> None:
    assert key_of_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert is_key(key_of_bytes(b"x"))
    assert not is_key("../../etc/passwd")
    assert not is_key("E3B0C44298FC1C149AFBF4C8996FB924")


@given(st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_noise_belongs_to_seed_key_and_draw(seed: int, draw: int) -> None:
    a, b = key_of_bytes(b"a"), key_of_bytes(b"b")
    value = noise_seed(seed, a, draw)
    assert 0 <= value < 2**63
    assert value == noise_seed(seed, a, draw)
    assert len({value, noise_seed(seed, b, draw), noise_seed(seed, a, draw + 1), noise_seed(seed + 1, a, draw)}) == 4


def test_the_noise_seed_never_changes() -> None:
    assert noise_seed(0, "0" * 32, 0) == 6156702263738247886


# What a job's setting does to the latents. A new setting without a line here fails the test below.
INTO_RECIPE = {
    "kind": "kind",
    "world": "world",
    "steps": "rollout_steps",
    "stride": "stride",
    "size": "height, width",
    "fit": "fit",
    "denoise_steps": "denoise_steps",
    "guidance": "guidance",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "compute_dtype": "compute_dtype",
    "dtype": "dtype",
}
NO_EFFECT_ON_LATENTS = {
    *("images", "scenes", "cache", "limit", "guardrail", "device", "workers", "batch_size", "format", "shard_size"),
    *("in_process", "dry_run", "retry_failed", "max_bad"),
}
DECIDED_BY_THE_CODE = {"image_rules", "solver", "fps", "draw", "engine"}


def test_every_setting_either_enters_the_recipe_or_changes_no_latent() -> None:
    assert set(PrecomputeConfig.model_fields) == INTO_RECIPE.keys() | NO_EFFECT_ON_LATENTS
    assert not INTO_RECIPE.keys() & NO_EFFECT_ON_LATENTS
    entered = {field for fields in INTO_RECIPE.values() for field in fields.split(", ")}
    assert set(Recipe.model_fields) == entered | DECIDED_BY_THE_CODE

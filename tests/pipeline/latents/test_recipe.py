from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.config import load_config
from theworld.pipeline.errors import ConfigError, RecipeError
from theworld.pipeline.latents.keys import is_key, key_of_bytes, noise_seed
from theworld.pipeline.latents.kinds import KINDS, KindName
from theworld.pipeline.latents.recipe import Recipe, check_meaning, difference, parse_recipe, parse_size
from theworld.pipeline.latents.spec import latent_frames, video_frames
from theworld.precompute.job.config import PrecomputeConfig

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
    "solver": "2ab",
    "draws": 2,
    "observed_frames": 9,
    "views": "zoom",
    "chunk_frames": 9,
    "chunk_context": 5,
    "prompts": "sample",
    "clip_fps": 16.0,
}
# what else a recipe needs for a field to mean something
WITH = {
    "guidance": {"prompt": "p", "guidance": 2.0},
    "prompt": {"prompt": "p", "guidance": 2.0},
    "negative_prompt": {"prompt": "p", "guidance": 2.0},
    "draws": {"kind": "samples"},
    "observed_frames": {"kind": "continuation"},
    "clip_fps": {"kind": "frames"},
    "views": {"kind": "views", "rollout_steps": 4},
    "chunk_frames": {"chunk_frames": 5, "chunk_context": 1},
    "chunk_context": {"chunk_frames": 5, "chunk_context": 1},
}


def test_the_recipe_id_of_version_one_never_changes() -> None:
    # golden: a change here orphans every store ever written
    assert Recipe(**BASE).id == "b285bcbd8d0f2194b2eb762674c145824fab8c501c51b9998c1df616558c08a9"


@pytest.mark.parametrize(
    ("fields", "recipe_id"),
    [
        ({"kind": "frames"}, "ace1c6f74cbfc7f06c922f4c6f07dc644970488b5cb454fe66a3a839926e4f8c"),
        ({"kind": "samples", "draws": 4}, "def86f1f3a4c3448d1e8bd38f07749f8bfdfd2eca552b6b03d6b356782218497"),
        ({"kind": "continuation"}, "cf47f0a88f87308aac60f79fc5bda657606d91643002594dcac4038ead7a4a61"),
        ({"kind": "views", "rollout_steps": 4}, "a452fa193db024b9d09caee046968ed604ecae9a4d8dc866bf24ae8b76b43327"),
        ({"kind": "posterior", "rollout_steps": 1}, "0420dcaf24556d508e5f3271b5bab599900e2394602db4f832af2c4648f18bf9"),
        (
            {"rollout_steps": 30, "chunk_frames": 24, "chunk_context": 5, "solver": "2ab"},
            "b5e1c002c4ea3e7e1ba9cef5edb78dbd35c47ced7520785a42a8f13d22a1ccb2",
        ),
    ],
)
def test_the_ids_of_other_kinds_never_change(fields: dict[str, object], recipe_id: str) -> None:
    assert Recipe(**BASE, **fields).id == recipe_id


def test_every_field_changes_the_id() -> None:
    assert set(Recipe.model_fields) == set(OTHER)
    for name, value in OTHER.items():
        base = BASE | WITH.get(name, {})
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
        ({"guidance": 7.0}, ["guidance", "Give a prompt or a negative_prompt"]),
        ({"negative_prompt": "x"}, ["negative_prompt", "guidance"]),
        ({"prompt": "  "}, ["prompt", "empty"]),
        ({"prompt": "a\0b"}, ["prompt", "NUL"]),
        ({"prompt": "caf\udce9"}, ["prompt", "UTF-8"]),
        ({"denoise": 3}, ["denoise"]),
        ({"rollout_steps": "4"}, ["rollout_steps"]),
        ({"guidance": float("nan")}, ["guidance"]),
        ({"kind": "samples", "rollout_steps": 8, "draws": 3}, ["8 rollout_steps", "3 draws"]),
        ({"kind": "samples", "rollout_steps": 0}, ["draws"]),
        ({"kind": "views", "rollout_steps": 5}, ["whole levels", "4, 13"]),
        ({"kind": "posterior", "rollout_steps": 8}, ["mean and log-variance"]),
        ({"chunk_frames": 9}, ["chunk_frames and chunk_context go together"]),
    ],
)
def test_a_wrong_field_is_named(wrong: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE | wrong, where="here")
    assert all(word in str(caught.value) for word in ["here", *words])


def test_difference_names_the_fields_that_differ() -> None:
    assert difference(Recipe(**BASE, seed=1), Recipe(**BASE, seed=2)) == {"seed": (1, 2)}


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k in KINDS for f in sorted(KINDS[k].fields_without_meaning)])
def test_what_means_nothing_for_a_kind_is_refused_by_name(kind: KindName, field: str) -> None:
    whole = BASE | {"kind": kind, "rollout_steps": {"views": 4, "posterior": 1}.get(kind, 8)}
    assert Recipe(**whole, **{field: Recipe.model_fields[field].default}).id == Recipe(**whole).id
    with pytest.raises(RecipeError, match=rf"{field}.*without meaning for kind {kind}"):
        parse_recipe(whole | {"guidance": 2.0, "prompt": "p", field: OTHER[field]}, where="here")
    if field in PrecomputeConfig.model_fields:
        with pytest.raises(ConfigError, match=rf"{field}.*: without meaning for kind {kind}; leave it out"):
            load_config(PrecomputeConfig, "precompute", None, {"kind": kind, field: OTHER[field]})


def test_recipes_of_two_kinds_differ_in_what_both_have() -> None:
    real = Recipe(**BASE, kind="frames")
    assert difference(Recipe(**BASE, denoise_steps=35, seed=1), real) == {"kind": ("rollout", "frames")}
    assert difference(real, Recipe(**BASE, rollout_steps=2)) == {
        "kind": ("frames", "rollout"),
        "rollout_steps": (8, 2),
    }


def test_a_rollout_step_is_one_latent_frame_and_four_video_frames() -> None:
    assert [latent_frames(c) for c in (0, 4, 8)] == [1, 5, 9]
    assert [video_frames(c, temporal_stride=4) for c in (0, 4, 8)] == [1, 17, 33]
    assert video_frames(4, stride=3, temporal_stride=4) == 49


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
    "prompt_field": "prompts",
    "seed": "seed",
    "solver": "solver",
    "draws": "draws",
    "observed_frames": "observed_frames",
    "clip_fps": "clip_fps",
    "fps": "fps",
    "views": "views",
    "chunk_context": "chunk_context, chunk_frames",
    "compute_dtype": "compute_dtype",
    "dtype": "dtype",
}
NO_EFFECT_ON_LATENTS = {
    *("images", "scenes", "cache", "limit", "part", "guardrail", "device", "workers", "batch_size"),
    "compile",  # last bits alone, as the batch size
    "offload",  # where weights lie before a block computes
    "decoders",  # processes that make pixels of files, the same in each
    "memory",  # what a plan reckons with, and so the batch size
    *("format", "shard_size", "nodes"),
    *("in_process", "dry_run", "retry_failed", "max_bad", "column", "image_root", "rehash", "address", "events"),
    "gpu_hour_price",
    *("start_field", "end_field", "anchor"),  # which inputs: they enter the keys
}
DECIDED_BY_THE_CODE = {"image_rules", "draw", "engine"}


def test_every_setting_either_enters_the_recipe_or_changes_no_latent() -> None:
    assert set(PrecomputeConfig.model_fields) == INTO_RECIPE.keys() | NO_EFFECT_ON_LATENTS
    assert not INTO_RECIPE.keys() & NO_EFFECT_ON_LATENTS
    entered = {field for fields in INTO_RECIPE.values() for field in fields.split(", ")}
    assert set(Recipe.model_fields) == entered | DECIDED_BY_THE_CODE


def test_fields_without_meaning_are_named_in_order() -> None:
    """A set of texts has another order in every process: seven names come sorted by chance once in 5,040."""
    names = ["draw", "draws", "fps", "guidance", "observed_frames", "seed", "stride"]
    values = dict.fromkeys(reversed(names), 7)
    with pytest.raises(ValueError, match=rf"^{', '.join(names)}: without meaning for kind posterior"):
        check_meaning("posterior", values)


def test_a_size_is_height_and_width() -> None:
    assert parse_size("64x96") == (64, 96)
    for text in ("64", "64x", "x64", "64 x 96", "-64x96", "64x96x3"):
        with pytest.raises(ConfigError, match="HEIGHTxWIDTH"):
            parse_size(text)


def test_a_size_that_no_recipe_takes_names_the_nearest_that_one_does() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 16 pixels, got 225x233\. The nearest is 224x240"):
        parse_size("225x233")
    with pytest.raises(ConfigError, match="The nearest is 16x16"):
        parse_size("1x8")

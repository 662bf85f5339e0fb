"""What `info` says of a store: numpy's numbers, and a warning exactly where something is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from theworld.pipeline.errors import DamagedShardError
from theworld.pipeline.latents.spec import LatentSpec
from theworld.pipeline.store.folder import LatentStore, StoreFormat, create_store, open_store
from theworld.pipeline.store.ledger import Failure
from theworld.pipeline.store.upkeep.summary import Summary, summarise
from theworld.pipeline.store.upkeep.transfer import export, merge

from ....miniatures.store import SPEC, TINY, create, expected, fill, flip, key, write
from ....permissions import WAN_SPEC, poison

SHAPE = (3, 3, 2, 4)
Latents = NDArray[np.float32]


def holding(cache: Path, latents: Latents, spec: LatentSpec = SPEC, facts: dict[str, Any] | None = None) -> LatentStore:
    """A float32 store of (B, C, T, H, W)."""
    recipe = TINY.model_copy(update={"dtype": "float32"})
    store = create_store(cache, recipe, spec, label="tiny", shard_size=max(1, len(latents)))
    if len(latents):
        with store.new_shard() as shard:
            for number, values in enumerate(latents):
                shard.add(key(number), values)
            shard.commit(facts or {})
    return store


def healthy(samples: int = 32, seed: int = 0) -> Latents:
    """Standardised, and moving from frame to frame."""
    return np.random.default_rng(seed).standard_normal((samples, *SHAPE), np.float32)


@pytest.mark.parametrize(("format", "dtype"), [("zarr", "float16"), ("webdataset", "bfloat16"), ("zarr", "float32")])
def test_the_numbers_are_numpys(cache: Path, format: StoreFormat, dtype: str) -> None:
    store = create(cache, recipe=TINY.model_copy(update={"dtype": dtype}), format=format)
    fill(store, 10)
    found = summarise(store)
    latents = expected(store, range(10)).astype(np.float64)
    close = {"rtol": 0, "atol": 5e-5 + 1e-12}
    np.testing.assert_allclose(found.channel_mean, latents.mean(axis=(0, 2, 3, 4)), **close)
    np.testing.assert_allclose(found.channel_std, latents.std(axis=(0, 2, 3, 4)), **close)
    np.testing.assert_allclose(found.motion, np.abs(np.diff(latents, axis=2)).mean(axis=(0, 1, 3, 4)), **close)
    assert found.looked_into == 10


def test_some_samples_are_spread_over_all(cache: Path) -> None:
    latents = np.full((9, *SHAPE), 0, np.float32) + np.arange(9, dtype=np.float32)[:, None, None, None, None]
    store = holding(cache, latents)
    for samples, mean in ((1, 0.0), (2, 4.0), (3, 4.0), (9, 4.0), (1000, 4.0)):
        found = summarise(store, samples=samples)
        assert found.looked_into == min(9, samples)
        assert found.channel_mean == (mean,) * 3, samples


def test_none_looked_into_is_said(cache: Path) -> None:
    found = summarise(holding(cache, healthy()), samples=0)
    assert (found.looked_into, found.samples) == (0, 32)
    assert found.warnings == ("no sample was looked into",)
    assert not any("mean" in line for line in found.lines())


def warnings_of(cache: Path, latents: Latents, spec: LatentSpec = SPEC) -> str:
    return " ".join(summarise(holding(cache, latents, spec)).warnings)


def test_healthy_latents_are_warned_of_nothing(cache: Path) -> None:
    assert warnings_of(cache / "plain", healthy()) == ""
    assert warnings_of(cache / "wan", healthy(), WAN_SPEC) == ""
    still = healthy()
    still[:, :, 2] = still[:, :, 1]  # things come to rest
    assert warnings_of(cache / "rest", still) == ""
    channels = np.array([0.6, 1.0, 1.6], np.float32)[:, None, None, None]
    assert warnings_of(cache / "channels", healthy() * channels + 0.3, WAN_SPEC) == ""


def test_rollouts_that_stand_still_are_named_and_counted(cache: Path) -> None:
    latents = healthy(10)
    for number in (2, 5, 6):
        latents[number] = latents[number, :, :1] + 1e-4 * healthy(1)[0]
    assert "3 of 10 rollouts stand still" in warnings_of(cache, latents)


def test_raw_latents_are_noticed_by_the_spread_of_their_own_space(cache: Path) -> None:
    std, mean = (np.array(values, np.float32)[:, None, None, None] for values in (WAN_SPEC.std, WAN_SPEC.mean))
    assert "raw" in warnings_of(cache, healthy() * std + mean, WAN_SPEC)


@pytest.mark.parametrize("factor", [0.05, 0.2, 4.0, 100.0])
def test_another_scale_is_noticed_with_its_size(cache: Path, factor: float) -> None:
    found = summarise(holding(cache, healthy() * np.float32(factor)))
    assert len(found.warnings) == 1
    assert "standard deviation" in found.warnings[0]
    stated = float(found.warnings[0].split("deviation is ")[1].split(",")[0])
    assert stated == pytest.approx(factor, rel=0.05)


def test_channels_of_one_value_are_named(cache: Path) -> None:
    latents = healthy()
    latents[:, 1] = 0.25
    assert "channels [1] hold one value everywhere" in warnings_of(cache, latents)


def test_a_constant_far_from_zero_is_still_constant(cache: Path) -> None:
    latents = healthy()
    latents[:, 1] = 1e5 / 3
    found = summarise(holding(cache, latents))
    assert found.channel_std[1] == 0
    assert any("[1]" in warning for warning in found.warnings)


def test_a_store_without_a_future_has_no_motion_and_is_not_called_frozen(cache: Path) -> None:
    recipe = TINY.model_copy(update={"rollout_steps": 0, "dtype": "float32"})
    store = create(cache, recipe=recipe)
    with store.new_shard() as shard:
        shard.add(key(0), healthy(1)[0][:, :1])
        shard.commit({})
    found = summarise(store)
    assert found.motion == ()
    assert not any("stand still" in warning for warning in found.warnings)
    assert found.lines()


def test_an_empty_store_is_described_too(cache: Path) -> None:
    found = summarise(create(cache))
    assert (found.samples, found.shards, found.bytes, found.looked_into) == (0, 0, 0, 0)
    assert (found.first_created, found.last_created, found.warnings) == (None, None, ())
    assert "None" not in "\n".join(found.lines())


def test_sizes_origin_and_inputs_are_counted(cache: Path) -> None:
    store = create(cache)
    made = {"host": "h", "device": "d", "versions": {"torch": "2.13", "diffusers": "0.42"}}
    for number in range(3):
        with store.new_shard() as shard:
            shard.add(key(number), expected(store, [number])[0])
            shard.commit({**made, "seconds": {"rollout": 1.5}} if number else {"host": "other"})
    store.record_sources([("a.png", key(0)), ("b.png", key(1)), ("copy of a.png", key(0))])
    store.record_failure(Failure(source="c.png", key=None, reason="decode", message="no image", attempts=1))
    found = summarise(open_store(store.path))
    assert (found.samples, found.shards, found.sources, found.failures) == (3, 3, 3, 1)
    assert found.bytes == sum(store.payload_path(n).stat().st_size for n in range(3))
    assert found.worker_seconds == 3.0
    assert found.made_by == {"h, d, diffusers 0.42, torch 2.13": 2, "other": 1}
    created = sorted(record.created for record in store.records())
    assert (found.first_created, found.last_created) == (created[0], created[-1])
    assert (found.recipe_id, found.format, found.sample_shape) == (TINY.id, "zarr", SHAPE)


def test_time_tokens_and_world_are_told(cache: Path) -> None:
    store = holding(cache, healthy(4), facts={"world": {"name": "worldlet", "fps": 12}})
    found = summarise(store)
    assert (found.world_name, found.fps) == ("worldlet", 12.0)
    assert found.horizon_s == pytest.approx(8 / 12)
    assert found.time_axis == "T = 3: now, +0.33 s, +0.67 s"
    assert found.tokens == {"spatial": 3 * 2 * 4, "patch 2x2": 3 * 1 * 2}
    assert found.sample_bytes == 3 * 3 * 2 * 4 * 4
    text = "\n".join(found.lines())
    assert "0.67 s ahead at 12 frames/s" in text
    assert "24 spatial, 6 patch 2x2 an image" in text
    older = summarise(holding(cache / "older", healthy(4), facts={"world": {"name": 3, "fps": "x"}}))
    assert (older.world_name, older.fps, older.horizon_s) == (None, None, None)
    assert "now, frame +4, frame +8" in "\n".join(older.lines())


def test_the_spread_of_each_frame_is_numpys(cache: Path) -> None:
    latents = healthy() * np.array([1.0, 0.5, 2.0], np.float32)[:, None, None] + 7
    found = summarise(holding(cache, latents))
    np.testing.assert_allclose(found.frame_std, np.sqrt(latents.var(axis=(0, 3, 4)).mean(axis=0)), rtol=1e-4)


def test_seconds_by_phase_and_failures_by_reason_are_summed(cache: Path) -> None:
    store = create(cache)
    for number, decode in enumerate((0.5, 0.25)):
        with store.new_shard() as shard:
            shard.add(key(number), expected(store, [number])[0])
            shard.commit({"seconds": {"decode": decode, "rollout": 1.5, "note": "x", "flag": True}})
    for number, reason in enumerate(("decode", "missing", "decode")):
        store.record_failure(Failure(source=f"{number}", key=None, reason=reason, message="no", attempts=1))
    found = summarise(open_store(store.path))
    assert found.seconds == {"decode": 0.8, "rollout": 3.0}
    assert found.failures_by_reason == {"decode": 2, "missing": 1}
    text = "\n".join(found.lines())
    assert "work: decode 0.8 s, rollout 3.0 s" in text
    assert "3 failed inputs (2 decode, 1 missing)" in text


def rolled_out(cache: Path, samples: int, seconds: float) -> LatentStore:
    return holding(cache, healthy(samples), facts={"host": "h", "seconds": {"rollout": seconds}})


@pytest.mark.parametrize("shard_size", [1, 2, 3, 4])
def test_copies_cost_no_rollouts(cache: Path, shard_size: int) -> None:
    store = rolled_out(cache / "a", 4, 10.0)
    copy, _ = export(store, cache / "b", shard_size=shard_size)
    again, _ = export(copy, cache / "c", shard_size=4)
    for each in (store, copy, again):
        found = summarise(each)
        assert found.worker_seconds == pytest.approx(10.0, abs=0.1)
        assert found.made_by.keys() == {"h"}


def test_a_part_took_its_part_of_the_time(cache: Path) -> None:
    store = rolled_out(cache / "a", 4, 10.0)
    part, _ = export(store, cache / "b", keys=[key(0)])
    assert summarise(part).worker_seconds == pytest.approx(2.5, abs=0.1)
    merge(part.path, [store])
    assert summarise(open_store(part.path)).worker_seconds == pytest.approx(10.0, abs=0.1)


def test_facts_of_any_shape_are_borne(cache: Path) -> None:
    store = create(cache)
    strange: list[dict[str, Any]] = [
        {},
        {"seconds": 3},
        {"seconds": {"rollout": "long"}},
        {"seconds": {"rollout": True}},
        {"versions": []},
        {"host": None, "device": {"a": 1}},
        {"copied_from": "nowhere"},
        {"copied_from": [3, {"facts": 4}, {}]},
        {"copied_from": [{"rows": "x", "of_rows": 0, "facts": {"seconds": {"rollout": 4}}}]},
        {"seconds": {"rollout": 2**63 - 1, "preview": -1e308}, "world": {"name": "w", "fps": 2**63 - 1}},
        *(
            {"copied_from": [{"sha256": "", "created": "", "facts": {}, "rows": rows, "of_rows": 1}]}
            for rows in (2**63 - 1, 1e308, -1, 0, True)
        ),
    ]
    for number, facts in enumerate(strange):
        with store.new_shard() as shard:
            shard.add(key(number), expected(store, [number])[0])
            shard.commit(facts)
    found = summarise(store)
    assert found.shards == len(strange)
    assert np.isfinite(found.worker_seconds)
    assert sum(found.made_by.values()) == 9
    assert len(export(store, cache / "copy")[0]) == len(strange)


def test_a_damaged_sample_is_not_averaged(cache: Path) -> None:
    store = create(cache)
    fill(store, 4)
    flip(store.payload_path(0), 8)
    with pytest.raises(DamagedShardError, match="row 0"):
        summarise(open_store(store.path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_no_latent_are_warned_of_and_not_averaged(cache: Path, value: float) -> None:
    store = holding(cache, healthy(8))
    poison(store, 3, value)
    found = summarise(open_store(store.path))
    assert np.isfinite([*found.channel_mean, *found.channel_std, *found.motion]).all()
    (warning,) = found.warnings
    assert "1 of 8" in warning
    assert "NaN" in warning
    json.loads(json.dumps(found.to_json()), parse_constant=pytest.fail)


def test_small_latents_are_not_rounded_to_nothing(cache: Path) -> None:
    found = summarise(holding(cache, healthy() * np.float32(1e-5)))
    assert found.channel_std[0] == pytest.approx(1e-5, rel=0.05)
    assert found.motion[0] > 0


def test_the_same_is_plain_json_and_lines_for_people(cache: Path) -> None:
    store = create(cache)
    write(store, [0, 1])
    found = summarise(store)
    said = json.loads(json.dumps(found.to_json()))
    assert said["recipe"]["world"] == TINY.world
    assert said["channel_mean"] == list(found.channel_mean)
    assert set(said) == set(Summary.__dataclass_fields__)
    text = "\n".join(found.lines())
    for part in (str(store.path), TINY.id, "rollout_steps 2", "2 samples", "by channel", "motion"):
        assert part in text

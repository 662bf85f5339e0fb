"""Each layout's tokens hold what they should, as many as it says, and know where and when they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError
from theworld.train.config import TrainConfig
from theworld.train.reader.layouts import LAYOUTS, POOLS, Slot, TokenLayout, usual_layouts
from theworld.train.reader.resampler import Resampler
from theworld.train.reader.tokens import WorldReader
from theworld.train.runs.meta import ReaderFacts

CHANNELS, HEIGHT, WIDTH = 3, 4, 8

LAYOUT = st.builds(
    TokenLayout,
    name=st.sampled_from(LAYOUTS),
    patch=st.sampled_from([1, 2]),
    pool=st.sampled_from(POOLS),
    pool_steps=st.integers(1, 4),
    coarse=st.sampled_from([1, 2]),
    queries=st.integers(1, 5),
)
EACH = [TokenLayout(name=name, patch=2, pool_steps=steps, queries=5) for name in LAYOUTS for steps in (1, 2)]


def reader(layout: TokenLayout, *, timeless: bool = False) -> WorldReader:
    """For latents (3, T, 4, 8); timeless ones show in their tokens what is in the latents alone."""
    torch.manual_seed(0)
    made = WorldReader(
        latent_shape=(CHANNELS, HEIGHT, WIDTH), hidden_size=16, embedding_rms=1.0, layout=layout, max_world_steps=8
    )
    if timeless:
        torch.nn.init.zeros_(made.temporal_embedding.weight)
    return made


def latents(frames: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, CHANNELS, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(LAYOUT, st.integers(0, 7))
def test_the_count_is_how_many_tokens_there_are(layout: TokenLayout, frames: int) -> None:
    made = reader(layout)
    count = layout.count(frames, HEIGHT, WIDTH, channels=CHANNELS)
    tokens = made.arrange(latents(frames))
    assert made(latents(frames)).shape == (2, count, 16)
    assert tokens.shape[2] == layout.numbers(CHANNELS, HEIGHT, WIDTH)
    if layout.name != "resampler":
        assert tokens.shape[1] == count
    assert made.count(frames, HEIGHT, WIDTH) == count == sum(layout.by_slot(frames, HEIGHT, WIDTH, channels=CHANNELS))


@given(LAYOUT, st.integers(1, 12))
def test_every_frame_is_in_one_slot_and_the_observed_one_by_itself(layout: TokenLayout, frames: int) -> None:
    slots = layout.slots(frames)
    assert [t for slot in slots for t in range(slot.start, slot.stop)] == list(range(frames))
    assert slots[0] == Slot(0, 1)


@pytest.mark.parametrize("layout", [one for one in EACH if one.name != "resampler"], ids=TokenLayout.describe)
def test_the_observed_frame_s_tokens_do_not_change_with_the_future_or_with_how_much_of_it_is_read(
    layout: TokenLayout,
) -> None:
    made = reader(layout)
    now = made(latents(6)[:, :, :1])
    other = torch.cat([latents(6)[:, :, :1], latents(6, seed=1)[:, :, 1:]], 2)
    assert torch.allclose(made(latents(6))[:, : now.shape[1]], now, atol=1e-6)
    assert torch.allclose(made(other)[:, : now.shape[1]], now, atol=1e-6)
    assert not torch.allclose(made(other), made(latents(6)))


@pytest.mark.parametrize("pool", POOLS)
def test_a_lone_bright_cell_is_found_by_the_greatest_value_and_thinned_by_the_mean(pool: str) -> None:
    layout = TokenLayout(name="pooled", patch=2, pool=pool, pool_steps=2)  # type: ignore[arg-type]
    dark = torch.zeros(1, CHANNELS, 5, HEIGHT, WIDTH)
    bright = dark.clone()
    bright[0, 1, 3, 2, 5] = 8.0  # channel 1, frame 3: slot 2; row 2, column 5: token row 1, column 2
    made = reader(layout, timeless=True)
    changed = (made.arrange(bright) != made.arrange(dark)).nonzero()
    if pool == "stride":  # frame 4 and the lower right cell of a patch stand for it
        assert len(changed) == 0
        return
    place = 2 * 8 + 1 * 4 + 2
    found = {"mean": {1: 8.0 / 8}, "max": {1: 8.0}, "minmax": {CHANNELS + 1: 8.0}}[pool]
    assert changed.tolist() == [[0, place, number] for number in found]
    assert [made.arrange(bright)[0, place, number].item() for number in found] == list(found.values())


def test_minmax_keeps_the_least_and_the_greatest_of_each_channel() -> None:
    made = reader(TokenLayout(name="pooled", patch=4, pool="minmax"), timeless=True)
    values = latents(2)
    token = made.arrange(values)[0, 2 + 1]  # frame 1, right half
    block = values[0, :, 1, :, 4:].flatten(1)
    assert torch.equal(token, torch.cat([block.amin(1), block.amax(1)]))


def test_stride_keeps_the_last_frame_and_its_own_time() -> None:
    made, spatial = (
        reader(TokenLayout(name=name, pool="stride", pool_steps=steps))  # type: ignore[arg-type]
        for name, steps in (("spatial", 3), ("spatial", 1))
    )
    values = latents(7)
    kept = spatial.arrange(values).unflatten(1, (7, -1))[:, [0, 3, 6]].flatten(1, 2)
    assert torch.equal(made.arrange(values), kept)


def test_what_is_pooled_over_time_is_marked_by_the_mean_of_its_times_whatever_the_pool() -> None:
    for pool in ("mean", "max"):
        made = reader(TokenLayout(name="spatial", pool=pool, pool_steps=2))  # type: ignore[arg-type]
        times = made.temporal_embedding.weight
        marks = made.arrange(torch.zeros(1, CHANNELS, 4, HEIGHT, WIDTH))[0].unflatten(0, (3, -1))[:, 0]
        assert torch.allclose(marks, torch.stack([times[0], times[1:3].mean(0), times[3]]))


def test_hierarchical_keeps_every_number_of_now_and_of_the_end_and_few_of_what_is_between() -> None:
    fine, coarse = TokenLayout(name="patch", patch=2), TokenLayout(name="hierarchical", patch=2, pool="mean")
    values = latents(6)
    whole = reader(fine).arrange(values).unflatten(1, (6, 2, 4))
    tokens = reader(coarse).arrange(values)
    assert coarse.by_slot(6, HEIGHT, WIDTH, channels=CHANNELS) == [8, 2, 2, 2, 2, 8]
    assert torch.equal(tokens[:, :8], whole[:, 0].flatten(1, 2))
    assert torch.equal(tokens[:, -8:], whole[:, 5].flatten(1, 2))
    assert torch.allclose(tokens[:, 8], whole[:, 1, :, :2].mean((1, 2)), atol=1e-6)


def test_a_coarse_token_stands_at_the_middle_of_the_places_it_covers() -> None:
    projector = reader(TokenLayout(name="hierarchical", patch=2)).projector
    fine, coarse = projector._places(1).unflatten(0, (2, 4)), projector._places(2)
    assert torch.allclose(coarse, torch.stack([fine[:, :2].mean((0, 1)), fine[:, 2:].mean((0, 1))]), atol=1e-6)


def test_a_channel_token_changes_with_its_channel_and_its_frame_alone() -> None:
    made = reader(TokenLayout(name="channel"))
    before, values = made(latents(3)), latents(3)
    values[:, 1, 2, 0, 0] += 1.0
    changed = (made(values) - before).abs().amax((0, 2))
    assert changed.nonzero().flatten().tolist() == [2 * CHANNELS + 1]
    marked = values[0, 0, 0].flatten() + made.temporal_embedding.weight[0, 0]
    assert torch.equal(made.arrange(values)[0, 0], marked)


def test_the_same_channel_at_another_time_is_another_token() -> None:
    made = reader(TokenLayout(name="channel"), timeless=True)
    still = made(latents(1).expand(-1, -1, 3, -1, -1)).unflatten(1, (3, CHANNELS))
    assert not torch.allclose(still[:, 1], still[:, 2])
    assert not torch.allclose(still[:, :, 0], still[:, :, 1])


def test_a_resampler_s_queries_see_places_and_times_but_no_order() -> None:
    made = reader(TokenLayout(name="resampler", patch=1, queries=5))
    values = latents(3)
    assert made(values).shape == made(values[:, :, :1]).shape == (2, 5, 16)
    for moved in (values.flip(4), values.flip(3), values.flip(2)):
        assert not torch.allclose(made(moved), made(values), atol=1e-4)
    torch.manual_seed(0)
    queries, cells = Resampler(5, 64), torch.randn(2, 30, 64)
    assert torch.allclose(queries(cells), queries(cells[:, torch.randperm(30)]), atol=1e-5)


@pytest.mark.parametrize("layout", EACH, ids=TokenLayout.describe)
def test_every_weight_of_every_layout_learns(layout: TokenLayout) -> None:
    made = reader(layout)
    (made(latents(9)) * torch.randn(16)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_weights_of_the_first_layouts_have_the_names_they_always_had() -> None:
    names = {f"projector.{part}.{kind}" for part in ("into", "out") for kind in ("weight", "bias")} | {
        "projector.gain", "temporal_embedding.weight", "projector.row_embedding.weight",
        "projector.column_embedding.weight",
    }  # fmt: skip
    for name in ("spatial", "patch", "pooled", "hierarchical"):
        assert set(reader(TokenLayout(name=name)).state_dict()) == names  # type: ignore[arg-type]


def test_a_run_folder_from_before_these_layouts_is_of_the_layout_it_was() -> None:
    old = {"latent_shape": (16, 8, 8), "hidden_size": 128, "layout": "patch", "patch": 4}
    facts = ReaderFacts.model_validate({**old, "max_world_steps": 16, "num_world_steps": 8})
    layout = facts.token_layout()
    assert (layout.count(9, 8, 8, channels=16), layout.numbers(16, 8, 8)) == (36, 256)


def test_what_does_not_divide_or_does_not_exist_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"7x7 patches.*coarse ones of 2x2.*another --patch"):
        TokenLayout(name="hierarchical", patch=4).grid(28, 28)
    with pytest.raises(ConfigError, match=r"'pyramid'.*spatial, patch, pooled"):
        TokenLayout(name="pyramid")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pool_steps must be at least 1 frame"):
        TokenLayout(pool_steps=0)
    assert {layout.name for layout in usual_layouts(28, 28)} == set(LAYOUTS)
    assert all(layout.name in ("spatial", "channel") for layout in usual_layouts(7, 7))


def test_a_layout_s_own_number_of_frames_to_a_token_is_what_nobody_says_otherwise() -> None:
    def steps(**settings: object) -> int:
        given = {"store": "s", "questions": "q", **settings}
        return TrainConfig.model_validate(given).token_layout().pool_steps

    assert [steps(layout=name) for name in LAYOUTS] == [1, 1, 2, 4, 1, 1]
    assert steps(layout="hierarchical", pool_steps=3) == 3

"""Exact limits, poolings and scales of the reader: each test fails if one comparison or index is off by one."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from theworld.train.reader.context_budget import Budget, ContextLimits
from theworld.train.reader.layouts import TokenLayout
from theworld.train.reader.model import TheWorld
from theworld.train.reader.tokens import Projector, WorldReader, cut

from ...miniatures.lm import RECIPE, mini_lm


def budget(*, context: int, window: int | None, text: int = 4) -> Budget:
    """Three frames of 2 x 2 cells: 12 world tokens."""
    limits = ContextLimits("mini", context, window, 1, 2)
    return Budget(layout=TokenLayout(name="spatial"), room=limits, cells=(16, 2, 2), frames=(0, 1, 2), text=text)


def test_a_row_of_exactly_the_context_fits_and_one_token_more_does_not() -> None:
    assert (budget(context=16, window=None).fits, budget(context=15, window=None).fits) == (True, False)


def test_a_row_of_exactly_the_window_loses_nothing() -> None:
    assert not budget(context=99, window=16).beyond_window
    assert budget(context=99, window=15).beyond_window
    assert budget(context=99, window=4).beyond_window
    assert not budget(context=99, window=3).beyond_window


def test_bos_in_front_of_the_world_leaves_the_window_before_any_world_token() -> None:
    assert budget(context=99, window=15).frames_beyond_window() == ([], [])
    assert budget(context=99, window=14).frames_beyond_window() == ([], [0])


def test_a_window_of_exactly_the_queries_of_a_resampler_shows_all_frames() -> None:
    layout = TokenLayout(name="resampler", patch=1, queries=8)
    assert layout.hidden_frames(3, 2, 2, channels=16, seen=8) == ((), ())
    assert layout.hidden_frames(3, 2, 2, channels=16, seen=7) == ((), (0, 1, 2))


def test_stride_takes_the_middle_cell_of_a_patch() -> None:
    frame = torch.arange(9.0).view(1, 1, 3, 3, 1)
    assert cut(TokenLayout(name="pooled", patch=3, pool="stride"), frame).item() == 4


def test_a_token_of_rms_one_thousandth_is_scaled_with_an_epsilon_of_one_millionth() -> None:
    projector = Projector(2, 4, grid=(1, 1), gain=3.0)
    nn.init.zeros_(projector.out.weight)
    nn.init.constant_(projector.out.bias, 1e-3)
    assert projector(torch.ones(1, 1, 2)).square().mean().sqrt().item() == pytest.approx(3 / 2**0.5, rel=1e-4)


def test_a_slot_pooled_by_stride_has_the_time_of_its_last_frame_alone() -> None:
    layout = TokenLayout(name="channel", pool="stride", pool_steps=2)
    reader = WorldReader(latent_shape=(2, 2, 2), hidden_size=8, embedding_rms=1.0, layout=layout, max_world_steps=2)
    latents = torch.randn(1, 2, 3, 2, 2)
    times = cast(nn.Embedding, reader.projector.time_embedding).weight
    tokens = reader(latents)
    with torch.no_grad():
        times[1] += 1
    assert torch.equal(reader(latents), tokens)
    with torch.no_grad():
        times[2] += 1
    assert not torch.equal(reader(latents), tokens)


def model(**options: Any) -> TheWorld:
    torch.manual_seed(1)
    reader = WorldReader(latent_shape=(16, 4, 6), hidden_size=32, embedding_rms=1.0)
    return TheWorld(mini_lm(), reader, num_world_steps=1, **options)


def test_a_reader_of_no_steps_reads_a_posteriors_mean_while_it_is_trained() -> None:
    posterior = model(recipe=RECIPE.model_copy(update={"kind": "posterior"})).train()
    moments = torch.randn(2, 16, 2, 4, 6)
    assert torch.equal(cast(torch.Tensor, posterior._world_latents(moments, None, None, 0)), moments[:, :, :1])


def test_log_likelihoods_of_half_precision_logits_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets, rows = torch.arange(40) % 30, torch.zeros(40, dtype=torch.long)
    plain = model().eval()
    monkeypatch.setattr(plain, "_labelled", lambda *_: (logits, targets, rows))
    ids = torch.ones(1, 41, dtype=torch.long)
    expected = -nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    actual = plain.log_likelihood(ids, ids, ids)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_text_padded_on_the_left_has_the_positions_it_would_have_alone() -> None:
    plain = model().eval()
    alone = torch.tensor([[1, 4, 11, 5]])
    padded, mask = torch.tensor([[0, 0, 1, 4, 11, 5]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions: list[torch.Tensor] = []
    plain.lm.register_forward_pre_hook(lambda _, __, given: positions.append(given["position_ids"]), with_kwargs=True)
    plain(alone, torch.ones_like(alone))
    plain(padded, mask)
    assert torch.equal(positions[1][:, 2:], positions[0])

"""What flex attention is told to see is what the dense masks say, and its attention is the same."""

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from theworld.train.data.batches import Example, pad_rows
from theworld.train.reader import segments as segments_module
from theworld.train.reader.memory import PAIRS_AT_ONCE
from theworld.train.reader.segments import segment_blocks, segment_masks, segment_positions

from ...allocations import Allocations

WORLD = 130  # world tokens, so that a row has several blocks of 128


def packed(questions: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Segments, mask and positions of two rows: so many questions each, behind the same world."""
    rows = [
        [Example(str(n), (1, *range(4, 24)), tuple(range(5, 25 + 40 * n))) for _ in range(count)]
        for n, count in enumerate(questions)
    ]
    batch = pad_rows(rows, 0)
    segments = nn.functional.pad(batch["segments"], (WORLD, 0))
    mask = nn.functional.pad(batch["attention_mask"], (WORLD, 0), value=1)
    return segments, mask, segment_positions(segments, mask)


@pytest.mark.parametrize(("window", "sees_images"), [(None, False), (50, True)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_blocks_and_dense_masks_give_the_same_attention(window: int | None, sees_images: bool) -> None:
    segments, mask, positions = packed((4, 2))
    is_image = None
    if sees_images:
        is_image = torch.zeros_like(mask).bool()
        is_image[:, 10:60] = True
    dense = segment_masks(segments, mask, positions, window=window, dtype=torch.float32, is_image=is_image)
    blocks = segment_blocks(segments, mask, positions, window=window, is_image=is_image)
    assert dense.keys() == blocks.keys()
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, segments.shape[1], 16)
    for name, whole in dense.items():
        expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=whole)
        found = flex_attention(query, key, value, block_mask=blocks[name])
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        whole_blocks = blocks[name].full_kv_num_blocks
        assert whole_blocks is not None
        assert int((blocks[name].kv_num_blocks + whole_blocks).sum()) <= 2 * 6  # of nine a row: not those ahead


@pytest.mark.parametrize("at_once", [PAIRS_AT_ONCE, 1])
@pytest.mark.parametrize("window", [None, 50])
def test_the_blocks_are_those_that_torch_finds_in_the_whole_mask(
    window: int | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_module, "PAIRS_AT_ONCE", at_once)  # 1: each row of blocks by itself
    segments, mask, positions = packed((9, 3))
    batch, length = segments.shape
    dense = segment_masks(segments, mask, positions, window=window, dtype=torch.float32)
    for name, blocks in segment_blocks(segments, mask, positions, window=window).items():
        torchs = create_block_mask(blocks.mask_mod, batch, None, length, length, device="cpu")
        assert blocks.shape == torchs.shape
        for ours, theirs in zip(blocks.as_tuple()[2:10], torchs.as_tuple()[2:10], strict=True):
            assert ours is None if theirs is None else torch.equal(ours, theirs)
        ragged = -length % 128
        visible = nn.functional.pad(dense[name][:, 0] == 0, (0, ragged, 0, ragged))
        some = visible.unflatten(2, (-1, 128)).unflatten(1, (-1, 128)).any(4).any(2)
        assert torch.equal(blocks.to_dense()[:, 0].bool(), some)


def test_no_mask_of_every_token_by_every_token_is_made() -> None:
    segments = torch.zeros(4, 8192, dtype=torch.long)
    mask, positions = torch.ones_like(segments), torch.arange(8192).expand(4, -1)
    memory = Allocations()
    with memory:
        segment_blocks(segments, mask, positions, window=4096)
    assert memory.peak < 0.5 * 4 * 8192**2  # bytes: half of one mask of booleans

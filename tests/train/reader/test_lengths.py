"""Rows get few lengths, all of whole blocks, for little padding."""

from theworld.train.reader.lengths import BLOCK, padded_length


def test_lengths_are_few_and_whole_blocks_and_padding_is_small() -> None:
    lengths = {tokens: padded_length(tokens) for tokens in range(1, 16_385)}
    assert all(length % BLOCK == 0 and length >= tokens for tokens, length in lengths.items())
    assert len(set(lengths.values())) == 40
    assert len({lengths[tokens] for tokens in range(1, 2049)}) == 16
    assert len({lengths[tokens] for tokens in range(1764 + 20, 1764 + 500)}) == 4  # texts behind nine frames
    assert max(length / tokens for tokens, length in lengths.items() if tokens > 1024) < 1.13
    assert all(padded_length(length) == length for length in lengths.values())

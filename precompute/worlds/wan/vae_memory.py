"""How much memory Wan's VAE takes to encode or to decode, from its config alone. Loads no torch.

The layers of diffusers' `AutoencoderKLWan` are walked through in their order, and what each holds is added up: its
input, what it computes for a moment, and the last two frames that each causal convolution keeps for the next chunk.
Wan 2.2's takes patches of pixels, and its stages have a way around them, which averages or repeats their input.
Attention at the lowest resolution is left out: it is far below the most. All is counted in numbers (of float32) of one
sample; those that the libraries of a GPU take for themselves are not in it.

Axes:  F video frame, in pixels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ....pipeline.files.limits import MAX_LAYERS

_KEPT = 2  # frames that a causal convolution keeps: diffusers' CACHE_T
_STEADY = 3  # chunks of a clip, from which on all are alike: what is kept has reached its size
_COLORS = 3


@dataclass(frozen=True, slots=True)
class HalfOfVAE:
    """The memory of the encoder or of the decoder of a VAE."""

    parameters: int
    peak: int
    """Of one sample, without the weights."""


def encoder_memory(config: Mapping[str, Any], frames: int, height: int, width: int) -> HalfOfVAE:
    """Encoding a clip of so many video frames, of which the first is a chunk of its own.

    Raises:
        LookupError, TypeError, ValueError: the config describes no such VAE.
    """
    sizes = _Sizes.of(config)
    dims = [sizes.base * factor for factor in (1, *sizes.mults)]
    tall, wide = height // sizes.patch, width // sizes.patch
    walk = _Walk(outside=_COLORS * frames * height * width * (1 + (sizes.patch > 1)))
    for chunk in range(min(_STEADY, 1 + math.ceil((frames - 1) / 4))):
        x = _Map(sizes.colors, 1 if chunk == 0 else 4, tall, wide)
        walk.begin_chunk()
        x = walk.conv(x, dims[0], beside=-x.size)  # a view of the clip
        for stage, (_, width_out) in enumerate(pairwise(dims)):
            entered, is_last = x, stage == len(sizes.mults) - 1
            around = entered.size if sizes.is_residual else 0
            for number in range(sizes.blocks):
                x = walk.residual(x, width_out, beside=2 * around if number else around)
            if not is_last:
                x = walk.downsample(x, temporal=sizes.temporal[stage], beside=2 * around)
            if around:  # padded, and its averaged cells in order
                walk.take((3 if is_last else 4) * around + 2 * x.size)
        x = walk.middle(x)
        walk.norm(x)
        walk.conv(x, 2 * config["z_dim"])
    walk.add_conv(2 * config["z_dim"], 2 * config["z_dim"], 1)  # quant_conv
    return walk.result()


def decoder_memory(config: Mapping[str, Any], frames: int, height: int, width: int) -> HalfOfVAE:
    """Decoding a clip of so many latent frames to pictures of this size.

    Raises:
        LookupError, TypeError, ValueError: the config describes no such VAE.
    """
    sizes = _Sizes.of(config)
    base = config.get("decoder_base_dim") or sizes.base
    dims = [base * factor for factor in (sizes.mults[-1], *reversed(sizes.mults))]
    stages, temporal = len(sizes.mults) - 1, sizes.temporal[::-1]
    clip = _COLORS * (1 + (frames - 1) * 2 ** sum(temporal)) * height * width
    walk = _Walk(outside=clip)
    for chunk in range(min(_STEADY, frames)):
        x = _Map(config["z_dim"], 1, height // sizes.patch >> stages, width // sizes.patch >> stages)
        walk.begin_chunk()
        x = walk.middle(walk.conv(x, dims[0], beside=-x.size))
        for stage, (_, width_out) in enumerate(pairwise(dims)):
            entered = x.size
            around = entered if sizes.is_residual else 0
            for number in range(sizes.blocks + 1):
                x = walk.residual(x, width_out, beside=around + (entered if number else 0))
            if stage < stages:
                out = x.channels if sizes.is_residual else x.channels // 2
                x = walk.upsample(x, out, beside=around + entered, temporal=temporal[stage], is_first=chunk == 0)
                if around:  # repeated, and in order; of the first chunk, frames that are dropped with it
                    repeated = x.size * (2 if temporal[stage] and chunk == 0 else 1)
                    walk.take(2 * around + x.size + 2 * repeated)
        walk.norm(x)
        walk.conv(x, sizes.colors)
    walk.take(clip)  # the clip, once more when it is clamped
    walk.add_conv(config["z_dim"], config["z_dim"], 1)  # post_quant_conv
    return walk.result()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What decides the sizes of the layers."""

    base: int
    mults: list[int]
    blocks: int
    temporal: list[bool]
    patch: int
    colors: int
    """Channels of the pixels that enter, a patch of them each."""
    is_residual: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Sizes:
        mults, blocks = list(config["dim_mult"]), config["num_res_blocks"]
        temporal = list(config["temperal_downsample"])  # diffusers' spelling
        if not mults or len(temporal) < len(mults) - 1 or not 0 < blocks * len(mults) <= MAX_LAYERS:
            raise ValueError("the VAE's config states more layers, or fewer stages, than such a VAE has")
        patch = config.get("patch_size") or 1
        colors = _COLORS * patch**2
        if {config.get("in_channels", _COLORS), config.get("out_channels", _COLORS)} != {colors}:
            raise ValueError("the VAE's config states other colors than its patches have")
        return cls(config["base_dim"], mults, blocks, temporal, patch, colors, bool(config.get("is_residual")))


@dataclass(frozen=True, slots=True)
class _Map:
    """The shape of what a layer takes or gives."""

    channels: int
    frames: int
    height: int
    width: int

    @property
    def frame(self) -> int:
        return self.channels * self.height * self.width

    @property
    def size(self) -> int:
        return self.frames * self.frame

    def padded(self, frames: int, pixels: int) -> int:
        """Numbers of it with so many frames and pixels more."""
        return self.channels * (self.frames + frames) * (self.height + pixels) * (self.width + pixels)


class _Walk:
    """The numbers that are held at once, while layers are walked through."""

    def __init__(self, outside: int) -> None:
        """
        Args:
            outside: numbers that are held all the time, such as the clip.
        """
        self._outside, self._peak, self._parameters = outside, 0, 0
        self._kept: list[tuple[int, int]] = []
        """Frames and numbers that each convolution keeps for the next chunk."""
        self._all_kept, self._next, self._chunk = 0, 0, -1

    def begin_chunk(self) -> None:
        self._next, self._chunk = 0, self._chunk + 1

    def take(self, numbers: int) -> None:
        """So many numbers are held at this moment, beside what is always there."""
        self._peak = max(self._peak, self._outside + self._all_kept + numbers)

    def result(self) -> HalfOfVAE:
        return HalfOfVAE(self._parameters, self._peak)

    def add_conv(self, channels: int, channels_out: int, cells: int) -> None:
        """The parameters of a convolution; each layer is met once a chunk, and counted in the first."""
        self._parameters += (cells * channels * channels_out + channels_out) if self._chunk in (-1, 0) else 0

    def norm(self, x: _Map, beside: int = 0) -> None:
        """RMS norm and SiLU: scaling takes two more tensors of the input's size for a moment."""
        self._parameters += x.channels * (self._chunk == 0)
        self.take(beside + 4 * x.size)

    def conv(self, x: _Map, channels_out: int, beside: int = 0) -> _Map:
        """A causal convolution of 3x3x3, its input behind the frames kept of the chunk before, then padded."""
        self.add_conv(x.channels, channels_out, 27)
        live, before = beside + x.size, self._kept_before()
        kept, copied = min(_KEPT, x.frames), min(_KEPT, x.frames) * x.frame
        if kept < _KEPT and before:
            self.take(live + copied + _KEPT * x.frame)
            kept, copied = _KEPT, _KEPT * x.frame
        live += copied
        joined = (before + x.frames) * x.frame if before else 0
        padded = x.padded(2, 2)  # in time by what is missing of two frames
        self.take(live + joined + padded)
        out = _Map(channels_out, x.frames, x.height, x.width)
        self.take(live + padded + out.size)
        self._keep(kept, copied)
        return out

    def residual(self, x: _Map, channels_out: int, beside: int = 0) -> _Map:
        """`WanResidualBlock`."""
        beside += x.size
        if channels_out != x.channels:
            self.add_conv(x.channels, channels_out, 1)
            shortcut = channels_out * x.frames * x.height * x.width
            self.take(beside + x.size + shortcut)
            beside += shortcut
        self.norm(x, beside - x.size)
        y = self.conv(x, channels_out, beside)
        self.norm(y, beside)
        y = self.conv(y, channels_out, beside)
        self.take(beside + 2 * y.size)
        return y

    def middle(self, x: _Map) -> _Map:
        """`WanMidBlock`, without the moment of its attention."""
        x = self.residual(x, x.channels)
        self._parameters += x.channels * (self._chunk == 0)
        self.add_conv(x.channels, 3 * x.channels, 1)
        self.add_conv(x.channels, x.channels, 1)
        return self.residual(x, x.channels)

    def downsample(self, x: _Map, *, temporal: bool, beside: int) -> _Map:
        """`WanResample` to half the size, and to half the frames."""
        self.add_conv(x.channels, x.channels, 9)
        copied = x.size if x.frames > 1 else 0  # frames before channels
        padded = x.padded(0, 1)
        out = _Map(x.channels, x.frames, x.height // 2, x.width // 2)
        self.take(beside + x.size + copied + padded + out.size)
        if not temporal:
            return out
        self.add_conv(x.channels, x.channels, 3)
        is_first = self._kept_before() == 0
        if is_first:
            self.take(beside + x.size + out.size + out.size)
            self._keep(out.frames, out.size)
            return out
        joined = out.size + out.frame
        half = _Map(out.channels, out.frames // 2, out.height, out.width)
        self.take(beside + x.size + out.size + out.frame + 2 * joined + half.size)
        self._keep(1, out.frame)
        return half

    def upsample(self, x: _Map, channels_out: int, *, beside: int, temporal: bool, is_first: bool) -> _Map:
        """`WanResample` to twice the size, and to twice the frames but for the first chunk."""
        beside += x.size
        self.add_conv(x.channels, channels_out, 9)
        frames, copied = x.frames, x.size if x.frames > 1 else 0
        if temporal:
            self.add_conv(x.channels, 2 * x.channels, 3)
            before = self._kept_before()
            if is_first:
                self._keep(0, 0)
            else:
                self.take(beside + 3 * x.size)
                joined = (before + x.frames) * x.frame if before else 0
                padded = (_KEPT + x.frames) * x.frame
                self.take(beside + 2 * x.frame + joined + padded)
                self.take(beside + 2 * x.frame + padded + 2 * x.size)
                frames, copied = 2 * x.frames, 2 * x.size
                self.take(beside + 2 * x.frame + 2 * copied)  # its two halves are put side by side, then in turn
                self._keep(_KEPT, _KEPT * x.frame)
        large = _Map(x.channels, frames, 2 * x.height, 2 * x.width)
        out = _Map(channels_out, frames, large.height, large.width)
        self.take(beside + copied + large.size + out.size)
        return out

    def _kept_before(self) -> int:
        return self._kept[self._next][0] if self._next < len(self._kept) else 0

    def _keep(self, frames: int, numbers: int) -> None:
        if self._next < len(self._kept):
            self._all_kept -= self._kept[self._next][1]
            self._kept[self._next] = (frames, numbers)
        else:
            self._kept.append((frames, numbers))
        self._all_kept += numbers
        self._next += 1

"""The worldlet's autoencoder: a small `AutoencoderKLWan`, and its training on clips of scenes.

Training runs a forward over the whole sequence, equal to the stock chunked one without its caches.

Axes:  B clip   C channel   T frame, latent or video   H, W row, column.  Pictures are in [-1, 1].
"""

# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# This file reaches into diffusers' layers, and torch types every part of a module as Tensor | Module.

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from numpy.random import Generator
from safetensors.torch import load_file
from torch import Tensor, nn

from ....pipeline.errors import WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.progress import Progress
from ..scenes.physics import SIZE, VIDEO_FRAMES
from .clips import Clips
from .optim import Average, CpuBudget, MuonAdamW, save_training

Z_DIM = 16
_CROP = 32


def new_vae(base_dim: int = 8) -> AutoencoderKLWan:
    """A fresh autoencoder that treats a clip as single pictures: time kernels start as identities."""
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 4, 8],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, :2] = 0.0
        for module in vae.modules():
            if isinstance(module, WanResample) and hasattr(module, "time_conv"):
                weight = module.time_conv.weight
                identity = torch.eye(weight.shape[1])
                weight[:, :, 2, 0, 0] = identity.repeat(weight.shape[0] // weight.shape[1], 1)
                module.time_conv.bias.zero_()
    return vae


def encode_whole(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean and log-variance of the latents, (B, 2*16, T, H/8, W/8), from video (B, 3, 1+4k, H, W).

    Equal to the stock `_encode`, which walks chunks of four frames with caches. Calling `vae.encoder`
    on the whole clip is *not* equal: without its caches it does not halve time.
    """
    encoder = vae.encoder
    x = _conv(encoder.conv_in, video)
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else _residual(layer, x)
    x = _middle(encoder.mid_block, x)
    x = _conv(encoder.conv_out, F.silu(encoder.norm_out(x)))
    return _conv(vae.quant_conv, x)


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video (B, 3, 1+4(T-1), H, W) from raw latents (B, 16, T, H/8, W/8), not clamped."""
    decoder = vae.decoder
    x = _conv(decoder.conv_in, _conv(vae.post_quant_conv, latents))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x = _residual(layer, x)
        if block.upsamplers is not None:
            x = _up(block.upsamplers[0], x)
    return _conv(decoder.conv_out, F.silu(decoder.norm_out(x)))


def _conv(conv: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(conv, WanCausalConv3d):
        return conv(x)
    if x.shape[2] == 1:  # the causal padding is zero: only the last temporal tap sees the picture
        pad = (conv._padding[2], conv._padding[0])
        return F.conv2d(x.squeeze(2), conv.weight[:, :, -1], conv.bias, padding=pad).unsqueeze(2)
    return conv(x)


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    h = _conv(block.conv1, F.silu(block.norm1(x)))
    h = _conv(block.conv2, F.silu(block.norm2(h)))
    return h + _conv(block.conv_shortcut, x)


def _middle(block: nn.Module, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    return _residual(block.resnets[1], block.attentions[0](x))


def _by_frame(layer: nn.Module, x: Tensor) -> Tensor:
    batch, _, frames = x.shape[:3]
    x = layer(x.transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (batch, frames)).transpose(1, 2)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    x = _by_frame(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def _up(layer: WanResample, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = layer.time_conv(x[:, :, 1:])  # frame 0 is doubled by nothing and seen by nothing
        later = later.unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)
        x = torch.cat([x[:, :, :1], later], dim=2)
    return _by_frame(layer.resample, x)


def to_video(frames: np.ndarray) -> Tensor:
    """Pictures (B, T, H, W, 3) uint8 to video (B, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _batch(clips: Clips, rng: Generator, count: int, frames: int, side: int) -> tuple[Tensor, Tensor]:
    """`count` windows of `frames` x `side` x `side` around something that moves, and its movers' masks."""
    videos, masks = [], []
    for _ in range(count):
        number = int(rng.integers(len(clips)))
        start = int(rng.integers(VIDEO_FRAMES - frames + 1))
        window = slice(start, start + frames)
        mover = int(rng.integers(len(clips.facts[number]["layout"]["movers"])))
        x, y = clips.states[number, start + int(rng.integers(frames)), mover, :2] + rng.uniform(-9, 9, 2)
        left, top = (int(np.clip(round(c - side / 2), 0, SIZE - side)) for c in (x, y))
        area = (..., slice(top, top + side), slice(left, left + side))
        videos.append(clips.frames[number, window][(*area, slice(None))])
        masks.append(clips.masks(number, window)[area])
    return to_video(np.stack(videos)), torch.from_numpy(np.stack(masks))


def _loss(vae: AutoencoderKLWan, video: Tensor, masks: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted reconstruction loss with a term for each mover's colour, and the plain squared error of the picture.

    Args:
        video: (B, 3, T, H, W) in [-1, 1]; masks: (B, movers, T, H, W), 0 to 1.
    """
    mean, log_variance = encode_whole(vae, video).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    out = decode_whole(vae, latents)
    # The tint is most of a picture: its median stands for "nothing here".
    tint = video.flatten(2).median(dim=2).values[:, :, None, None, None]
    thing = ((video - tint).abs().amax(dim=1, keepdim=True) > 0.15).float()
    mover = masks.amax(dim=1, keepdim=True)
    moved = torch.zeros_like(mover)
    if mover.shape[2] > 1:
        moved[:, :, 1:] = (masks[:, :, 1:] - masks[:, :, :-1]).abs().amax(dim=1, keepdim=True)
    weight = 1 + 3 * thing + 8 * mover + 4 * moved
    error = out - video
    picture = (weight * (error.abs() + 2 * error.square())).sum() / (3 * weight.sum())
    # Mean colour over each mover, per frame: it may blur, but must not change its colour class.
    shift = torch.einsum("bmthw,bcthw->bmct", masks, error) / masks.sum(dim=(3, 4)).clamp_min(4.0)[:, :, None]
    is_present = (masks.sum(dim=(3, 4)) > 0).float()[:, :, None]
    color = (shift.abs() * is_present).sum() / (3 * is_present.sum()).clamp_min(1.0)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return picture + 0.3 * color + kl_weight * kl, error.detach().square().mean()


def train_vae(
    out: Path,
    clips: Clips,
    *,
    seconds: float,
    seed: int = 0,
    base_dim: int = 8,
    lr: float = 1.5e-2,
    picture_share: float = 0.25,
    full_share: float = 0.15,
    start: Path | None = None,
    save_every_s: float = 60.0,
    progress: Progress | None = None,
) -> AutoencoderKLWan:
    """Train for `seconds` of CPU time: pictures first, then 9- and 17-frame crops, at last whole clips.

    Saves to `out` every `save_every_s`, and goes on from there when called again.

    Args:
        start: the `vae/` folder of a trained world to begin with, instead of from nothing.
    """
    progress = progress or Progress.to_logger()
    torch.manual_seed(seed)
    if start is None:
        vae = new_vae(base_dim)
    else:
        vae = load_pretrained(AutoencoderKLWan, start, error=WorldModelError, what="VAE to start from")
    vae.float().train()
    optimiser, average, budget = MuonAdamW(vae, lr=lr), Average(vae, 0.995), CpuBudget(seconds)
    step, saved_s = 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    if (out / "progress.json").exists():
        state = json.loads((out / "progress.json").read_text())
        vae.load_state_dict(load_file(out / "last.safetensors"))
        average.updates = step = int(state["step"])
        average.values = list(load_file(out / "average.safetensors").values())
        budget, saved_s = CpuBudget(seconds, already_s=state["elapsed_s"]), state["elapsed_s"]
    rng = np.random.default_rng([seed, step])
    while budget.done < 1:
        if budget.done < picture_share:
            frames, side, count = (1, _CROP, 32) if rng.random() < 0.7 else (1, SIZE, 10)
        elif budget.done < 1 - full_share:
            frames, side, count = (9, _CROP, 6) if rng.random() < 0.6 else (17, _CROP, 4)
        else:
            frames, side, count = (9, SIZE, 2) if rng.random() < 0.7 else (17, _CROP, 4)
        video, masks = _batch(clips, rng, count, frames, side)
        video = video.contiguous(memory_format=torch.channels_last_3d)
        loss, squared = _loss(vae, video, masks, kl_weight=3e-4)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 5.0)
        optimiser.step(budget.scale())
        average.update(vae.parameters())
        step += 1
        if step % 50 == 0:
            psnr = 10 * torch.log10(4 / squared).item()
            progress.say(
                f"vae {budget.elapsed_s:.0f} s step {step} frames {frames} loss {loss.item():.4f} psnr {psnr:.1f}"
            )
        if budget.elapsed_s - saved_s > save_every_s or budget.done >= 1:
            saved_s = budget.elapsed_s
            save_training(out, vae, average, step=step, elapsed_s=saved_s)
    average.copy_to(vae)
    return vae.eval()

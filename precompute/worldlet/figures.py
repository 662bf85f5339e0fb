"""What a trained worldlet is worth: rollouts of unseen scenes, read by a fixed parser, against the truth.

Lives here: loading a saved world, the lean rollout loop, the ball parser, the figures and the picture
of them. Elsewhere: training (build.py). Every figure stands beside its floor (a copy of frame 0) and its
ceiling (the true clip through the autoencoder).

    python -m theworld.precompute.worldlet.figures WEIGHTS SCRATCH [SHEET.png]
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .buckets import BINS, COLORS, SIZE, bin_of
from .clips import Clips, load_clips
from .dynamics import RHO, SIGMA_MAX, SIGMA_MIN, lean_forward, network_input
from .encode import encode_clips
from .vae import Z_DIM, decode_whole

_READ_RADIUS = 6.0
_NEAR = 0.45  # distance in RGB, of at most sqrt(3), at which a pixel no longer counts as the ball


@dataclass(frozen=True, kw_only=True)
class World:
    """A saved worldlet's parts, in fp32."""

    vae: AutoencoderKLWan
    transformer: CosmosTransformer3DModel

    def standardise(self, raw: Tensor) -> Tensor:
        """Raw latents to zero mean and unit variance per channel."""
        return (raw - self._channels("latents_mean")) / self._channels("latents_std")

    def raw(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return standardised * self._channels("latents_std") + self._channels("latents_mean")

    def _channels(self, name: str) -> Tensor:
        return torch.tensor(self.vae.config[name]).view(1, Z_DIM, 1, 1, 1)


def load_world(folder: Path) -> World:
    """Open a folder of `vae/` and `transformer/` with the stock classes."""
    return World(
        vae=AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval(),
        transformer=CosmosTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval(),
    )


def karras_sigmas(denoise_steps: int) -> Tensor:
    """The pipeline's noise levels: N values from 80 to 0.002, and the last one again."""
    share = torch.linspace(0, 1, denoise_steps, dtype=torch.float64)
    sigmas = (SIGMA_MAX ** (1 / RHO) + share * (SIGMA_MIN ** (1 / RHO) - SIGMA_MAX ** (1 / RHO))) ** RHO
    return torch.cat([sigmas, sigmas[-1:]]).float()


@torch.no_grad()
def roll_out(transformer: CosmosTransformer3DModel, first: Tensor, noise: Tensor, *, denoise_steps: int = 10) -> Tensor:
    """Standardised latents of the future of `first`, as the stock pipeline makes them.

    Args:
        first: standardised latents of frame 0, (B, 16, 1, H, W).
        noise: unit normal, (B, 16, T, H, W); one draw per sample.
    """
    clean = first.expand_as(noise)
    sigmas = karras_sigmas(denoise_steps)
    x = noise * SIGMA_MAX
    for sigma, following in itertools.pairwise(sigmas):
        if sigma == following:  # the stock loop's last evaluation changes nothing
            break
        t = (sigma / (sigma + 1)).expand(len(x))
        scaled = x * (1 - t[0])
        predicted = scaled - t[0] * lean_forward(transformer, *network_input(scaled, clean, t))
        x = x + (following - sigma) * (x - predicted) / sigma
    return torch.cat([first, x[:, :, 1:]], dim=2)


def sample_noise(count: int, latent_frames: int, side: int, *, seed: int = 0) -> Tensor:
    """One draw per sample, each from its own seed, so that a sample does not depend on its batch."""
    draws = [
        torch.randn(1, Z_DIM, latent_frames, side, side, generator=torch.Generator().manual_seed(seed + n))
        for n in range(count)
    ]
    return torch.cat(draws)


def find_ball(frame: NDArray[np.float32], color: str) -> tuple[float, float, float]:
    """Centre x, y and strength of the blob of a colour in a picture (H, W, 3) with values 0 to 1.

    The strongest 5x5 window of near-coloured pixels, then their centroid around it. Strength is the
    window's mean nearness, 0 where nothing has the colour.
    """
    target = np.asarray(COLORS[color], dtype=np.float32) / 255
    near = np.clip(1 - np.linalg.norm(frame - target, axis=-1) / _NEAR, 0, 1)
    sums = np.pad(near, 3)[:, :].cumsum(0).cumsum(1)
    windows = sums[5:, 5:] - sums[:-5, 5:] - sums[5:, :-5] + sums[:-5, :-5]
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    rows, columns = np.mgrid[: near.shape[0], : near.shape[1]]
    inside = near * (np.hypot(rows - row, columns - column) <= _READ_RADIUS)
    total = float(inside.sum())
    if total < 1e-6:
        return SIZE / 2, SIZE / 2, 0.0
    return (
        float((inside * columns).sum() / total) + 0.5,
        float((inside * rows).sum() / total) + 0.5,
        float(windows.max()) / 25,
    )


def read_video(video: NDArray[np.float32], clips: Clips) -> dict[str, object]:
    """Read clips (N, T, 64, 64, 3) in 0 to 1 against the truth, at every fourth frame.

    Returns `landing` (share of right bins in the last frame), `color` (share whose ball keeps its colour
    class there), `error_px` (median ball distance per latent frame) and `within_3px` (in the last frame).
    """
    landed, kept, distances = [], [], []
    for number, clip in enumerate(video):
        color = str(clips.facts[number]["color"])
        found = [find_ball(frame, color) for frame in clip[::4]]
        truth = clips.balls[number, ::4]
        distances.append([np.hypot(x - tx, y - ty) for (x, y, _), (tx, ty) in zip(found, truth, strict=True)])
        landed.append(bin_of(found[-1][0]) == clips.facts[number]["answer"])
        strengths = {name: find_ball(clip[-1], name)[2] for name in COLORS}
        kept.append(max(strengths, key=lambda name: strengths[name]) == color)
    error = np.array(distances)
    return {
        "landing": round(float(np.mean(landed)), 4),
        "color": round(float(np.mean(kept)), 4),
        "within_3px": round(float((error[:, -1] < 3).mean()), 4),
        "error_px": [round(float(v), 2) for v in np.median(error, axis=0)],
    }


@torch.no_grad()
def decode_clips(world: World, standardised: Tensor, *, batch: int = 2) -> NDArray[np.float32]:
    """Pictures (N, frames, 64, 64, 3) in 0 to 1 of standardised latents."""
    parts = []
    for part in world.raw(standardised.float()).split(batch):
        video = decode_whole(world.vae, part.contiguous(memory_format=torch.channels_last_3d))
        parts.append((video.clamp(-1, 1).permute(0, 2, 3, 4, 1) + 1).numpy() / 2)
    return np.concatenate(parts)


def measure_world(
    world: World, clips: Clips, *, denoise_steps: int = 10, seed: int = 0, sheet: Path | None = None
) -> dict[str, object]:
    """All figures of a world on unseen clips; `sheet` also gets true clips above predicted ones."""
    true = world.standardise(encode_clips(world.vae, clips))
    noise = sample_noise(len(clips), true.shape[2], true.shape[3], seed=seed)
    rolled = torch.cat(
        [
            roll_out(world.transformer, first, draw, denoise_steps=denoise_steps)
            for first, draw in zip(true[:, :, :1].split(32), noise.split(32), strict=True)
        ]
    )
    copied = true[:, :, :1].expand_as(true)
    videos = {"rollout": decode_clips(world, rolled), "vae": decode_clips(world, true)}
    pictures = np.asarray(clips.frames, dtype=np.float32) / 255
    squared = (videos["vae"] - pictures) ** 2
    figures: dict[str, object] = {
        "clips": len(clips),
        "denoise_steps": denoise_steps,
        "rollout": read_video(videos["rollout"], clips),
        "vae_ceiling": read_video(videos["vae"], clips),
        "copy_frame_0": read_video(np.repeat(pictures[:, :1], pictures.shape[1], axis=1), clips),
        "parser_on_true_frames": read_video(pictures, clips),
        "latent_mse": {
            "rollout": round(float((rolled - true)[:, :, 1:].square().mean()), 4),
            "copy_frame_0": round(float((copied - true)[:, :, 1:].square().mean()), 4),
        },
        "vae_psnr_db": {
            "first_frame": round(float(-10 * np.log10(squared[:, 0].mean())), 2),
            "last_frame": round(float(-10 * np.log10(squared[:, -1].mean())), 2),
        },
    }
    by_ramps: dict[str, float] = {}
    for count in (1, 2, 3):
        chosen = [n for n, fact in enumerate(clips.facts) if fact["ramps"] == count]
        if chosen:
            part = Clips(frames=clips.frames[:0], balls=clips.balls[chosen], facts=[clips.facts[n] for n in chosen])
            by_ramps[str(count)] = float(read_video(videos["rollout"][chosen], part)["landing"])  # type: ignore[arg-type]
    figures["rollout_landing_by_ramps"] = by_ramps
    if sheet is not None:
        draw_sheet(sheet, pictures[:8], videos["rollout"][:8])
    return figures


def draw_sheet(path: Path, true: NDArray[np.float32], predicted: NDArray[np.float32], *, zoom: int = 2) -> None:
    """A picture of clips, every fourth frame, true above predicted."""
    rows = [np.concatenate(list(clip[::4]), axis=1) for pair in zip(true, predicted, strict=True) for clip in pair]
    image = Image.fromarray(np.rint(np.concatenate(rows) * 255).astype(np.uint8))
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main(arguments: list[str]) -> None:
    """Print the figures of the world in a folder on 250 test scenes."""
    weights, scratch = Path(arguments[0]), Path(arguments[1])
    sheet = Path(arguments[2]) if len(arguments) > 2 else None
    clips = load_clips(scratch, "test", 250)
    print(json.dumps(measure_world(load_world(weights), clips, sheet=sheet), indent=2))
    print("chance:", 1 / len(BINS), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])

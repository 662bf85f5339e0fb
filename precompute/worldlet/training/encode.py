"""Latents of the training clips: made once per chunk, kept as raw fp16 arrays, standardised on loading."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ..scenes.scenes import FAMILIES
from .clips import CHUNK, Clips, chunk_name, load_chunk, save_array
from .vae import Z_DIM, encode_whole, to_video


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, clips: Clips, *, batch: int = 2) -> Tensor:
    """Raw latents (the posterior's mode) of whole clips, (N, 16, 9, 8, 8) fp32."""
    parts = []
    for start in range(0, len(clips), batch):
        video = to_video(np.asarray(clips.frames[start : start + batch]))
        video = video.contiguous(memory_format=torch.channels_last_3d)
        parts.append(encode_whole(vae, video)[:, :Z_DIM].contiguous())
    return torch.cat(parts)


def encode_chunk(
    vae: AutoencoderKLWan,
    clips_folder: Path,
    folder: Path,
    split: str,
    chunk: int,
    *,
    seed: int = 0,
    size: int = CHUNK,
    families: Sequence[str] = tuple(FAMILIES),
) -> Path:
    """Write the raw latents of one chunk as fp16, unless they are there; returns the file."""
    path = folder / f"{chunk_name(split, chunk, seed=seed, size=size, families=families)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        raw = encode_clips(vae, load_chunk(clips_folder, split, chunk, seed=seed, size=size, families=families))
        save_array(path, raw.numpy().astype(np.float16))
    return path


def load_latents(files: Sequence[Path], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Standardised latents of the files, (N, 16, 9, 8, 8) fp16, in the order given."""
    shift, scale = (np.asarray(v, dtype=np.float32).reshape(1, -1, 1, 1, 1) for v in (mean, std))
    parts = [(np.load(file, allow_pickle=False).astype(np.float32) - shift) / scale for file in files]
    return torch.from_numpy(np.concatenate(parts).astype(np.float16))


def measure_statistics(files: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel over all positions of the files' raw latents."""
    raw = np.concatenate([np.load(file, allow_pickle=False) for file in files]).astype(np.float64)
    axes = (0, 2, 3, 4)
    return raw.mean(axis=axes).tolist(), raw.std(axis=axes).tolist()

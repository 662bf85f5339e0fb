"""Latents of the training clips: made once per chunk, kept as raw fp16 arrays, standardised on loading."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ....pipeline.files.atomic import replace
from .clips import Chunk, Clips, load_chunk, save_array
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


def encode_chunk(vae: AutoencoderKLWan, clips_folder: Path, folder: Path, chunk: Chunk) -> Path:
    """Write the raw latents of one chunk as fp16, unless they are there; returns the file."""
    path = folder / f"{chunk.name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        raw = encode_clips(vae, load_chunk(clips_folder, chunk))
        save_array(path, raw.numpy().astype(np.float16))
    return path


def forget_latents_of_another(folder: Path, vae: AutoencoderKLWan) -> int:
    """Remove latents that another autoencoder made, such as this one before it was trained on; returns how many files.

    The folder notes whose they are. Where it does not, as in builds of earlier versions, they count as this one's.
    """
    made_by = hashlib.sha256()
    for name, weights in sorted(vae.state_dict().items()):
        made_by.update(name.encode() + weights.detach().float().contiguous().numpy().tobytes())
    digest = made_by.hexdigest().encode()
    note, stale = folder / "vae.sha256", list[Path]()
    if note.exists() and note.read_bytes() != digest:
        stale = list(folder.glob("*.npy"))
        for file in stale:
            file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder, note, digest)
    return len(stale)


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

"""Our Cosmos 3 engine against the stock pipeline: weights and operations of Edge and Nano, and miniatures in turns.

python -m benchmarks.cosmos3                 weights that stay, and operations of one image, counted without weights
python -m benchmarks.cosmos3 --rounds 5      and CPU seconds an image of miniature random weights, in turns

The pipeline takes one sample a call, reads the prompt anew in every step, and encodes a whole clip of which it uses the
first frame. Ours reads the prompt once for a job, takes batches, and encodes one frame.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.miniatures.cosmos3 import CHANNELS, EDGE, mini_cosmos3, mini_pipeline, mini_unipc
from tests.miniatures.world_model import mini_vae22
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_clip import Clip
from theworld.precompute.worlds.cosmos.cosmos3_forward import Beside, GenerationTower, SamePrompts
from theworld.precompute.worlds.cosmos.cosmos3_text import UnderstandingTower, clip_text, token_ids

CONFIGS: dict[str, dict[str, Any]] = {
    "Edge": {
        **EDGE,
        "hidden_size": 2048,
        "intermediate_size": 9216,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "vocab_size": 131072,
        "rope_theta": 1e8,
        "action_gen": True,
        "action_dim": 64,
    },
    "Nano": {"action_gen": True, "action_dim": 64, "sound_gen": True, "sound_dim": 64},
}
"""What differs from the defaults of the class, as NVIDIA's published configs have it."""
VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": CHANNELS,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * CHANNELS,
    "latents_std": [1.0] * CHANNELS,
}
"""Of Wan 2.2's autoencoder, which both use."""
TEXT_TOKENS = 80
"""Of the empty prompt with what is written around it."""
CLIP, DENOISE_STEPS = Clip(256, 256, 53, 24.0), 20
SMALL, BATCH = Clip(64, 64, 33, 24.0), 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| | weights of the transformer | that stay | share | operations of an image: stock | ours | x |")
    print("|---|---|---|---|---|---|---|")
    with torch.device("meta"), torch.inference_mode():
        vae = AutoencoderKLWan(**VAE)
        clip, frame = (torch.zeros(1, 3, frames, CLIP.height, CLIP.width) for frames in (CLIP.frames, 1))
        encode = [_flops(lambda: vae.encode(clip)), _flops(lambda: vae.encode(frame))]
        for name, config in CONFIGS.items():
            transformer = Cosmos3OmniTransformer(**config)
            whole = _numbers(transformer)
            step = [_flops(way) for way in _forwards(transformer)]
            kept = _numbers(GenerationTower(transformer, temporal_stride=4))
            stock, ours = (one + DENOISE_STEPS * many for one, many in zip(encode, step, strict=True))
            print(
                f"| {name} | {whole / 1e9:.2f} B | {kept / 1e9:.2f} B | {kept / whole:.1%} | "
                f"{stock / 1e12:.0f} TFLOP | {ours / 1e12:.0f} TFLOP | {stock / ours:.2f} |"
            )
    if options.rounds:
        _race(options.rounds)


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(way: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()


def _forwards(transformer: Cosmos3OmniTransformer) -> list[Callable[[], object]]:
    """A forward of the stock network and one of ours, for one image: 13 more frames than the first are noisy."""
    frames, side = 1 + (CLIP.frames - 1) // 4, CLIP.height // 16
    per_frame = (side // 2) ** 2
    tokens, noisy = frames * per_frame, (frames - 1) * per_frame
    latents = torch.zeros(1, CHANNELS, frames, side, side)
    heads: Any = transformer.layers[0].self_attn
    kept = torch.zeros(len(transformer.layers), 1, TEXT_TOKENS, heads.num_key_value_heads, heads.head_dim)
    rope = torch.zeros(1, tokens, heads.head_dim)
    tower, beside = (
        GenerationTower(transformer, temporal_stride=4),
        Beside((rope, rope), (SamePrompts(None, kept, kept),)),
    )
    transformer.rotary_emb = _Unturned(heads.head_dim)

    def stock() -> object:
        return transformer(
            input_ids=torch.zeros(TEXT_TOKENS, dtype=torch.long),
            text_indexes=torch.arange(TEXT_TOKENS),
            position_ids=torch.zeros(3, TEXT_TOKENS + tokens),
            und_len=TEXT_TOKENS,
            sequence_length=TEXT_TOKENS + tokens,
            vision_tokens=[latents],
            vision_token_shapes=[(frames, side // 2, side // 2)],
            vision_sequence_indexes=torch.arange(TEXT_TOKENS, TEXT_TOKENS + tokens),
            vision_mse_loss_indexes=torch.arange(TEXT_TOKENS + per_frame, TEXT_TOKENS + tokens),
            vision_timesteps=torch.zeros(noisy),
            vision_noisy_frame_indexes=[torch.arange(1, frames)],
        )

    return [stock, lambda: tower(latents, 500.0, 1, beside)]


class _Unturned(torch.nn.Module):
    """In place of the positions, which torch cannot compute on the meta device; a few operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, position_ids: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        turn = torch.zeros(1, position_ids.shape[-1], self.width)
        return turn, turn


def _race(rounds: int) -> None:
    transformer = mini_cosmos3(**EDGE)
    pipeline = mini_pipeline(transformer)
    ids = token_ids(pipeline.text_tokenizer, clip_text("", SMALL, negative=False), use_system_prompt=True)
    prompts = [UnderstandingTower(transformer)(torch.tensor(ids))]
    world = Cosmos3World(mini_vae22(), transformer, mini_unipc())
    images = torch.randint(0, 256, (BATCH, 3, 64, 64), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    shape = (1, CHANNELS, 1 + (SMALL.frames - 1) // 4, 4, 4)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(BATCH)])

    def stock() -> Tensor:
        size = {"height": SMALL.height, "width": SMALL.width, "num_frames": SMALL.frames, "fps": SMALL.fps}
        made = [
            pipeline(
                "",
                image=image,
                **size,
                num_inference_steps=DENOISE_STEPS,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(number),
                output_type="latent",
            ).video
            for number, image in enumerate(images)
        ]
        return torch.cat(made)

    def ours(batch: int) -> Tensor:
        made = [
            world.denoise(
                world.encode(images[start : start + batch]),
                noise[start : start + batch],
                denoise_steps=DENOISE_STEPS,
                prompts=prompts,
            )
            for start in range(0, BATCH, batch)
        ]
        return torch.cat(made)

    ways = {
        "stock pipeline, one image a call": stock,
        "ours, one image a call": lambda: ours(1),
        f"ours, batches of {BATCH}": lambda: ours(BATCH),
    }
    print(f"\nlargest difference: {(stock() - ours(BATCH)).abs().max():.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    floor = statistics.median(seconds["stock pipeline, one image a call"])
    print("\n| way | CPU s an image (median) | x stock |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values) / BATCH:.3f} | {floor / statistics.median(values):.1f} |")


if __name__ == "__main__":
    main()

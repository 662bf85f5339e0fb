"""Our AnyFlow FAR engine against the stock pipeline: CPU seconds of a clip, in turns, and what is kept of the past.

python -m benchmarks.anyflow --rounds 3

The pipeline computes keys and values of the whole past anew after each chunk, and those of the text in each forward.
Ours keeps those that cannot change any more.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from diffusers import AnyFlowFARPipeline

from tests.miniatures.anyflow import mini_anyflow_scheduler, mini_anyflow_transformer
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae
from theworld.precompute.worlds.anyflow.chunks import CHUNK_FRAMES, chunk_sizes, chunks_flops
from theworld.precompute.worlds.anyflow.engine import AnyFlowWorld

SIZE, DENOISE_STEPS, STEPS = 224, 4, (9, 18)
NETWORK = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 4, "ffn_dim": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    transformer = mini_anyflow_transformer(**NETWORK)
    pipeline = AnyFlowFARPipeline(
        tokenizer=None, text_encoder=None, vae=mini_vae(), transformer=transformer, scheduler=mini_anyflow_scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    world = AnyFlowWorld(mini_vae(), transformer, mini_anyflow_scheduler(), zero_keys=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator)
    text = torch.randn(1, 512, TEXT_WIDTH, generator=generator)
    print("| steps | stock, CPU s | ours, CPU s | x | GFLOP of ours | largest difference |\n|---|---|---|---|---|---|")
    for steps in STEPS:
        sizes = chunk_sizes(1 + steps)
        noise = torch.randn(1, 16, 1 + steps, SIZE // 8, SIZE // 8, generator=generator)

        def stock(sizes: list[int] = sizes, noise: torch.Tensor = noise) -> torch.Tensor:
            return pipeline(
                video=image[:, None],
                height=SIZE,
                width=SIZE,
                num_frames=1 + 4 * (sum(sizes) - 1),
                chunk_partition=sizes,
                num_inference_steps=DENOISE_STEPS,
                latents=noise,
                prompt_embeds=text,
                output_type="latent",
            ).frames

        def ours(noise: torch.Tensor = noise) -> torch.Tensor:
            first, later = world.encode(image * 2 - 1), noise[:, :, 1:].split(CHUNK_FRAMES, dim=2)
            return torch.cat([first, *world.predict_chunks([first], later, denoise_steps=DENOISE_STEPS, text=text)], 2)

        difference = (stock() - ours()).abs().max()
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        for _ in range(rounds):
            for name, way in (("stock", stock), ("ours", ours)):
                started = time.process_time()
                way()
                seconds[name].append(time.process_time() - started)
        a, b = (statistics.median(values) for values in seconds.values())
        work = chunks_flops(transformer.config, 1, 1 + steps, SIZE // 8, SIZE // 8, DENOISE_STEPS) / 1e9
        print(f"| {steps} | {a:.1f} | {b:.1f} | {a / b:.1f} | {work:.0f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()

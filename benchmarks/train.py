"""One update, the questions of an image packed behind one rollout, against a row a question: time and peak memory.

    python -m benchmarks.train [--images 8] [--questions 5] [--rounds 7]
    python -m benchmarks.train --only live      # from the store against rollouts in the loop: live.py
    python -m benchmarks.train --only ranking   # all choices of all questions of an image in one row, or a row each

Each way runs the same questions forward and backward through the same model (LoRA on all linear layers, reader
included) in turn. `plain` is what transformers' own loss does: a row a question, logits at every position. Peak memory
is of a process that does nothing else, above what it held before its first update; Linux only.
Settings: the embedded language model with 9 latent frames of 8x8 (36 world tokens), and a random Gemma-2 of the same
depth, four times as wide, with 32,000 words and 9 latent frames of 28x28 (1,764 world tokens in patches of 2).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from theworld.train.batches import Example, pack, pad_rows
from theworld.train.lm import LanguageModel, Weights, add_lora, embedding_rms, find_weights, load_language_model
from theworld.train.model import IGNORED, TheWorld
from theworld.train.tokens import TokenLayout, WorldReader

from . import live

WAYS = ("plain", "labels", "packed")
"""Every position's logits; logits at labels alone, a row a question; the same with the questions of an image packed."""
PROMPT, ANSWER, STEPS, CHOICES = 14, 2, 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--settings", default="worldlet,wide")
    parser.add_argument("--only", choices=("packing", "ranking", "live"))
    parser.add_argument("--updates", type=int, default=8, help="of a training with rollouts in the loop")
    options = parser.parse_args()
    if options.only in (None, "live"):
        live.main(argparse.Namespace(updates=options.updates, rounds=min(options.rounds, 3)))
    for setting in options.settings.split(",") if options.only in (None, "ranking") else ():
        rank(setting, *((options.images, options.questions) if setting == "worldlet" else (1, 2)), options.rounds)
    if options.only in ("live", "ranking"):
        return
    for setting in options.settings.split(","):
        images = options.images if setting == "worldlet" else min(options.images, 1)
        updates = updates_of(setting, images, options.questions)
        first = [update().item() for update in updates.values()]
        assert max(first) - min(first) < 1e-4, "the ways compute different losses"
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds if setting == "worldlet" else 2):
            for way, update in updates.items():
                started = time.perf_counter()
                update()
                seconds[way].append(time.perf_counter() - started)
        middle = {way: statistics.median(values) for way, values in seconds.items()}
        print(f"{setting}: {images} images x {options.questions} questions, {torch.get_num_threads()} thread(s)")
        for way in WAYS:
            memory = peak_of(setting, way, images, options.questions)
            ratio = middle["plain"] / middle[way]
            print(f"  {way:7} {1000 * middle[way]:9.1f} ms  {ratio:5.2f} x  {memory:8.1f} MiB", flush=True)


def rank(setting: str, images: int, questions: int, rounds: int) -> None:
    """Likelihoods of three choices a question, without gradients: CPU seconds of both ways in turn."""
    model, latents, rows = _ask(setting, images, questions * CHOICES)
    alone, packed = pad_rows([[e] for row in rows for e in row], 0), pad_rows(rows, 0)
    each = latents.repeat_interleave(questions * CHOICES, 0)
    ways = {
        "a row a choice": lambda: model.log_likelihood(**alone, latents=each),
        "packed": lambda: model.log_likelihood(**packed, latents=latents),
    }
    torch.testing.assert_close(*(way() for way in ways.values()), rtol=1e-4, atol=1e-3)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds if setting == "worldlet" else 1):
        for way, score in ways.items():
            started = time.process_time()
            score()
            seconds[way].append(time.process_time() - started)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"{setting}: {images} images x {questions} questions x {CHOICES} choices ranked, CPU time of one thread")
    for way, took in middle.items():
        print(f"  {way:14} {1000 * took:9.1f} ms  {middle['a row a choice'] / took:5.2f} x", flush=True)


def updates_of(setting: str, images: int, questions: int) -> dict[str, Callable[[], Tensor]]:
    """One update each way, on the same questions."""
    model, latents, rows = _ask(setting, images, questions)
    alone, packed = pad_rows([[e] for row in rows for e in row], 0), pad_rows(rows, 0)
    each = latents.repeat_interleave(questions, 0)

    def plain() -> Tensor:
        logits = model(alone["input_ids"], alone["attention_mask"], latents=each).logits
        world = logits.shape[1] - alone["labels"].shape[1]
        labels = nn.functional.pad(alone["labels"], (world, 0), value=IGNORED)[:, 1:]
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    losses = {
        "plain": plain,
        "labels": lambda: model(**alone, latents=each).loss,
        "packed": lambda: model(**packed, latents=latents).loss,
    }
    def update(loss: Callable[[], Tensor]) -> Tensor:
        model.zero_grad()
        value = loss()
        value.backward()
        return value

    return {way: lambda loss=loss: update(loss) for way, loss in losses.items()}


def _ask(setting: str, images: int, texts: int) -> tuple[TheWorld, Tensor, list[tuple[Example, ...]]]:
    """A model, rollouts, and so many texts about each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side, patch = (8, 4) if setting == "worldlet" else (28, 2)
    lm = _language_model(setting)
    reader = WorldReader(
        latent_shape=(16, side, side),
        hidden_size=lm.hidden_size,
        embedding_rms=embedding_rms(lm.model),
        layout=TokenLayout(name="patch", patch=patch),
    )
    model = TheWorld(add_lora(lm, rank=16, alpha=32, dropout=0.0).model, reader, num_world_steps=STEPS)
    latents = torch.randn(images, 16, 1 + STEPS, side, side)
    words = torch.randint(3, 300, (images, texts, PROMPT + ANSWER)).tolist()
    examples = [
        Example(f"{image:03d}", (1, *ids[:PROMPT]), tuple(ids[PROMPT:])) for image, of in enumerate(words) for ids in of
    ]
    return model, latents, pack(examples, texts)


def _language_model(setting: str) -> LanguageModel:
    if setting == "worldlet":
        return load_language_model(find_weights(None), device=torch.device("cpu"), dtype=torch.float32)
    config = Gemma2Config(
        vocab_size=32_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=128,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    return LanguageModel(model, None, Weights(Path(), "random", "sha256:0"))


def peak_of(setting: str, way: str, images: int, questions: int) -> float:
    """MiB that one update of a fresh process adds to what it held before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (setting, way, images, questions))


def _peak(setting: str, way: str, images: int, questions: int) -> float:
    update = updates_of(setting, images, questions)[way]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building the model left
    before = _resident("VmRSS")
    update()
    return max(0, _resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()

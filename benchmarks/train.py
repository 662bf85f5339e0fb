"""Training, its parts side by side: packing, loading, rollouts in the loop, ranking.

    python -m benchmarks.train                  # all of them, some minutes
    python -m benchmarks.train --only packing   # time and peak memory of an update, and the LM alone: updates.py
    python -m benchmarks.train --only loading   # from the store against everything in RAM, and waiting: updates.py
    python -m benchmarks.train --only live      # from the store against rollouts in the loop: live.py
    python -m benchmarks.train --only ranking   # all choices of all questions of an image in one row, or a row each

Settings (subjects.py): `worldlet`, the embedded language model with 36 world tokens; `wide` and `long`, random Gemma-2
of width 512 with 32,000 words, with 441 and 1,764 world tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from theworld.train.data.batches import pack, pad_rows

from . import live
from .subjects import SETTINGS, examples, rollouts, world_model
from .updates import measure_loading, measure_packing

CHOICES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="of an update; else the setting's own: 8 or 1")
    parser.add_argument("--questions", type=int, default=5, help="about an image")
    parser.add_argument("--rounds", type=int, help="turns of each way; else the setting's own: 7 or 3")
    parser.add_argument("--settings", help=f"of {', '.join(SETTINGS)}; else worldlet,wide, and worldlet,long to rank")
    parser.add_argument("--only", choices=("packing", "loading", "ranking", "live"))
    parser.add_argument("--updates", type=int, help="of a turn; else the setting's own, 8 with live rollouts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = {name: getattr(options, name) for name in ("images", "questions", "rounds", "updates")}
    for setting in (options.settings or "worldlet,wide").split(","):
        if options.only in (None, "packing"):
            measure_packing(setting, **size)
        if options.only in (None, "loading"):
            measure_loading(setting, **size)
    if options.only in (None, "live"):
        live.main(argparse.Namespace(updates=options.updates or 8, rounds=min(options.rounds or 3, 3)))
    for setting in (options.settings or "worldlet,long").split(",") if options.only in (None, "ranking") else ():
        images = options.images or SETTINGS[setting].images
        rank(setting, images, *((options.questions, options.rounds or 7) if setting == "worldlet" else (2, 1)))


def rank(name: str, images: int, questions: int, rounds: int) -> None:
    """Likelihoods of three choices a question, without gradients: CPU seconds of both ways in turn."""
    model = world_model(SETTINGS[name])[1]
    latents, texts = rollouts(SETTINGS[name], images), examples(images, questions * CHOICES)
    alone, packed = (pad_rows(pack(texts, most), 0) for most in (1, questions * CHOICES))
    each = latents.repeat_interleave(questions * CHOICES, 0)
    ways = {
        "a row a choice": lambda: model.log_likelihood(**alone, latents=each),
        "packed": lambda: model.log_likelihood(**packed, latents=latents),
    }
    torch.testing.assert_close(*(way() for way in ways.values()), rtol=1e-4, atol=1e-3)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, score in ways.items():
            started = time.process_time()
            score()
            seconds[way].append(time.process_time() - started)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    print(f"\n{name}: {images} images x {questions} questions x {CHOICES} choices ranked, CPU time of one thread")
    for way, took in middle.items():
        print(f"  {way:14} {1000 * took:9.1f} ms  {middle['a row a choice'] / took:5.2f} x", flush=True)


if __name__ == "__main__":
    main()

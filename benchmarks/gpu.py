"""One run on one GPU: does all of it work at real sizes, how fast, and in how much memory?

    python -m benchmarks.gpu                          # on a GPU: about 9 minutes, 10 GB of disk
    python -m benchmarks.gpu --only train,evaluate    # these, and what they need
    python -m benchmarks.gpu --tiny                   # on a CPU, at toy sizes: does the benchmark itself work?

The models have random weights and the configurations of Cosmos-Predict2-2B and Gemma-2-2b; nothing is downloaded. A row
is printed as soon as it is measured; the tables at the end go into benchmarks/README.md. Both are in --out, as gpu.json
and gpu.md. What fails is a row, and the run goes on. Each part has a share of --budget, and what it does not use goes
to the next; what does not fit is a row, too. The exit code is 1 where something failed.

    env       the device, versions, and two ceilings: products of matrices, a copy
    build     both models, saved as the Hub has them; seconds to hash and to load the world model
    parity    our engine against diffusers' pipeline, the same draws, in float32 and bfloat16
    rollout   images/s by size and batch, as a share of what products of matrices reach; memory beside its estimate
    variants  diffusers' forward, ours, with each attention, compiled; the encoder in other precisions
    job       `precompute` beside its plan and beside the bare engine; a run with nothing to do; --compile
    train     updates/s, and memory beside its estimate: the presets, flex and eager, packed or not, checkpointed or not
    evaluate  with the default batch and a small one: seconds, and memory beside its estimate
    decode    time of the autoencoder's decoder, as `cache preview` uses it, and memory beside its estimate
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .gpu_rows import Session
from .gpu_stages import evaluate, job, train
from .gpu_world import build, decode, env, parity, rollout, variants


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run."""

    measure: Callable[[Session], None]
    share: int
    """Of the budget, in percent; what a part does not use goes to the next ones."""
    needs: tuple[str, ...] = ()
    """Parts whose results it uses: they run before it, asked for or not."""


PARTS = {
    "env": Part(env, 3),
    "build": Part(build, 10),
    "parity": Part(parity, 8, ("build",)),
    "rollout": Part(rollout, 24, ("env", "build")),
    "variants": Part(variants, 15, ("build",)),
    "job": Part(job, 12, ("build",)),
    "train": Part(train, 20, ("job",)),
    "evaluate": Part(evaluate, 6, ("train",)),
    "decode": Part(decode, 2, ("build",)),
}
"""In the order in which they run."""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a CPU")
    parser.add_argument(
        "--budget",
        type=float,
        default=540.0,
        metavar="SECONDS",
        help="what would take longer is left out",
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help="with commas between them")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--scratch", type=Path, help="folder for weights and stores; removed at the end")
    options = parser.parse_args(words)
    asked = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--only: there is no part {unknown[0]!r}; they are {', '.join(PARTS)}")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("torch sees no GPU here, and a CPU would take hours. --tiny runs all parts at toy sizes")
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="theworld-gpu-", dir=options.scratch, ignore_cleanup_errors=True) as scratch:
        # hashes and speeds that are remembered of this machine would make its first start look fast
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "remembered")
        session = Session(
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            is_toy=options.tiny,
            budget_s=options.budget,
            out=options.out,
            scratch=Path(scratch),
            asked=frozenset(asked),
        )
        gc.freeze()  # what is imported: it need not be looked through before each row
        run_parts(session)
    print(f"\n{session.page.read_text()}")
    return 1 if session.failures else 0


def run_parts(session: Session, parts: Mapping[str, Part] = PARTS) -> None:
    """All parts that are asked for, and those that they need; none ends the run."""
    wanted = set(session.asked)
    for name in reversed(list(parts)):
        wanted |= set(parts[name].needs) if name in wanted else set()
    shares = sum(parts[name].share for name in wanted)
    for name, part in parts.items():
        if name not in wanted:
            continue
        session.end_s += session.budget_s * part.share / shares
        if missing := [need for need in part.needs if need not in session.done]:
            session.row(name, left_out=f"it needs the part {missing[0]}, which did not end well")
        elif session.affords(name, 1):
            with session.tried(name):
                part.measure(session)
                session.done.add(name)


if __name__ == "__main__":
    sys.exit(main())

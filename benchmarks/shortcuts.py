"""What the first frame of the benchmark's scenes gives away to who measures it, without any future.

    theworld scenes FOLDER --train 1000 --test 2000
    python -m benchmarks.shortcuts FOLDER

Frame 0 decides what happens, so it can be reckoned. Per family, chosen and fitted on the split `train`, told of `test`:
each measured quantity with one threshold and two answers; kernel ridge regression on all quantities; the same on the
picture in 16x16 pixels.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from theworld.precompute.worldlet.scenes.files import read_truth
from theworld.precompute.worldlet.scenes.physics import Ball, Block, Layout, Segment, ramp_below
from theworld.precompute.worldlet.training.clips import layout_of

Matrix = NDArray[np.float64]
Answers = NDArray[np.str_]


def main() -> None:
    parser = argparse.ArgumentParser(description="What frame 0 gives away.")
    parser.add_argument("folder", type=Path, help="of scenes")
    folder = parser.parse_args().folder
    truths = read_truth(folder)
    print("| family | scenes: train, test | rule of thumb | best single quantity | all quantities | 16x16 pixels |")
    print("|---|---|---|---|---|---|")
    for family in dict.fromkeys(truth["family"] for truth in truths):
        splits = [[t for t in truths if (t["family"], t["split"]) == (family, split)] for split in ("train", "test")]
        answers, asked = (np.array([truth["answer"] for truth in split]) for split in splits)
        rule = np.mean([truth["heuristic"] == truth["answer"] for truth in splits[1]])
        measured = [[quantities(layout_of(truth["layout"])) for truth in split] for split in splits]
        known, new = (np.array([list(each.values()) for each in split]) for split in measured)
        columns = {name: (known[:, n], new[:, n]) for n, name in enumerate(measured[0][0])}
        single = {name: one_threshold(*both, answers, asked) for name, both in columns.items()}
        best = max(single, key=lambda name: single[name][0])
        centre, spread = known.mean(0), known.std(0) + 1e-9
        together = kernel_ridge((known - centre) / spread, (new - centre) / spread, answers, asked)
        seen = kernel_ridge(pictures(folder, splits[0]), pictures(folder, splits[1]), answers, asked)
        counts = f"{len(answers)}, {len(asked)}"
        print(f"| {family} | {counts} | {rule:.3f} | {single[best][1]:.3f}: {best} | {together:.3f} | {seen:.3f} |")


def quantities(layout: Layout) -> dict[str, float]:
    """What a ruler finds in frame 0, in pixels or block widths."""
    balls = [mover for mover in layout.movers if isinstance(mover, Ball)]
    blocks = [mover for mover in layout.movers if isinstance(mover, Block)]
    if not balls:
        return _of_tower(blocks)
    if len(balls) == 2:
        left, right = (_of_ball(ball, layout.ramps) for ball in sorted(balls, key=lambda ball: ball.x))
        return {f"{name}, left less right": left[name] - right[name] for name in left}
    found = _of_ball(balls[0], layout.ramps)
    if blocks:
        away = blocks[0].x - balls[0].x
        found |= {"block's distance": abs(away), "block's side along the slope": away * np.sign(found["slope"])}
    return found


def _of_ball(ball: Ball, ramps: tuple[Segment, ...]) -> dict[str, float]:
    below = ramp_below(ramps, ball.x, ball.y)
    x1, y1, x2, y2 = (ball.x, ball.y, ball.x, ball.y) if below is None else ramps[below]
    foot = x2 if y2 > y1 else x1
    return {
        "column": ball.x,
        "height": ball.y,
        "slope": y2 - y1,
        "steepness": abs(y2 - y1),
        "ramp's foot": foot,
        "way to the foot": abs(foot - ball.x),
        "ramps": len(ramps),
    }


def _of_tower(blocks: list[Block]) -> dict[str, float]:
    columns = np.array([block.x for block in blocks]) / blocks[0].width
    return {
        "largest step": float(np.abs(np.diff(columns)).max()),
        "spread": float(np.ptp(columns)),
        "top from bottom": float(abs(columns[-1] - columns[0])),
        "mean from bottom": float(abs(columns[1:].mean() - columns[0])),
        "blocks": len(columns),
    }


def one_threshold(known: Matrix, new: Matrix, answers: Answers, asked: Answers) -> tuple[float, float]:
    """Accuracy on what is known and on what is new, of the best "up to here this answer, beyond it that one"."""
    best = (0.0, 0.0)
    for limit in np.quantile(known, np.linspace(0.02, 0.98, 49)):
        sides = [answers[known <= limit], answers[known > limit]]
        if all(len(side) for side in sides):
            low, high = (Counter(side.tolist()).most_common(1)[0][0] for side in sides)
            right = [
                float(np.mean(np.where(values <= limit, low, high) == truth))
                for values, truth in ((known, answers), (new, asked))
            ]
            best = max(best, (right[0], right[1]))
    return best


def kernel_ridge(known: Matrix, new: Matrix, answers: Answers, asked: Answers) -> float:
    """Accuracy on what is new of a Gaussian kernel, as wide as the median distance, and a ridge of 0.1."""
    classes = np.unique(answers)
    targets = np.where(answers[:, None] == classes, 1.0, -1.0)
    width = np.median(_squared(known, known))
    weights = np.linalg.solve(np.exp(-2 * _squared(known, known) / width) + 0.1 * np.eye(len(known)), targets)
    said = classes[(np.exp(-2 * _squared(new, known) / width) @ weights).argmax(1)]
    return float(np.mean(said == asked))


def _squared(a: Matrix, b: Matrix) -> Matrix:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


def pictures(folder: Path, truths: list[dict[str, Any]]) -> Matrix:
    """(N, 768), frame 0 in 16x16 pixels, 0 to 1."""
    rows = []
    for truth in truths:
        with Image.open(folder / "images" / f"{truth['id']}.png") as image:
            small = image.convert("RGB").resize((16, 16), Image.Resampling.BOX)
        rows.append(np.asarray(small, dtype=np.float64).ravel() / 255)
    return np.stack(rows)


if __name__ == "__main__":
    main()

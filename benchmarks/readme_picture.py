"""Draw README's animation from the output of `theworld demo`: image, predicted future, true one, question, answers.

python -m benchmarks.readme_picture demo docs/demo.gif

One example is a question that the predicted future helped, one a question about a rollout that ends wrongly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from theworld.pipeline import open_store
from theworld.precompute.preview.answer_cards import AnswerPictures
from theworld.precompute.preview.contact_sheet import gif
from theworld.precompute.preview.drawing import INK, SOFT, draw_arrow, font
from theworld.precompute.worldlet.rollout_check import CHECKED, rollout_outcomes, true_futures
from theworld.train.evaluation.examples import ReportExample, examples
from theworld.train.evaluation.results.saved import read_evaluation

WIDTH, SIDE, MARGIN, LETTERS = 760, 168, 16, 17
HEIGHT = 54 + SIDE + 24
GOOD, BAD = (0, 97, 156), (160, 60, 0)


def main(demo: Path, out: Path) -> None:
    """Write the GIF."""
    store, scenes = open_store(demo / "latents"), demo / "latents" / "scenes"
    outcomes = rollout_outcomes(store, scenes, splits=("test",), most=CHECKED)
    runs = [read_evaluation(demo / "runs" / name) for name in ("steps8", "steps0")]
    found = examples(runs, outcomes, names=("with the future", "without it"))
    chosen = [
        next(e for e in found if e.kinds == ("win",) and e.rollout_correct),
        next(e for e in found if e.rollout_correct is False and not dict(e.answers)["with the future"].correct),
    ]
    pictures, truths = AnswerPictures(store, scenes, device="cpu"), true_futures(scenes)
    clips = [pictures.frames(e.prediction.key, e.prediction.image, steps=e.run.steps) for e in chosen]
    true = [truths[e.prediction.scene].frames() for e in chosen]
    frames = []
    for number in range(len(true[0])):
        frame = Image.new("RGB", (WIDTH, HEIGHT * len(chosen)), (255, 255, 255))
        for row, (example, clip, truth) in enumerate(zip(chosen, clips, true, strict=True)):
            assert clip is not None
            _draw(frame, row * HEIGHT, example, clip[0], clip[number], truth[number], ends=number == len(truth) - 1)
        frames.append(frame)
    content = gif(frames, pictures.rate)
    out.write_bytes(content)
    print(f"{out}: {len(content):,} bytes")


def _draw(
    frame: Image.Image,
    top: int,
    example: ReportExample,
    image: np.ndarray,
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    ends: bool,
) -> None:
    draw = ImageDraw.Draw(frame)
    answer = example.prediction
    draw.text((MARGIN, top + 8), f"Question: {answer.question}", fill=INK, font=font(LETTERS + 3))
    lefts = (MARGIN, MARGIN + SIDE + 40, MARGIN + 2 * SIDE + 52)
    labels = ("image", "predicted future", "true future")
    for left, pixels, label in zip(lefts, (image, predicted, true), labels, strict=True):
        frame.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top + 54))
        draw.text((left, top + 34), label, fill=SOFT, font=font(LETTERS - 2))
    draw_arrow(draw, lefts[0] + SIDE + 8, top + 54 + SIDE // 2)
    if ends:
        _mark(draw, (lefts[1] + 6, top + 60), bool(example.rollout_correct))
    left, y = lefts[2] + SIDE + 14, top + 54
    for name, one in example.answers:
        draw.text((left, y), f"Answer {name}:", fill=SOFT, font=font(LETTERS - 2))
        letters = font(LETTERS + 2)
        draw.text((left, y + 19), one.predicted, fill=INK, font=letters)
        _mark(draw, (left + max(62, int(draw.textlength(one.predicted, letters)) + 16), y + 21), one.correct)
        y += 56
    draw.text((left, y), f"Correct answer: {answer.answer}", fill=INK, font=font(LETTERS))


def _mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], correct: bool) -> None:
    text, ink = ("correct", GOOD) if correct else ("wrong", BAD)
    box = draw.textbbox(at, text, font=font(LETTERS - 1))
    draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=ink)
    draw.text(at, text, fill=(255, 255, 255), font=font(LETTERS - 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

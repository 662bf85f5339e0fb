"""The results page of a study: one HTML file with its pictures inside.

OUT/results.json     all figures
OUT/index.html       this page; OUT/*.png are plots of the same figures for use elsewhere
OUT/strips/*.png     optional picture strips that the page shows
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...pipeline.files.atomic import replace
from ..pages import intervals
from ..pages.html import Html, bullets, document, figures, image, paragraph, render, table, together
from .arm_colors import page_color_of
from .figures import (
    abstention_figure,
    arms_figures,
    break_even_figure,
    cost_figures,
    gains_figure,
    learning_figures,
)
from .findings import Findings, score_of
from .plots import draw, gains, name_of, verdict_of

Results = Mapping[str, Any]


def write_report(findings: Findings, out: Path) -> Path:
    """Write results.json, the pictures and index.html; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    replace(out, out / "results.json", findings.to_json().encode() + b"\n")
    for name, content in draw(findings.results).items():
        replace(out, out / name, content)
    strips = {path.name: path.read_bytes() for path in sorted((out / "strips").glob("*.png"))}
    replace(out, out / "index.html", page(findings.results, strips).encode())
    return out / "index.html"


def page(results: Results, strips: Mapping[str, bytes]) -> str:
    """The page as HTML."""
    sections = [
        ("Examples of gains and losses", _strips(strips)),
        ("Figures", figures([*arms_figures(results), *learning_figures(results), break_even_figure(results)])),
        ("Accuracy against cost", figures(cost_figures(results))),
        ("Abstention: only the most certain questions are answered", figures([abstention_figure(results)])),
        ("Gains and losses by question", figures([gains_figure(results)])),
    ]
    folded = [
        ("Hypotheses, stated before the runs", _hypotheses(results)),
        ("Arms by question type", _arms(results)),
        ("Ablations: the same adapter, shown another input", _swaps(results)),
        ("Break-even: how often must a future be correct?", _break_even(results)),
        ("Losses, and rollouts that end wrongly", _losses(results)),
        ("Cost of each arm", _prices(results)),
        ("Setup", _facts(results)),
    ]
    return document(
        "Study of predicted futures", "Do predicted futures improve the answers?", _summary(results), sections, folded
    )


def _summary(results: Results) -> Html:
    study = results["study"]
    lines: list[str] = []
    for kind in ("temporal", "static"):
        rollout = score_of(results, arm="rollout", labels=study["primary"], type=kind)
        for against in ("frozen", "steps0"):
            row = next((r for r in gains(results, against) if name_of(r) == f"all {kind}"), None)
            if rollout is not None and row is not None:
                lines.append(
                    f"{kind} questions: rollout {100 * rollout['value']:.1f} %, "
                    f"{_signed(row)} points against {_NAMES[against]} "
                    f"(exact sign flips of scenes or pairs, each seed alone: p at most {max(row['p_by_seed']):.2g})"
                )
    scene_counts = ", ".join(
        f"{n['scenes']:,} {name} scenes ({n['questions']:,} questions)" for name, n in study["asked"].items()
    )
    several = study["seeds"] > 1
    seeds = f"{study['seeds']} seed{'s' * several}"
    others = "other test scenes and other seeds" if several else "other test scenes"
    return together(
        [
            paragraph(
                "A world model predicted what happens next in each scene. A frozen language model answered questions "
                "about the scenes, with adapters that differ only in what they read (their arm)."
            ),
            _shares(results),
            paragraph(
                f"Each arm was trained on {study['primary']:,} labelled scenes with {seeds}, and tested "
                f"on {scene_counts}. The 95 % intervals are over {others}; the labels and the world model are the same "
                "in all arms."
            ),
            bullets(lines),
        ]
    )


_SHARES = """<ul class="pair">{% for tile in tiles %}<li class="{{ tile.ink }}"><b>{{ tile.share }}</b>\
<span>{{ tile.name }}</span><span class="small">95 % interval {{ tile.interval }}</span></li>{% endfor %}</ul>
"""


def _shares(results: Results) -> Html:
    """Accuracy on temporal questions in large print: with the predicted future, and without it."""
    tiles: list[dict[str, str]] = []
    for arm, name in (("rollout", "with the predicted future"), *_NAMES.items()):
        row = score_of(results, arm=arm, labels=results["study"]["primary"], type="temporal")
        if row is not None and row["low"] is not None:
            share, _, interval = intervals.as_percent(row["value"], row["low"], row["high"]).partition(" [")
            tiles.append(
                {
                    "name": name,
                    "share": share,
                    "interval": interval.rstrip("]").replace(", ", " to "),
                    "ink": f"c{page_color_of(results, arm)}",
                }
            )
    return render(_SHARES, tiles=tiles) if tiles else Html("")


_NAMES = {"steps0": "frame 0 alone", "frozen": "frame 0 repeated"}


def _arms(results: Results) -> Html:
    """Tables of accuracy by arm and question type or family, the primary label count first."""
    primary = results["study"]["primary"]
    kinds, families = results["types"], results["families"]
    parts: list[Html] = []
    for labels in [primary, *(count for count in results["study"]["labels"] if count != primary)]:
        rows = []
        for arm in results["study"]["arms"]:
            cells = [score_of(results, arm=arm, labels=labels, type=kind) for kind in kinds]
            cells += [score_of(results, arm=arm, labels=labels, type="temporal", family=name) for name in families]
            if any(cells):
                rows.append([arm, str(results["arms"][arm]["world_tokens"]), *map(_cell, cells)])
        heads = ["arm", "world tokens", *kinds, *(f"{name}, temporal" for name in families)]
        title = f"{labels:,} labelled scenes{', the primary count' if labels == primary else ''}"
        parts.append(paragraph(title) + table(heads, rows))
    rule = results["heuristic"]
    note = "" if rule is None else f" The rule of thumb answers {100 * rule:.1f} % of the temporal questions correctly."
    return together(parts) + paragraph(f"pair: both halves of a minimal pair correct.{note}")


def _prices(results: Results) -> Html:
    """World tokens, bytes and seconds of each arm beside its accuracy; results of earlier versions state none."""
    arms = results["arms"]
    if not all("bytes" in arms[arm] for arm in results["study"]["arms"]):
        return Html("")
    primary = results["study"]["primary"]
    rows = [
        [
            arm,
            f"{arms[arm]['world_tokens']:,}",
            f"{arms[arm]['bytes']:,}",
            "-" if (seconds := arms[arm]["rollout_seconds"]) is None else f"{seconds:.4g}",
            *(_cell(score_of(results, arm=arm, labels=primary, type=kind)) for kind in results["types"]),
        ]
        for arm in results["study"]["arms"]
    ]
    heads = ["arm", "world tokens", "bytes of an image", "rollout seconds of an image", *results["types"]]
    note = paragraph(
        "Bytes are those that an arm reads of an image in its store, before compression. Seconds were measured by the "
        "worker that made the store, of all draws; an arm that reads frame 0 alone needs no rollout, and the cost of a "
        "true future is not defined."
    )
    return table(heads, rows) + note


def _hypotheses(results: Results) -> Html:
    verdict = "<span class=\"{{ text | replace(' ', '-') }}\">{{ text }}</span>"
    rows = [
        [
            f"{name} {h['claim']}",
            render(verdict, text=h["verdict"]),
            h["why"],
            "" if h["p_holm"] is None else f"{h['p_holm']:.4f}",
        ]
        for name, h in results["hypotheses"].items()
    ]
    return table(["claim", "verdict", "figures", "p, adjusted (Holm)"], rows)


def _break_even(results: Results) -> Html:
    if results["break_even"] is None:
        return Html("")
    world = results["break_even"]["world"]
    lines = [
        f"with {int(labels):,} labels, "
        + (
            "the curve does not cross the accuracy of frame 0 alone"
            if needed is None
            else f"futures must end correctly in {100 * needed:.0f} % of the scenes to do as well as frame 0 alone"
        )
        for labels, needed in results["break_even"]["needed"].items()
    ]
    if world is not None:
        lines.append(f"the world model's rollouts end correctly in {100 * world:.1f} % of the test scenes")
    return bullets(lines)


def _swaps(results: Results) -> Html:
    """A table of accuracy when each arm is shown another input, beside the input it was trained on."""
    primary = results["study"]["primary"]
    arm_pairs = [(row["arm"], row["shown"]) for row in results["scores"] if row["shown"] != row["arm"]]
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in arm_pairs):
        for shown_arm in dict.fromkeys([arm, *(name for trained_arm, name in arm_pairs if trained_arm == arm)]):
            cells = [
                score_of(results, arm=arm, shown=shown_arm, labels=primary, type=kind) for kind in results["types"]
            ]
            rows.append([arm, shown_arm, *map(_cell, cells)])
    return table(["trained on", "shown", *results["types"]], rows) if rows else Html("")


def _losses(results: Results) -> Html:
    parts: list[Html] = []
    for against in ("steps0", "frozen"):
        rows = gains(results, against)
        counted = [sum(verdict_of(row) == word for row in rows) for word in ("gain", "loss", "neither")]
        if not rows:
            continue
        parts.append(
            paragraph(
                f"Against {_NAMES[against]}, of {len(rows)} kinds of question: {counted[0]} gain, {counted[1]} lose, "
                f"{counted[2]} are undecided. The losses:"
            )
        )
        lost = [[name_of(row), f"{row['questions']:,}", _signed(row)] for row in rows if verdict_of(row) == "loss"]
        none_lost = paragraph("No loss is statistically significant.")
        parts.append(table(["questions", "number", "points"], lost) if lost else none_lost)
    by_outcome = results["by_outcome"]
    if by_outcome is not None:
        rows = [
            [arm, *(_cell(by_outcome[name].get(arm)) for name in ("right", "wrong"))]
            for arm in results["study"]["arms"]
        ]
        heads = [
            f"rollout ends {word}: {by_outcome[name]['questions']:,} questions"
            for name, word in (("right", "correctly"), ("wrong", "wrongly"))
        ]
        parts.append(paragraph("Temporal questions, by whether the rollout ends as the true scene does:"))
        parts.append(table(["arm", *heads], rows))
        if needed := by_outcome.get("needed"):
            parts.append(
                paragraph(
                    f"Share of an arm's scenes whose rollout must end correctly, to do as well as {needed['against']}:"
                )
            )
            parts.append(
                table(["arm", "share needed"], [[arm, _needed(share)] for arm, share in needed["share"].items()])
            )
    return together(parts)


def _needed(share: Mapping[str, float | None]) -> str:
    """A share with its interval; None is more than all."""
    value, low, high = ("never" if share[name] is None else f"{share[name]:.0%}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


_STRIP = """<figure><figcaption>{{ caption }}</figcaption>\
<div class="wide" tabindex="0" role="group" aria-label="{{ caption }}">{{ picture }}</div></figure>
"""


def _strips(strips: Mapping[str, bytes]) -> Html:
    order = sorted(strips, key=lambda name: (name.startswith("loss"), name))
    return together(
        render(_STRIP, caption=Path(name).stem.replace("-", " "), picture=image(name, strips[name])) for name in order
    )


def _facts(results: Results) -> Html:
    study = results["study"]
    budget = ", ".join(f"{name} {value}" for name, value in study["budget"].items() if value is not None)
    rows = [
        ["budget, the same for every arm", budget],
        ["seeds", f"0 to {study['seeds'] - 1}: weights and order; labelled scenes and world model are the same ones"],
        ["labels", ", ".join(f"{count:,}" for count in study["labels"]) + " scenes, all their questions"],
        ["questions", f"{study['questions']}, SHA-256 {study['questions_sha256'][:16]}"],
        ["rollouts", f"{study['store']}, recipe {study['recipe'][:12]}, {study['steps']} steps read"],
        ["true futures", f"{study['futures_store']}, recipe {str(study['futures'])[:12]}"],
        ["language model", study["lm"]],
        ["versions", ", ".join(f"{name} {version}" for name, version in study["versions"].items())],
        ["made", results["created"]],
    ]
    cost = [
        [arm, str(c["world_tokens"]), f"{c['updates']:,}", f"{c['train_seconds']:.0f} s", f"{c['last_loss']:.3f}"]
        for arm, c in results["arms"].items()
    ]
    heads = ["arm", "world tokens per question", "updates", "training, mean", "last loss, mean"]
    drawn = paragraph(
        "Intervals: bootstrap over minimal pairs (scenes where there are none) and seeds, drawn together for all "
        "arms, so that differences are paired. Every figure, seed by seed: results.json."
    )
    return table(["", ""], rows) + table(heads, cost) + drawn


def _cell(row: Mapping[str, Any] | None) -> str | Html:
    return "-" if row is None else intervals.cell(row["value"], row["low"], row["high"])


def _signed(row: Mapping[str, Any]) -> str:
    return intervals.as_points(row["value"], row["low"], row["high"])

"""The page of one or several evaluated runs: one HTML file with figures, tables and examples."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ...pipeline.files.atomic import make_folders, replace
from ..pages import intervals
from ..pages.html import Html, document, figures, paragraph, table, together
from .blind import blind_notes
from .examples import Draw, Outcomes, example_cards, examples
from .headline import WITH, WITHOUT, headline, pair_of
from .metrics import Prediction, Score
from .plots import (
    TITLES,
    Named,
    ablation_figure,
    abstention_figure,
    accuracy_figure,
    accuracy_of,
    answers_figure,
    calibration_figures,
    pareto,
    price_figure,
)
from .results.compare import require_same_questions
from .results.saved import Evaluation
from .statistics import holm, paired_p_value

_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_PRICES = {"world_tokens": "world tokens per question", "rollout_seconds": "rollout seconds per image"}
_TYPES_SHOWN = 6  # histograms; more would not be read
_TYPES_LISTED = 40
"""Rows of the tables. A file of questions may state a type for each of them."""


Sections = Sequence[tuple[str, Html]]


def write_run_report(evaluations: Sequence[Evaluation], path: Path, **page: Any) -> Path:
    """Write the page; arguments and errors are those of `run_page`."""
    content = run_page(evaluations, **page)
    make_folders(path.resolve().parent)
    replace(path.resolve().parent, path.resolve(), content.encode())
    return path


def run_page(
    evaluations: Sequence[Evaluation],
    *,
    draw: Draw | None = None,
    outcomes: Outcomes | None = None,
    closing: Sections = (),
    details: Sections = (),
) -> str:
    """The page as HTML.

    Args:
        evaluations: of the same questions; ablations of the runs may be among them.
        draw: decodes the futures of the examples; None leaves their pictures out.
        outcomes: scene -> whether its rollout ends as the true scene does, where that is known.
        closing, details: further sections, titles and their `Html`, after the figures and among the details.
    Raises:
        RunError: they answered different questions.
    """
    require_same_questions(evaluations)
    trained = [e for e in evaluations if not e.is_swap] or list(evaluations)
    runs = [(name_of(e), e) for e in trained]
    swaps = [e for e in evaluations if e not in trained]
    pair = pair_of(trained)
    words, names = {}, [name for name, _ in runs]
    if pair is not None:
        names = [(WITH if e is pair.with_future else WITHOUT).capitalize() for e in trained]
        helped, misled = "the future helped", "the future misled"
        words = {"win": helped, "loss": misled} if trained[0] is pair.with_future else {"win": misled, "loss": helped}
    chosen = examples(trained, outcomes, names=names)
    sections = [
        ("Rollouts, questions and answers", example_cards(chosen, draw, words)),
        ("Figures", _figures(runs, trained, swaps)),
        *closing,
    ]
    folded = [
        ("Accuracy by question type", _accuracy(runs)),
        ("Paired comparison of runs", _against(runs)),
        ("Cost against accuracy", _prices(runs)),
        ("Ablations", _swaps(trained, swaps)),
        ("Calibration", _calibration(runs)),
        ("Abstention by agreement", _abstention(runs)),
        ("Distribution of answers", _histograms(runs)),
        *details,
        ("Setup", _facts(runs)),
    ]
    heading = "Does the predicted future help?" if pair else "How well do the trained runs answer?"
    return document(
        "Evaluation of trained runs", heading, headline(runs, pair, blind_notes(evaluations)), sections, folded
    )


def _figures(runs: Named, trained: Sequence[Evaluation], swaps: Sequence[Evaluation]) -> Html:
    kinds = _types(runs)[:_TYPES_SHOWN]
    kind = "temporal" if "temporal" in kinds else ""
    costs = [price_figure(runs, kind, price, label) for price, label in _PRICES.items()]
    abstention = [abstention_figure(runs, name) for name in _abstention_kinds(runs)]
    accuracies = [accuracy_figure(runs, kinds), ablation_figure(trained, swaps, kind)]
    return figures([*accuracies, *costs, *calibration_figures(runs), *abstention])


def name_of(evaluation: Evaluation) -> str:
    """The run with its arm and steps, as tables and pictures name it."""
    arm = "" if evaluation.arm == "rollout" else f" {evaluation.arm}"
    choices_note = "" if evaluation.show_choices == "none" else f", choices shown ({evaluation.show_choices})"
    draws = "" if evaluation.draws is None else f", {evaluation.draws} draws"
    return f"{evaluation.run}{arm}, {evaluation.steps} steps{choices_note}{draws}"


def _accuracy(runs: Named) -> Html:
    rows: list[list[str | Html]] = []
    for kind in ("", *_types(runs)):
        for name, e in runs:
            balanced = e.balanced.get(kind)
            rows.append(
                [
                    kind or "all",
                    name,
                    _cell(score := accuracy_of(e, kind)),
                    (score and score.by_cluster) or "-",
                    _cell(e.generated_by_type.get(kind) if kind else e.generated),
                    "-" if balanced is None else f"{balanced.accuracy:.3f} (chance {balanced.chance:.3f})",
                ]
            )
    text = paragraph(_METHOD) + table(
        ["questions", "run", "ranked", "by cluster", "generated", "balanced over answers"], rows
    )
    every = {kind for _, e in runs for kind in e.by_type}
    if len(every) > _TYPES_LISTED:
        text += paragraph(
            f"The questions have {len(every):,} types. This page lists the {_TYPES_LISTED} with the most questions."
        )
    pairs = [[name, _cell(e.pairs)] for name, e in runs if e.pairs is not None]
    return text + table(["run", "minimal pairs, both halves correct"], pairs) if pairs else text


def _against(runs: Named) -> Html:
    """Every two runs on the same questions, by type; nothing for a single run."""
    if len(runs) < 2:
        return Html("")
    rows: list[list[str | Html]] = []
    p_values: list[float] = []
    for (first_name, a), (second_name, b) in combinations(runs, 2):
        answers = _answers_of_both(a, b)
        for kind in ("", *_types(runs)):
            of_kind = [answer for answer in answers if kind in ("", answer[0].type)]
            outcomes = [(x, y) for _, x, y in of_kind]
            if outcomes:
                only_first, only_second = outcomes.count((True, False)), outcomes.count((False, True))
                points = f"{100 * (only_first - only_second) / len(outcomes):+.1f}"
                p_values.append(_p_value(of_kind))
                names = [kind or "all", first_name, second_name]
                rows.append([*names, points, f"{only_first}", f"{only_second}"])
    for row, p, adjusted in zip(rows, p_values, holm(p_values), strict=True):
        row += [f"{p:.2g}", f"{adjusted:.2g}"]
    heads = [
        "questions",
        "run",
        "against",
        "points",
        "only run correct",
        "only other correct",
        "p",
        "p, adjusted (Holm)",
    ]
    return table(heads, rows) + paragraph(
        "Exact test on the questions that only one of the two runs answered correctly: McNemar's test where a scene "
        "has one question, sign flips of whole scenes (or minimal pairs) where it has more. It compares these trained "
        "runs, one training each. To compare over several seeds, run theworld study."
    )


def _prices(runs: Named) -> Html:
    kinds = _types(runs)
    kind = "temporal" if "temporal" in kinds else ""
    scores = [(e.world_tokens, accuracy_of(e, kind)) for _, e in runs]
    cost_points = [(float(x), y.accuracy) for x, y in scores if x is not None and y is not None]
    front = pareto(cost_points) if len(cost_points) == len(runs) else set[int]()
    rows = [
        [
            name,
            *("-" if (cost := getattr(e, price)) is None else f"{cost:,.4g}" for price in _PRICES),
            "-" if e.answer_seconds is None else f"{1000 * e.answer_seconds / e.overall.total:.1f} ms",
            _cell(accuracy_of(e, kind)),
            "yes" if n in front else "-",
        ]
        for n, (name, e) in enumerate(runs)
    ]
    heads = ["run", *_PRICES.values(), "time per answer", f"accuracy, {kind or 'all'}", "Pareto-optimal (tokens)"]
    measured = paragraph(
        "Rollout seconds were measured by the worker that made the store. An input without a rollout costs 0 "
        "seconds; the cost of a true future is not defined."
    )
    return table(heads, rows) + measured


def _swaps(trained: Sequence[Evaluation], swaps: Sequence[Evaluation]) -> Html:
    if not swaps:
        return Html("")
    kinds = _types([(name_of(e), e) for e in trained])
    rows: list[list[str | Html]] = []
    tested: list[tuple[list[str | Html], float]] = []
    for run in dict.fromkeys(e.run for e in [*trained, *swaps]):
        trained_evaluation = next((e for e in trained if e.run == run), None)
        for e in [*([trained_evaluation] if trained_evaluation else []), *(s for s in swaps if s.run == run)]:
            cells = [_cell(accuracy_of(e, kind)) for kind in kinds]
            rows.append([run, e.trained_arm, f"{e.arm}, {e.steps} steps", *cells, "-", "-"])
            if trained_evaluation is not None and e is not trained_evaluation:
                tested.append((rows[-1], _p_value(_answers_of_both(trained_evaluation, e))))
    p_values = [p for _, p in tested]
    for (row, p), adjusted in zip(tested, holm(p_values), strict=True):
        row[-2:] = [f"{p:.2g}", f"{adjusted:.2g}"]
    heads = [
        "run",
        "trained on",
        "shown",
        *kinds,
        "p against the trained input, McNemar by scene",
        "adjusted (Holm)",
    ]
    return table(heads, rows) + paragraph(
        "The same run answers with another input in place of its rollout, without new training. If accuracy falls "
        "for another scene's future, a frozen one or noise, the run uses the predicted future; if not, it answers from "
        "the observed frame."
    )


def _calibration(runs: Named) -> Html:
    rows = [
        [name, TITLES.get(group, group), f"{c.questions:,}", f"{c.confidence:.3f}", f"{c.accuracy:.3f}", f"{c.ece:.3f}"]
        for name, e in runs
        for group, c in e.calibration.items()
    ]
    heads = ["run", "questions", "number", "mean probability of the answer", "accuracy", "expected calibration error"]
    return table(heads, rows) if rows else Html("")


def _abstention_kinds(runs: Named) -> list[str]:
    kinds = {kind for _, e in runs for kind in e.abstention}
    return [kind for kind in ("temporal", "static") if kind in kinds] or ["all"]


def _abstention(runs: Named) -> Html:
    """Accuracy by coverage of the runs that answered from several draws; nothing without any."""
    drawn = [(name, e) for name, e in runs if e.abstention]
    if not drawn:
        return Html("")
    kinds = _abstention_kinds(runs)
    rows: list[list[str | Html]] = [
        [
            name,
            kind,
            f"{e.draws}",
            f"{e.single_draw[kind]:.3f}",
            *(f"{curve.accuracy_at(coverage):.3f}" for coverage in _COVERAGES),
        ]
        for name, e in drawn
        for kind, curve in e.abstention.items()
        if kind == "all" or kind in _types(runs)
    ]
    levels: list[list[str | Html]] = [
        [name, kind, f"{level.agreement:.3g}", f"{level.score.total:,}", _cell(level.score)]
        for name, e in drawn
        for kind in kinds
        if kind in e.abstention
        for level in e.abstention[kind].levels
    ]
    heads = ["run", "questions", "draws", "one draw alone", *(f"answering {coverage:.0%}" for coverage in _COVERAGES)]
    return together(
        [
            paragraph(
                "Each question was answered from several futures of its image, and the probabilities were averaged. "
                "The questions are answered in the order of agreement, the share of draws that give the averaged "
                "answer by themselves, and of equal agreement in that of its probability; the others are left open. "
                "The rollout costs as many times more as there are draws."
            ),
            table(heads, rows),
            table(["run", "questions", "share of draws that agree", "number", "accuracy"], levels),
        ]
    )


def _histograms(runs: Named) -> Html:
    drawn = figures(answers_figure(runs, kind) for kind in _types(runs)[:_TYPES_SHOWN])
    return drawn + paragraph(
        "Grey: how often an answer is the correct one. A run that prefers one answer, for example that nothing "
        "happens, can be recognised here and by its balanced accuracy."
    )


_METHOD = (
    "Ranked: the answer is the choice of the highest log-likelihood, summed over its tokens. Generated: the answer is "
    "decoded greedily, without a list of choices, and compared without case, punctuation and articles. Brackets hold "
    "the 95 % interval (Wilson), computed as if questions were independent. The one by cluster allows for several "
    "questions on one scene, image or minimal pair."
)


def _facts(runs: Named) -> Html:
    first = runs[0][1]
    rows = [["questions", f"{Path(first.questions).name}, SHA-256 {first.questions_sha256[:16]}"]]
    for name, e in runs:
        package_versions = ", ".join(f"{package} {version}" for package, version in e.created_with.items())
        rows.append(
            [
                name,
                f"trained on {e.trained_arm} with {e.trained_steps} steps, recipe {e.recipe_id[:12]}, language "
                f"model {e.lm}" + (f"; {package_versions}" if package_versions else ""),
            ]
        )
    return table(["", ""], rows)


def _types(runs: Named) -> list[str]:
    """The types of questions, at most `_TYPES_LISTED`: those with the most questions."""
    totals: Counter[str] = Counter()
    for _, e in runs:
        totals |= Counter({kind: accuracy.total for kind, accuracy in e.by_type.items()})
    return sorted(heapq.nlargest(_TYPES_LISTED, totals, key=lambda kind: (totals[kind], kind)), reverse=True)


def _answers_of_both(first: Evaluation, second: Evaluation) -> list[tuple[Prediction, bool, bool]]:
    """The questions that both were asked, and whether each answered correctly."""
    second_by_id = {p.id: p.correct for p in second.predictions}
    return [(p, p.correct, second_by_id[p.id]) for p in first.predictions if p.id in second_by_id]


def _p_value(answers: Iterable[tuple[Prediction, bool, bool]]) -> float:
    return paired_p_value((p.cluster, first, second) for p, first, second in answers)


def _cell(figure: Score | None) -> str | Html:
    return "-" if figure is None else intervals.cell(figure.accuracy, figure.low, figure.high)

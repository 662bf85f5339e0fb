"""The page of one or several evaluated runs: one HTML file with figures, tables and examples."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ...pipeline.files.atomic import make_folders, replace
from ..pages import intervals
from ..pages.html import Html, bullets, document, image, paragraph, render, table, together
from .blind import blind_notes
from .evaluate import Evaluation, require_same_questions
from .metrics import Prediction, Score
from .own_words import RULES
from .plots import Named, abstention_plot, accuracy_of, answers_plot, calibration_plot, pareto, price_plot
from .statistics import holm, paired_p_value

EXAMPLES = 3
"""Of each kind."""
_PRICES = {"world_tokens": "world tokens per question", "rollout_seconds": "rollout seconds per image"}
_COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
_TYPES_SHOWN = 6  # histograms; more would not be read
_TYPES_LISTED = 40
"""Rows of the tables. A file of questions may state a type for each of them."""


@dataclass(frozen=True, slots=True)
class ReportExample:
    """A question, and the answers of the runs."""

    heading: str
    prediction: Prediction
    """Of the run whose future is shown."""
    run: Evaluation
    lines: tuple[str, ...]


Sections = Sequence[tuple[str, Html]]

Draw = Callable[[ReportExample], bytes | None]
"""Draws the predicted future of an example as PNG or JPEG; None where it cannot be drawn."""


def write_run_report(
    evaluations: Sequence[Evaluation],
    path: Path,
    *,
    draw: Draw | None = None,
    opening: Sections = (),
    closing: Sections = (),
) -> Path:
    """Write the page.

    Args:
        evaluations: of the same questions; ablations of the runs may be among them.
        draw: draws the examples; None leaves their pictures out.
        opening, closing: further sections, titles and their `Html`, before and after those of the evaluation.
    Raises:
        RunError: they answered different questions.
    """
    page = run_page(evaluations, draw=draw, opening=opening, closing=closing)
    make_folders(path.resolve().parent)
    replace(path.resolve().parent, path.resolve(), page.encode())
    return path


def run_page(
    evaluations: Sequence[Evaluation], *, draw: Draw | None = None, opening: Sections = (), closing: Sections = ()
) -> str:
    """The page as HTML. Raises as `write_run_report`."""
    require_same_questions(evaluations)
    trained = [e for e in evaluations if not e.is_swap] or list(evaluations)
    runs = [(name_of(e), e) for e in trained]
    swaps = [e for e in evaluations if e not in trained]
    sections = [
        *opening,
        ("Accuracy by question type", _accuracy(runs)),
        ("Paired comparison of runs", _against(runs)),
        ("Cost against accuracy", _prices(runs)),
        ("Ablations", _swaps(trained, swaps)),
        ("Calibration", _calibration(runs)),
        ("Abstention by agreement", _abstention(runs)),
        ("Distribution of answers", _histograms(runs)),
        ("Examples", _examples(examples(trained), draw)),
        *closing,
        ("Setup", _facts(runs)),
    ]
    opening_text = _summary(runs, evaluations)
    return document("Evaluation of trained runs", "Evaluation: accuracy of trained runs", opening_text, sections)


def name_of(evaluation: Evaluation) -> str:
    """The run with its arm and steps, as tables and pictures name it."""
    arm = "" if evaluation.arm == "rollout" else f" {evaluation.arm}"
    shown = "" if evaluation.show_choices == "none" else f", choices shown ({evaluation.show_choices})"
    draws = "" if evaluation.draws is None else f", {evaluation.draws} draws"
    return f"{evaluation.run}{arm}, {evaluation.steps} steps{shown}{draws}"


def _summary(runs: Named, evaluations: Sequence[Evaluation]) -> Html:
    first = runs[0][1]
    lines: list[str | Html] = [f"{name}: {_correct(e)}" for name, e in runs]
    alarm = '<span class="alarm">{{ name }}</span>: {{ text }}'
    lines += [render(alarm, name=name, text=text) for name, e in runs for text in e.alarms]
    lines += [render(alarm, name=run, text=text) for run, text in blind_notes(evaluations)]
    lines += [
        f"{name} was evaluated by an earlier version: generated answers, calibration and cost are not "
        "known. Evaluate it again"
        for name, e in runs
        if e.version < 2
    ]
    lines += [
        f"the answers of {name} in own words were judged by rules of an earlier version: judge them by today's with "
        "theworld evaluate --rescore"
        for name, e in runs
        if e.rules != RULES
    ]
    lines += [
        f"{name} was not asked {e.left_out:,} more questions, which are too long or have no latents"
        for name, e in runs
        if e.left_out
    ]
    split = "all" if first.split is None else first.split
    return bullets(lines) + paragraph(
        f"{first.overall.total:,} questions of split {split}. Ranked: the answer is the choice of the "
        "highest log-likelihood, summed over its tokens. Generated: the answer is decoded greedily, without a "
        "list of choices, and compared without case, punctuation and articles. Brackets hold the 95 % interval "
        "(Wilson), computed as if questions were independent. The one by cluster allows for several questions on one "
        "scene, image or minimal pair."
    )


def _correct(e: Evaluation) -> str:
    """By type where there are few: one figure over all would hide that the types differ."""
    if len(e.by_type) > _TYPES_SHOWN:
        return f"{_percent(e.overall)} correct, all {len(e.by_type)} question types together"
    return "; ".join(f"{kind} {_percent(score)} correct" for kind, score in sorted(e.by_type.items(), reverse=True))


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
    text = table(["questions", "run", "ranked", "by cluster", "generated", "balanced over answers"], rows)
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
    parts: list[Html] = []
    for price, label in _PRICES.items():
        if (content := price_plot(runs, kind, price, label)) is not None:
            alt = f"Accuracy of {kind or 'all'} questions against {label}, by run"
            parts.append(paragraph(image(alt, content)))
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
    filled = paragraph("Filled points, joined by a line: no other run is both cheaper and better.")
    measured = paragraph(
        "Rollout seconds were measured by the worker that made the store. An input without a rollout costs 0 "
        "seconds; the cost of a true future is not defined."
    )
    return together([*parts, table(heads, rows), *([filled] if parts else []), measured])


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
    content = calibration_plot(runs)
    if content is None:
        return Html("")
    rows = [
        [name, group, f"{c.questions:,}", f"{c.confidence:.3f}", f"{c.accuracy:.3f}", f"{c.ece:.3f}"]
        for name, e in runs
        for group, c in e.calibration.items()
    ]
    heads = ["run", "questions", "number", "mean probability of the answer", "accuracy", "expected calibration error"]
    return together(
        [
            paragraph(image("Share of correct answers against their probability, by run", content)),
            paragraph(
                "Larger dots hold more questions. On the dotted line, a run is correct as often as it expects to be."
            ),
            table(heads, rows),
        ]
    )


def _abstention(runs: Named) -> Html:
    """Accuracy by coverage of the runs that answered from several draws; nothing without any."""
    drawn = [(name, e) for name, e in runs if e.abstention]
    if not drawn:
        return Html("")
    kinds = {kind for _, e in drawn for kind in e.abstention}
    shown = [kind for kind in ("temporal", "static") if kind in kinds] or ["all"]
    pictures = [
        paragraph(image(f"Accuracy of {kind} questions by the share that is answered, by run", content))
        for kind in shown
        if (content := abstention_plot(runs, kind)) is not None
    ]
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
        for kind in shown
        if kind in e.abstention
        for level in e.abstention[kind].levels
    ]
    heads = ["run", "questions", "draws", "one draw alone", *(f"answering {coverage:.0%}" for coverage in _COVERAGES)]
    return together(
        [
            *pictures,
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
    alt = "How often each answer to {} questions is correct, and how often each run gives it"
    parts = [paragraph(image(alt.format(kind), answers_plot(runs, kind))) for kind in _types(runs)[:_TYPES_SHOWN]]
    return together(parts) + paragraph(
        "Grey: how often an answer is the correct one. A run that prefers one answer, for example that nothing "
        "happens, can be recognised here and by its balanced accuracy above."
    )


def examples(trained: Sequence[Evaluation]) -> list[ReportExample]:
    """Questions that only one of the first and the last run answered correctly; of a single run, its surest answers.

    Temporal questions where there are any. The same evaluations give the same examples.
    """
    first, last = trained[0], trained[-1]
    candidates = [p for p in first.predictions if p.type == "temporal"] or list(first.predictions)
    if first is last:
        sure = sorted(candidates, key=lambda p: (-(p.confidence or 0.0), p.id))
        return [
            ReportExample(heading, p, first, _description(p, ()))
            for heading, right in (("Confident and correct", True), ("Confident and wrong", False))
            for p in [p for p in sure if p.correct is right][:EXAMPLES]
        ]
    last_by_id = {p.id: p for p in last.predictions}
    shown_run = first if first.steps >= last.steps else last
    report_examples: list[ReportExample] = []
    for heading, right in (
        (f"Correct only with {name_of(first)}", True),
        (f"Correct only with {name_of(last)}", False),
    ):
        differing = [
            p for p in candidates if p.correct is right and p.id in last_by_id and last_by_id[p.id].correct is not right
        ]
        for p in sorted(differing, key=lambda p: (-(p.confidence or 0.0), p.id))[:EXAMPLES]:
            last_prediction = last_by_id[p.id]
            answers = ((name_of(first), p), (name_of(last), last_prediction))
            shown = p if shown_run is first else last_prediction
            report_examples.append(ReportExample(heading, shown, shown_run, _description(p, answers)))
    return report_examples


def _description(prediction: Prediction, answers: Sequence[tuple[str, Prediction]]) -> tuple[str, ...]:
    def words(p: Prediction) -> str:
        confidence = "" if p.confidence is None else f" ({p.confidence:.0%})"
        generated = "" if p.generated in (None, p.predicted) else f", generated {p.generated!r}"
        return f"{p.predicted}{confidence}{generated}"

    lines = [f"{name} answers {words(p)}" for name, p in answers] or [f"the run answers {words(prediction)}"]
    return (
        f"{prediction.question or prediction.id} ({prediction.image})",
        f"correct answer: {prediction.answer}; {'; '.join(lines)}",
    )


_FIGURE = """{% if heading %}<h3>{{ heading }}</h3>
{% endif %}<figure>{{ picture }}<figcaption>{% for line in lines %}{{ line }}\
{% if not loop.last %}<br>{% endif %}{% endfor %}</figcaption></figure>
"""


def _examples(chosen: Sequence[ReportExample], draw: Draw | None) -> Html:
    return together(_figures(chosen, draw))


def _figures(chosen: Sequence[ReportExample], draw: Draw | None) -> Iterator[Html]:
    for n, example in enumerate(chosen):
        begins = not n or chosen[n - 1].heading != example.heading
        content = draw(example) if draw is not None else None
        alt = f"Image and predicted future for: {example.lines[0]}"
        picture = "" if content is None else image(alt, content)
        yield render(_FIGURE, heading=example.heading if begins else "", picture=picture, lines=example.lines)


def _facts(runs: Named) -> Html:
    first = runs[0][1]
    rows = [["questions", f"{first.questions}, SHA-256 {first.questions_sha256[:16]}"]]
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


def _percent(figure: Score) -> str:
    return intervals.as_percent(figure.accuracy, figure.low, figure.high)

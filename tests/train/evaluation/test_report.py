"""The page of evaluated runs is one whole file: nothing fetched, every picture there, nothing from outside runs."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from theworld.pipeline.cli.report_page import write_page
from theworld.pipeline.errors import RunError
from theworld.pipeline.progress import Progress
from theworld.train.evaluation.examples import examples
from theworld.train.evaluation.metrics import Prediction
from theworld.train.evaluation.plots import pareto
from theworld.train.evaluation.report import run_page, write_run_report
from theworld.train.evaluation.results.compare import compare_evaluations
from theworld.train.evaluation.results.counting import count_predictions
from theworld.train.evaluation.results.saved import EVALUATION, Evaluation, read_evaluation
from theworld.train.pages.films import Film

EVIL = '<script>alert(1)</script>"&$x^$'
VOID = {"meta", "link", "img", "br", "input"}


def predictions(right: int) -> tuple[Prediction, ...]:
    """Twenty temporal and as many static questions; so many temporal ones told right: the first, below 10 the last."""
    rows: list[Prediction] = []
    for n in range(20):
        answer, other = ("yes", "no") if n % 2 else ("no", "yes")
        for kind, fine in (("temporal", n < right if right >= 10 else n >= 20 - right), ("static", n % 4 != 0)):
            said = answer if fine else other
            rows.append(
                Prediction(
                    id=f"{n}-{kind}", type=kind, predicted=said, answer=answer, correct=fine, generated=said,
                    generated_correct=fine, choices=("yes", "no"), probabilities=(0.5 + n / 50, 0.5 - n / 50),
                    question=f"will it fall? {EVIL}", image=f"{n}.png", key=f"{n:032x}", scene=f"s{n}",
                    about="tower fall", pair=f"p{n // 2}",
                )
            )  # fmt: skip
    return tuple(rows)


def evaluation(run: str, right: int, **changes: object) -> Evaluation:
    fields = {
        "run": run, "split": "test", "steps": 8, "trained_steps": 8, "lm": "sha256:0", "recipe_id": "0" * 64,
        "questions": EVIL, "questions_sha256": "0" * 64, "world_tokens": 36, "rollout_seconds": 0.2, "version": 2,
        **count_predictions(predictions(right), {f"s{n}": n % 3 != 0 for n in range(20)}), **changes,
    }  # fmt: skip
    return Evaluation.model_validate(fields)


class Page(HTMLParser):
    """Well-formed, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.references: list[str] = []
        self.drawings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "svg" and dict(attrs).get("aria-hidden") != "true":  # as the dots beside names, which are text
            self.drawings.append(dict(attrs)["aria-label"] or "")
        assert "style" not in dict(attrs), "the policy forbids it"
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def clip(_: object) -> Film:
    frames = np.zeros((5, 20, 40, 3), np.uint8)
    return Film(frames, 12.0, frames + 200)


@pytest.fixture(scope="module")
def page() -> Page:
    runs = [
        evaluation("runs/1", 18),
        evaluation("runs/2", 9, steps=0, trained_steps=0, world_tokens=4, rollout_seconds=0.0),
        evaluation("runs/1", 8, arm="frozen"),
    ]
    return Page(run_page(runs, draw=clip, outcomes={f"s{n}": n % 3 != 0 for n in range(20)}))


def test_a_question_and_its_answers_each_stand_in_the_direction_of_their_own_writing() -> None:
    question, answer = "أين ستسقط الكرة؟", "يسار"
    rows = tuple(
        p.model_copy(update={"question": question, "answer": answer, "generated": answer}) for p in predictions(18)
    )
    page = run_page([evaluation("runs/1", 18, predictions=rows)])
    assert f'<h3 dir="auto">{question}</h3>' in page
    assert f'<li>Correct answer: <b dir="auto">{answer}</b></li>' in page
    assert f"generated: <bdi>{answer}</bdi></span>" in page


def test_it_is_whole_and_fetches_nothing(page: Page) -> None:
    assert page.open == []
    assert not {"iframe", "object", "form", "base"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert all(reference.startswith("data:") for reference in page.references)
    style = run_page([evaluation("a", 3)]).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_every_picture_decodes_and_is_described(page: Page) -> None:
    assert len(page.images) == 2 * 11  # six wins, two losses, and of six wrong rollouts three that are neither
    for found in page.images:
        head, data = (found["src"] or "").split(",", 1)
        assert head == "data:image/webp;base64"
        strip = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        strip.load()
        assert strip.size == (5 * 40, 20)
        assert found["data-frames"] == "5"
        assert len(found["alt"] or "") > 20


def test_a_calibration_of_a_few_answers_is_not_drawn(page: Page) -> None:
    drawn = [name for name in page.drawings if "probability" in name]
    assert drawn == ["Share of correct answers against their probability, by run, all questions"]


def test_figures_are_drawings_with_a_description_and_no_style_of_their_own(page: Page) -> None:
    assert len(page.drawings) == 1 + 1 + 1 + 2  # accuracy, ablations, calibration, answers
    assert all(len(name) > 20 for name in page.drawings)


def test_three_runs_have_figures_of_their_cost_and_a_section_without_content_is_left_out() -> None:
    fast = {"world_tokens": 4, "rollout_seconds": 0.1}
    runs = [evaluation("a", 18), evaluation("b", 9, **fast), evaluation("c", 12, world_tokens=9)]
    three, one = Page(run_page(runs)), Page(run_page(runs[:1]))
    for label in ("world tokens per question", "rollout seconds per image"):
        assert any(f"against {label}" in name for name in three.drawings)
        assert not any(f"against {label}" in name for name in one.drawings)
    assert "Paired comparison of runs" in three.text
    for absent in ("Paired comparison", "Ablations"):
        assert absent not in one.text


def test_the_page_begins_with_the_pair_that_matters_whatever_the_order_of_the_runs() -> None:
    runs = [evaluation("with", 18), evaluation("without", 9, steps=0, trained_steps=0)]
    for order in (runs, runs[::-1]):
        text = Page(run_page(order)).text
        opening = text.partition("Rollouts, questions and answers")[0]
        assert re.search(r"90\.0 %\s*with the future", opening)
        assert re.search(r"45\.0 %\s*without it", opening)
        assert "A random choice is correct in 50 %" in opening
        assert re.search(r"the future helped\s+\(6\)", text)
        assert re.search(r"the future misled\s+\(\d\)", text)


def test_it_says_what_a_reviewer_asks_for(page: Page) -> None:
    for words in [
        "0.900 [0.699, 0.972]", "McNemar", "Holm", "generated", "balanced", "chance 0.500", "minimal pairs",
        "expected calibration error", "rollout ends wrongly", "world tokens per question", "rollout seconds per image",
        "frozen", "the future helped", "With the future", "Without it", "True future",
    ]:  # fmt: skip
        assert words in page.text, words
    assert re.search(r"p\d?, adjusted", page.text)
    assert EVIL in page.text  # as text: Page found no script


def test_examples_show_losses_as_well_as_gains_and_of_one_run_what_it_was_sure_of() -> None:
    names = ("with", "without")
    two = examples([evaluation("a", 18), evaluation("b", 9)], names=names)
    assert [example.kinds for example in two] == [("win",)] * 6 + [("loss",)] * 2
    assert examples([evaluation("a", 18), evaluation("b", 9)], names=names) == two
    one = examples([evaluation("a", 10)], names=["it"])
    assert [example.kinds for example in one] == [("correct",)] * 6 + [("wrong",)] * 6
    assert one[6].prediction.id == "19-temporal"
    assert all(example.prediction.type == "temporal" for example in one)


def test_runs_that_are_right_and_wrong_alike_have_examples_too() -> None:
    found = examples([evaluation("a", 10), evaluation("b", 10)], {f"s{n}": True for n in range(20)}, names=("a", "b"))
    assert [example.kinds for example in found] == [("correct",)] * 6 + [("wrong",)] * 6
    assert all([name for name, _ in example.answers] == ["a", "b"] for example in found)


def test_wrong_rollouts_are_examples_too_and_each_says_how_its_rollout_ends() -> None:
    outcomes = {f"s{n}": n != 19 for n in range(20)}
    found = examples([evaluation("a", 18), evaluation("b", 18)], outcomes, names=("with", "without"))
    assert [(e.prediction.scene, e.kinds, e.rollout_correct) for e in found] == [("s19", ("wrong-rollout",), False)]
    page = Page(run_page([evaluation("a", 18)], draw=clip, outcomes=outcomes))
    assert re.search(r"Predicted:\s+✓ correct", page.text)
    assert re.search(r"Predicted:\s+✗ wrong", page.text)


def test_answers_to_other_questions_have_no_page_together(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the same questions"):
        write_run_report([evaluation("a", 1), evaluation("b", 1, questions_sha256="1" * 64)], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_evaluation_of_an_earlier_version_is_read_and_the_page_says_what_it_lacks(tmp_path: Path) -> None:
    score = '{"correct":3,"total":4,"accuracy":0.75,"low":0.3,"high":0.95}'
    (tmp_path / EVALUATION).write_text(
        '{"run":"old","split":"test","steps":8,"trained_steps":8,"lm":"sha256:0","recipe_id":"00","questions":"q.jsonl",'
        f'"questions_sha256":"00","overall":{score},"by_type":{{"temporal":{score}}},"predicted":{{"temporal":{{"no":4}}}},'
        '"answers":{"temporal":{"no":4}},"predictions":[{"id":"a","type":"temporal","predicted":"no","answer":"no",'
        '"correct":true}]}'
    )
    old = read_evaluation(tmp_path)
    assert (old.version, old.generated, old.world_tokens) == (1, None, None)
    text = Page(run_page([old, old.model_copy(update={"run": "older"})])).text
    assert "evaluated by an earlier version" in text


def test_nothing_cheaper_is_as_good_as_what_is_on_the_front() -> None:
    assert pareto([(36, 0.9), (4, 0.4), (36, 0.8), (9, 0.4), (0, 0.3)]) == {0, 1, 4}
    assert pareto([(1, 0.5), (1, 0.5)]) == {0, 1}


def test_questions_that_a_run_was_not_asked_are_told_in_the_page_and_the_table() -> None:
    few, all_of_them = evaluation("few", 15, left_out=7), evaluation("all", 15, left_out=0)
    page = run_page([few, all_of_them])
    assert "few, 8 steps was not asked 7 more questions" in page
    assert "all, 8 steps was not asked" not in page
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(compare_evaluations([few, all_of_them])[0])
    assert re.search(r"questions left out\W+7\W+0", shown.get())
    assert "not asked" not in run_page([evaluation("old", 15)])


def test_an_example_shows_the_future_in_the_store_of_the_run_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[tuple[str, int]] = set()

    class VisionInputs:
        def __init__(self, store: str, *_: object, **__: object) -> None:
            self.store, self.notes = store, ["a note"]

        def frames(self, *_: object, steps: int) -> None:
            drawn.add((self.store, steps))

    def meta(run: Path) -> SimpleNamespace:
        return SimpleNamespace(store=SimpleNamespace(path=f"store of {run}"), recipe_id="0" * 64, config={})

    monkeypatch.setattr("theworld.precompute.preview.answer_cards.AnswerPictures", VisionInputs)
    monkeypatch.setattr("theworld.train.runs.meta.read_meta", meta)
    monkeypatch.setattr("theworld.pipeline.store.folder.open_store", str)
    runs = [evaluation("short", 6, steps=2, trained_steps=2), evaluation("long", 15)]
    told = Console(record=True, width=200)
    write_page(runs, tmp_path / "page.html", device="cpu", progress=Progress(told))
    assert drawn == {("store of long", 8)}
    assert told.export_text().count("a note") == 1


def test_of_very_many_types_the_page_lists_those_with_the_most_questions_and_says_so() -> None:
    base = evaluation("runs/1", 18)
    one = base.by_type["temporal"]
    types = {f"type {n:05}": one.model_copy(update={"total": one.total + n}) for n in range(2000)}
    runs = [base.model_copy(update={"by_type": types, "run": name}) for name in ("runs/1", "runs/2")]
    text = Page(run_page(runs)).text
    assert "The questions have 2,000 types. This page lists the 40 with the most questions." in text
    assert "type 01999" in text
    assert "type 01959" not in text

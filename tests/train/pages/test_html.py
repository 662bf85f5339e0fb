"""Whatever names, questions and answers hold, a page has the elements that we made; a browser runs nothing of it."""

from __future__ import annotations

import ast
import base64
import hashlib
import http.server
import io
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from theworld.pipeline.cli.demo import _cost_html, _next_html
from theworld.pipeline.store.folder import load_store
from theworld.precompute.job.planning.plan import Plan
from theworld.precompute.job.report import Report
from theworld.train.evaluation.metrics import Prediction
from theworld.train.evaluation.report import run_page
from theworld.train.evaluation.results.counting import count_predictions
from theworld.train.evaluation.results.saved import Evaluation
from theworld.train.pages.films import Film
from theworld.train.pages.html import Html, bullets, document, image, paragraph, render, table, together
from theworld.train.study.report import page as study_page

from ...miniatures.store import create, fill
from ...patience import patience

ROOT = Path(__file__).parents[3]
PORT = "PORT"
HOSTILE = (
    f"\"'><script>document.title='OWNED'</script><img src=http://127.0.0.1:{PORT}/x onerror=alert(1)>"
    f"<style>*{{background:url(http://127.0.0.1:{PORT}/y)}}</style><a href=javascript:alert(1)>a</a>"
    "</title></style></table>{{ 7 * 7 }}{% raw %}<!--&lt;\x00\x1b[2J\u202e\u2028\ud800$x^$\\"
)
PLAIN = "name"
PLAN = Plan(
    inputs=3, duplicates=0, others={}, left_out={}, done=3, failed_before=(), refused=(), todo=(), sample_bytes=1
)


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def clip(_: object) -> Film:
    frames = np.linspace(0, 255, 5 * 32 * 32 * 3).reshape(5, 32, 32, 3).astype(np.uint8)
    return Film(frames, 12.0, frames)


# --- pages with a name in every field of text


def evaluation(name: str, number: int, **changes: object) -> Evaluation:
    kinds = (f"temporal{name}", f"static{name}")
    rows = tuple(
        Prediction(
            id=f"{n}{kind}{name}", type=kind, predicted=said, answer=f"yes{name}", correct=said == f"yes{name}",
            generated=f"{n % 2}{name}", generated_correct=False, choices=(f"yes{name}", f"no{name}"),
            probabilities=(0.5 + n / 50, 0.5 - n / 50), question=f"falls {name}?", image=f"{n}{name}.png",
            key=f"{n:032x}", scene=f"{n}{name}", about=f"tower {name}", pair=f"{n // 2}{name}",
        )
        for n in range(12)
        for kind in kinds
        for said in [f"{'yes' if (n + number) % 3 else 'no'}{name}"]
    )  # fmt: skip
    fields = {
        "run": f"runs/{number}{name}", "split": f"test{name}", "steps": 8, "trained_steps": 8, "lm": name,
        "recipe_id": name, "questions": name, "questions_sha256": name, "world_tokens": 9 * number,
        "rollout_seconds": 0.2, "version": 2, "created_with": {f"torch{name}": f"2{name}"}, "alarms": (name,),
        "arm": f"rollout{name}", "trained_arm": f"rollout{name}", "left_out": 3, "answer_seconds": 1.0,
        **count_predictions(rows, None), **changes,
    }  # fmt: skip
    return Evaluation.model_validate(fields)


def evaluations(name: str) -> list[Evaluation]:
    swapped = evaluation(name, 1, arm=f"frozen{name}")
    return [*(evaluation(name, number) for number in (1, 2, 3)), swapped, evaluation(name, 4, version=1)]


def run_report(name: str, _folder: Path) -> str:
    return run_page(evaluations(name), draw=clip, outcomes={f"{n}{name}": n % 3 == 0 for n in range(12)})


def study_results(name: str) -> dict[str, Any]:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "questions": 9}
    kinds, families, arms = ["temporal", f"static{name}"], [f"drop{name}"], ["steps0", "frozen", "rollout", "true"]
    scores = [
        {"arm": arm, "shown": shown, "split": "test", "labels": labels, "type": kind, "family": family, "about": "",
         "shift": "", **figure}
        for arm, shown in [*((arm, arm) for arm in arms), ("rollout", f"noise{name}")]
        for labels in (10, 20)
        for kind in kinds
        for family in ("", *families)
    ]  # fmt: skip
    differences = [
        {"against": against, "labels": 10, "type": kind, "family": family, "about": family and f"land{name}",
         "shift": "", "split": "test", "value": value, "low": value - 0.05, "high": value + 0.05, "questions": 9,
         "p_by_seed": [0.01]}
        for against in ("steps0", "frozen")
        for kind in kinds
        for family, value in (("", 0.1), (f"drop{name}", -0.2))
    ]  # fmt: skip
    return {
        "study": {
            "primary": 10, "labels": [10, 20], "arms": arms, "seeds": 2, "budget": {f"train{name}": name},
            "asked": {f"test{name}": {"scenes": 1, "questions": 1}}, "questions": name, "questions_sha256": name,
            "store": name, "recipe": name, "steps": 1, "futures_store": name, "futures": name, "lm": name,
            "versions": {f"torch{name}": name},
        },
        "types": kinds, "families": families, "scores": scores, "differences": differences, "heuristic": 0.5,
        "arms": {arm: {"world_tokens": 1, "updates": 1, "train_seconds": 1.0, "last_loss": 1.0} for arm in arms},
        "hypotheses": {f"H1{name}": {"claim": name, "verdict": f"supported{name}", "why": name, "p_holm": 0.01}},
        "break_even": {
            "world": 0.5, "needed": {"10": 0.5},
            "points": [{"labels": 10, "outcome": share, "value": 0.5, "low": 0.4, "high": 0.6} for share in (0.1, 0.9)],
        },
        "by_outcome": {
            outcome: {**dict.fromkeys(arms, figure), "questions": 9} for outcome in ("right", "wrong")
        },
        "created": name,
    }  # fmt: skip


def study_report(name: str, _folder: Path) -> str:
    results = study_results(name)
    return study_page(results, {f"loss-{name.replace('/', '')}.png": png()})


def demo_report(name: str, folder: Path) -> str:
    place = folder / "demo"
    store = create(place / "latents")
    fill(store, 3)
    store = load_store(store.path)
    part = re.sub("[/\0\ud800]", "", name)[:200]
    run = folder / part
    run.mkdir()
    (run / "metrics.json").write_text('{"seconds": 1.0, "world_tokens": 3}')
    made = Report(store=store.path, recipe=store.recipe, plan=PLAN)
    return run_page(
        evaluations(name)[:1],
        closing=[(f"next{name}", _next_html(Path(name), [run]))],
        details=[(f"cost{name}", _cost_html(made, store, [run]))],
    )


PAGES: dict[str, Callable[[str, Path], str]] = {"run": run_report, "study": study_report, "demo": demo_report}


# --- as a parser and a browser see them


class Elements(HTMLParser):
    """Each element with the names of its attributes, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.references: list[str] = []
        self.policy = self.style = self.script = self.title = self.text = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        values = dict(attrs)
        self._inside = tag
        self.references += [values[name] or "" for name in ("src", "href", "action", "style") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._inside == "style":
            self.style += data
        if self._inside == "script":
            self.script += data
        if self._inside == "title":
            self.title += data

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", (data,)))


@pytest.fixture(scope="module", params=PAGES)
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The same page with plain and with hostile names."""
    plain, hostile = (PAGES[request.param](name, tmp_path_factory.mktemp("page")) for name in (PLAIN, HOSTILE))
    return plain, hostile


def test_hostile_names_add_no_element_and_no_attribute(pages: tuple[str, str]) -> None:
    plain, hostile = map(Elements, pages)
    assert hostile.found == plain.found
    assert hostile.title == plain.title
    assert all(reference.startswith("data:") for reference in hostile.references)
    assert "document.title='OWNED'" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text


def test_hostile_names_turn_no_direction_and_can_be_written(pages: tuple[str, str]) -> None:
    pages[1].encode()
    assert not {"\x00", "\x1b", "\u202e", "\u2028", "\ud800"} & set(pages[1])
    assert r"\u202e" in pages[1]


def test_a_page_forbids_what_it_does_not_need(pages: tuple[str, str]) -> None:
    page = Elements(pages[1])
    style, script = (
        base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in (page.style, page.script)
    )
    assert page.policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    tags = [tag for tag, _ in page.found]
    assert tags.index("meta") < tags.index("style")
    assert tags[:4] == ["html", "head", "meta", "meta"], "the policy comes before all that it is for"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")


@pytest.fixture
def requests() -> Iterator[tuple[int, list[str]]]:
    """A server beside the page: its port, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def opened(page: str, folder: Path) -> tuple[Elements, str]:
    """The page after a browser has loaded it, and what the browser says of it."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    place = [f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run([str(CHROMIUM), *flags, *place], capture_output=True, timeout=patience(120), check=True)
    return Elements(done.stdout.decode()), done.stderr.decode(errors="replace")


@needs_browser
def test_a_browser_runs_and_fetches_nothing(
    pages: tuple[str, str], requests: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, asked = requests
    shown, told = opened(pages[1].replace(PORT, str(port)), tmp_path)
    assert shown.title == Elements(pages[0]).title
    assert "Content Security Policy" not in told, "nothing had to be forbidden, and our style was not"
    assert asked == []


@needs_browser
def test_markup_that_came_into_a_page_would_still_run_and_fetch_nothing(
    requests: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, asked = requests
    hole = HOSTILE.replace(PORT, str(port)).replace("alert(1)", "0").encode("utf-8", "replace").decode()
    shown, told = opened(document("title", "heading", Html(hole), []), tmp_path)
    assert shown.title == "title"
    assert "Content Security Policy" in told
    assert asked == []
    open_page = re.sub("<meta http-equiv[^>]*>", "", document("title", "heading", Html(hole), []))
    (tmp_path / "open").mkdir()
    shown, _ = opened(open_page, tmp_path / "open")
    assert shown.title == "OWNED", "else this test shows nothing"
    assert "/x" in asked


# --- the helpers


def test_text_is_escaped_and_html_is_not() -> None:
    assert paragraph("<b>") == "<p>&lt;b&gt;</p>"
    assert paragraph(paragraph("<b>")) == "<p><p>&lt;b&gt;</p></p>"
    assert bullets(["<a>", Html("<b>b</b>")]) == "<ul><li>&lt;a&gt;</li><li><b>b</b></li></ul>"
    assert "<th>&lt;a&gt;</th>" in table(["<a>"], [["<b>"]])
    assert "<td>&lt;b&gt;</td>" in table(["<a>"], [["<b>"]])
    assert 'alt="&#34;&gt;"' in image('">', png())
    assert together([paragraph("a"), paragraph("b")]) == "<p>a</p><p>b</p>"
    assert document("<t>", "<h>", paragraph("i"), [("<s>", paragraph("c")), ("left out", Html(""))]).count("&lt;") == 3


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="nmae"):
        render("<p>{{ nmae }}</p>", name="x")


def test_html_is_made_by_templates_alone() -> None:
    """No tag is put together from strings, no template comes from outside, and nothing else is called HTML."""
    found: list[str] = []
    for path in (path for room in ("pipeline", "precompute", "train") for path in sorted((ROOT / room).rglob("*.py"))):
        file = path.relative_to(ROOT).as_posix()
        if file == "train/language/chat_template.py":  # its tags are those of a chat
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                if re.search(
                    r"</?(a|b|p|br|li|ul|td|th|tr|h\d|div|img|span|code|table|figure\w*|script|style)\b[^<]*>", text
                ):
                    found.append(f"{where}: a tag in an f-string")
            elif isinstance(node, ast.Call):
                name, first = ast.unparse(node.func), node.args[0] if node.args else None
                if name in ("Html", "Markup") and file != "train/pages/html.py" and not isinstance(first, ast.Constant):
                    found.append(f"{where}: {name}(…)")
                if name == "render" and not isinstance(first, ast.Constant | ast.Name):
                    found.append(f"{where}: a template that is not written here")
                if name == "html.escape":
                    found.append(f"{where}: {name}")
    assert found == [], "render, table, bullets, paragraph and image of train/pages/html.py make HTML"

"""The page of `theworld ui` in a real browser: an image goes in, its future plays, two answers come out.

Skipped where no Chromium is installed: `apt install chromium`.
"""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.patience import patience
from theworld.pipeline.cli.ui.server import Event, Server

from .test_command import Here, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EVIL = "<img src=x onerror=alert(1)>"

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")


def jpeg(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(content, "JPEG")
    return content.getvalue()


def answer(file: Path, question: str, choices: list[str]) -> Iterator[Event]:
    """Frames of two colours between two answers."""
    assert file.read_bytes() == jpeg("red")
    yield {"status": "encoding …"}
    yield {"without": {"text": EVIL, "ranked": []}}
    for color in ("green", "blue"):
        yield {"frame": base64.b64encode(jpeg(color)).decode(), "label": color}
        time.sleep(0.1)
    yield {"with": {"text": question, "ranked": [{"choice": one, "probability": 0.5} for one in choices]}}
    yield {"note": f"warning: {EVIL}"}


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1400, "light")])
def test_an_image_is_asked_about_and_its_future_plays_between_two_answers(
    tmp_path: Path, width: int, scheme: str
) -> None:
    (tmp_path / "red.jpg").write_bytes(jpeg("red"))
    server = Server(answer, {"run": "runs/1", "world": "worldlet", "horizon": "2 seconds ahead", "fps": 12.0})
    for here in serving(server):
        assert problems_of_a_visit(here, tmp_path / "red.jpg", width, scheme) == []


def problems_of_a_visit(here: Here, image: Path, width: int, scheme: str) -> list[str]:
    """What the browser complained of, or asked others for, while an image was asked about."""
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=1000 * patience(60))
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        page.set_default_timeout(1000 * patience(30))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith((f"http://{here.host}/", "data:")) or (
            problems.append(request.url)
        ))  # fmt: skip
        page.goto(here.server.url)
        page.fill("#question", "where will it land?")
        page.click("#go")
        assert "choose an image first" in page.inner_text("#notes")
        page.set_input_files("#file", image)
        page.fill("#choices", "left, right")
        page.keyboard.press("Enter")
        page.wait_for_selector("#with .answer")
        page.wait_for_function("document.getElementById('notes').innerText.includes('warning')")
        assert page.inner_text("#without .answer") == EVIL, "text, not markup"
        assert page.inner_text("#with .answer") == "where will it land?"
        assert page.inner_text("#with table").split() == ["left", "50.0", "%", "right", "50.0", "%"]
        shown = set()
        for _ in range(20):
            shown.add(page.inner_text("#time"))
            page.wait_for_timeout(60)
        assert shown == {"green", "blue"}, "it plays on"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    return problems

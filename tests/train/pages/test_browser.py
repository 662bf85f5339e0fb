"""Results pages in a real browser, on a phone and a wide screen, light and dark: they play, filter and unfold.

Skipped where no Chromium is installed: `apt install chromium`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from ...patience import patience
from .test_html import CHROMIUM, PAGES, PLAIN

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENS = [(width, scheme) for width in (380, 1400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of this file, with a new empty profile."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=1000 * patience(60))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each kind of page as a file."""
    folder = tmp_path_factory.mktemp("pages")
    for kind, make in PAGES.items():
        (folder / kind).mkdir()
        (folder / f"{kind}.html").write_text(make(PLAIN, folder / kind), encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in PAGES}


def opened(
    browser: Browser, file: Path, width: int = 1400, scheme: str = "light", motion: str = "no-preference"
) -> Page:
    """The page, which must neither ask for anything nor complain."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,  # pyright: ignore[reportArgumentType]
        reduced_motion=motion,  # pyright: ignore[reportArgumentType]
    )
    page = context.new_page()
    page.set_default_timeout(1000 * patience(30))
    page.on("console", lambda message: pytest.fail(f"the browser says: {message.text}"))
    page.on("pageerror", lambda error: pytest.fail(f"the script failed: {error}"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or pytest.fail(request.url))
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_page_fits_its_screen_and_has_no_fault_of_accessibility(
    browser: Browser, files: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    page = opened(browser, files[kind], width, scheme, motion="reduce")
    for fold in page.locator("summary").all():
        fold.click()
    assert page.locator("details[open]").count() == page.locator("details").count() > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    faults = Axe().run(page).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []
    letters = page.eval_on_selector_all(
        "svg text", "texts => texts.map(text => text.getBoundingClientRect().height).filter(height => height)"
    )
    assert len(letters) > 10
    assert min(letters) > 11, "figures are legible"
    page.context.close()


def test_figures_and_text_follow_the_color_scheme(browser: Browser, files: dict[str, Path]) -> None:
    colors: list[list[str]] = []
    for scheme in ("light", "dark"):
        page = opened(browser, files["run"], scheme=scheme)
        of = "element => getComputedStyle(element)"
        colors.append(
            [
                page.eval_on_selector("body", f"{of}.backgroundColor"),
                page.eval_on_selector("svg text", f"{of}.fill"),
                page.eval_on_selector("svg .fill", f"{of}.fill"),
            ]
        )
        page.context.close()
    assert all(light != dark for light, dark in zip(*colors, strict=True))


def test_a_filter_shows_the_examples_of_its_kind_alone(browser: Browser, files: dict[str, Path]) -> None:
    page = opened(browser, files["run"], 380)
    cards = page.locator(".card")
    total = cards.count()
    assert total > 5
    for button in page.locator("button[data-show]").all():
        button.click()
        kind, shown = button.get_attribute("data-show") or "", page.locator(".card:visible")
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator("button[aria-pressed=true]").count() == 1
        assert page.locator("[data-count]").inner_text() == f"{shown.count()} of {total} shown"
        if kind == "all":
            assert shown.count() == total
            continue
        assert f"({shown.count()})" in button.inner_text()
        assert shown.count() > 0
        assert all(kind in (card.get_attribute("data-kinds") or "").split() for card in shown.all())
    assert page.locator(".card:visible", has_text="✗ wrong").count() == page.locator(".card:visible").count()
    page.context.close()


def frame_shown(page: Page) -> int:
    """Which frame of the first film stands in its window."""
    move = page.locator("img[data-frames]").first.evaluate("image => image.style.transform")
    share = float(re.findall(r"-?[\d.]+", move)[0])
    return round(-share * 5 / 100)  # films of the miniature have 5 frames


def test_rollouts_play_beside_the_truth_stop_and_follow_the_slider(browser: Browser, files: dict[str, Path]) -> None:
    page = opened(browser, files["run"])
    film, picture = (page.locator(what).first.bounding_box() for what in (".film", ".film img"))
    assert film is not None
    assert picture is not None
    assert abs(picture["width"] - 5 * film["width"]) < 5, "one frame fills the window"
    assert page.locator(".card").first.locator(".film").count() == 2
    play, slider = page.locator("button[data-play]"), page.locator("input[type=range]")
    for _ in range(200):  # the page's policy forbids what `wait_for_function` does
        if float(slider.input_value()) > 300:
            break
        page.wait_for_timeout(50)
    assert float(slider.input_value()) > 0
    play.click()
    assert play.inner_text() == "Play"
    rested = slider.input_value()
    page.wait_for_timeout(300)
    assert slider.input_value() == rested
    slider.fill("0")
    assert frame_shown(page) == 0
    slider.fill("1000")
    assert frame_shown(page) == 4
    play.click()
    assert play.inner_text() == "Pause"
    page.context.close()


def test_for_who_wants_no_motion_the_rollouts_rest_at_their_end(browser: Browser, files: dict[str, Path]) -> None:
    page = opened(browser, files["run"], motion="reduce")
    assert page.locator("button[data-play]").inner_text() == "Play"
    assert frame_shown(page) == 4
    page.context.close()


def test_without_its_script_the_page_still_shows_every_frame_and_answer(
    browser: Browser, files: dict[str, Path]
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["run"].as_uri())
    assert not page.locator(".controls").is_visible()
    assert page.locator(".card:visible").count() > 5
    assert page.locator(".film").first.is_visible()
    context.close()

"""The pages of docs/ as a site: complete, without a dead link, whole without a network; and its notebook runs."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebook import NOTEBOOK, run_notebook

ROOT = Path(__file__).parents[3]
FROM_ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?https?://[^"'> ]+""")

pytestmark = pytest.mark.xdist_group("site")  # built once


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_of_docs_stands_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = [path.with_suffix(".md").name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")]
    assert sorted(re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)) == sorted(["index.md", *pages])


def test_the_site_has_the_readme_the_pages_and_what_they_link_to(site: Path) -> None:
    assert "Two commands" in (site / "index.html").read_text()
    assert 'href="project/SECURITY.html' in (site / "files-from-strangers.html").read_text()
    assert "SBATCH" in (site / "project/configs/slurm.sh.html").read_text()
    assert "data:image/png" in (site / "own_experiment.html").read_text()


@pytest.mark.parametrize("package", ["pipeline", "precompute", "train"])
def test_the_reference_has_every_public_name_of_a_package(site: Path, package: str) -> None:
    public = re.findall(r" as (\w+)$", (ROOT / package / "__init__.pyi").read_text(), re.MULTILINE)
    headings = re.findall(r'<h2 id="theworld\.[\w.]*?(\w+)"', (site / "api" / f"{package}.html").read_text())
    assert public
    assert headings == public


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = [tag for tag in FROM_ELSEWHERE.findall(page.read_text()) if 'rel="canonical"' not in tag]
        assert not found, page


def test_a_page_opened_from_the_disk_can_be_searched(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto((site / "index.html").as_uri())
        page.wait_for_selector("iframe", state="attached")  # the search listens to keys from now on
        page.click(".md-search__input")
        page.keyboard.type("guardrail")
        page.wait_for_selector(".md-search-result__item a", state="attached", timeout=30_000)
        page.set_viewport_size({"width": 380, "height": 800})
        page.wait_for_function("document.documentElement.scrollWidth <= 380")  # once it is laid out anew
        browser.close()


@pytest.mark.slow
def test_the_notebook_runs_and_finds_the_answer_in_the_last_frames(tmp_path: Path) -> None:
    small = NOTEBOOK.read_text().replace(r"\"train\": 160", r"\"train\": 96")
    notebook = json.loads(small)
    with contextlib.chdir(tmp_path):
        names = run_notebook(notebook)
    assert names["latents"].shape == (96, 16, 9, 8, 8)
    assert names["accuracy"][-1] > names["accuracy"][0] + 0.15
    saved = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert [output["output_type"] for output in saved] == ["stream", "stream", "stream", "display_data"]

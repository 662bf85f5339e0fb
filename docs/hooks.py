"""What `mkdocs build` needs beyond the pages of docs/: the README as the first page, the files that pages link to, the
notebook as a page, and a page for each public package.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "build" / "house" / "theworld"
PACKAGES = ("pipeline", "precompute", "train")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".cff": "yaml", ".json": "json", ".sh": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay out the packages as they are installed, by links: docstrings are read from there, and nothing is imported."""
    HOUSE.mkdir(parents=True, exist_ok=True)
    for source in [*(ROOT / "pipeline" / "theworld").glob("*.py"), *(ROOT / name for name in PACKAGES)]:
        link = HOUSE / source.name
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.relpath(source, HOUSE))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=_api_page(package)))
    waiting = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    for source in waiting:  # grows: a page that is added may link to more
        text = (ROOT / source).read_text(encoding="utf-8")
        if _is_added(source):
            files.append(File.generated(config, _site_path(source), content=_page_of(source, text)))
        targets = _targets(source, text) if source.endswith(".md") else []
        waiting.extend(target for target in targets if target not in waiting and _is_added(target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead the links between files of the repository to the pages of the site."""
    source = _source_path(page.file.src_uri)
    here = PurePosixPath(page.file.src_uri).parent

    def replace(match: re.Match[str]) -> str:
        target = _resolve(source, match[1])
        if target is None:
            return match[0]
        return os.path.relpath(_site_path(target), here) + (match[2] or "")

    return LINK.sub(replace, markdown)


def _resolve(source: str, link: str) -> str | None:
    """The path in the repository that a link of a file means, or None where it means no file here."""
    target = os.path.normpath(PurePosixPath(source).parent / link)
    return target if "://" not in link and (ROOT / target).is_file() else None


def _targets(source: str, text: str) -> list[str]:
    return [target for match in LINK.finditer(text) if (target := _resolve(source, match[1]))]


def _is_added(source: str) -> bool:
    """Whether a file becomes a page here, and is not one already."""
    return not source.startswith("docs/") or source.endswith(".ipynb")


def _site_path(source: str) -> str:
    """Where a file of the repository stands in the site."""
    if source == "README.md":
        return "index.md"
    if source.startswith("docs/"):
        path = source.removeprefix("docs/")
        return path.replace(".ipynb", ".md")
    name = source.removesuffix(".md").replace("/README", "/index")
    return f"project/{name}.md"


def _source_path(site: str) -> str:
    """The file of the repository that a page of the site shows."""
    if site == "index.md":
        return "README.md"
    if site.startswith("project/"):
        return site.removeprefix("project/").replace("/index.md", "/README.md")
    return f"docs/{site}"


def _page_of(source: str, text: str) -> str:
    """A file as Markdown."""
    if source.endswith(".md"):
        return text
    if source.endswith(".ipynb"):
        return notebook_page(json.loads(text))
    return f"# {source}\n\n````{LANGUAGES.get(Path(source).suffix, 'text')}\n{text}\n````\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that are saved in it."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif "image/png" in output.get("data", {}):
                picture = output["data"]["image/png"]
                parts.append(f'<img alt="the figure that this code draws" src="data:image/png;base64,{picture}">')
    return "\n\n".join(parts) + "\n"


def _api_page(package: str) -> str:
    """The public names of a package, from the list in its `__init__.pyi`, each where it is defined."""
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    names = [
        f"::: theworld.{package}.{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return "\n\n".join([f"# theworld.{package}", ast.get_docstring(stub) or "", *names]) + "\n"

"""The HTML that results pages share: one file with its pictures inside, one small script, no network and no web fonts.

It reads well in light and dark, on a phone and on a wide screen: tables scroll in their own box, pictures shrink.

Names, questions and answers come from strangers. So HTML is made by `render` and by what stands on it, and nowhere
else: text is escaped there, and only `Html`, the type of markup that was made here, goes into a page as it is. The
page's policy lets a browser load nothing and run no script but the page's own, should this ever fail.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ...pipeline.messages import printable
from .style import SCRIPT, STYLE

Html = Markup
"""Markup that this module made; a plain string is text."""


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


_POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src data:",
        f"style-src {_hash(STYLE)}",
        f"script-src {_hash(SCRIPT)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
"""What a browser may do with the page: draw its own pictures, in its own style, moved by its own script."""

_MIME = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}

# An icon is named because a browser would ask for one beside the file.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ policy }}">\
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\
<title>{{ title }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ heading }}</h1>
{{ intro }}
{% for name, content in sections if content %}<h2>{{ name }}</h2>
{{ content }}
{% endfor %}{% if folded %}<h2>Details</h2>
{% for name, content in folded %}<details><summary><h3>{{ name }}</h3></summary>
{{ content }}</details>
{% endfor %}{% endif %}</main><script>{{ script }}</script></body></html>
"""
_TABLE = """<div class="wide" tabindex="0" role="group" aria-label="table"><table>
{% if heads | select | list %}<tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% endif %}\
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
"""


def render(template: str, **values: object) -> Html:
    """HTML from a template of ours.

    Args:
        template: for Jinja, never of anything from outside; a name that is not among the values is an error.
        values: text, escaped unless it is `Html`.
    """
    return Html(_template(template).render(values))


def document(
    title: str,
    heading: str,
    intro: Html,
    sections: Iterable[tuple[str, Html]],
    folded: Iterable[tuple[str, Html]] = (),
) -> str:
    """A whole page; a section without content is left out.

    Args:
        intro: below the heading. folded: further sections, of which a reader opens those that matter to them.
    """
    constants = {"policy": Html(_POLICY), "style": Html(STYLE), "script": Html(SCRIPT)}
    sections_with_content = [section for section in folded if section[1]]
    parts = {
        "title": title,
        "heading": heading,
        "intro": intro,
        "sections": list(sections),
        "folded": sections_with_content,
    }
    return str(render(_PAGE, **parts, **constants))


def table(heads: Sequence[str | Html], rows: Iterable[Sequence[str | Html]]) -> Html:
    """A table."""
    return render(_TABLE, heads=heads, rows=list(rows))


def bullets(items: Iterable[str | Html]) -> Html:
    """A list."""
    return render("<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>", items=list(items))


def paragraph(content: str | Html) -> Html:
    """A paragraph."""
    return render("<p>{{ content }}</p>", content=content)


def together(parts: Iterable[Html]) -> Html:
    """One after the other."""
    return Html("").join(parts)


def image(alt: str, content: bytes) -> Html:
    """A PNG, JPEG or WebP inside the page; raises as `image_source`."""
    return render('<img alt="{{ alt }}" src="{{ source }}">', alt=alt, source=image_source(alt, content))


def image_source(alt: str, content: bytes) -> Html:
    """The content of a picture as an image's `src`.

    Raises:
        ValueError: it is no PNG, JPEG or WebP.
    """
    mime = next((mime for start, mime in _MIME.items() if content.startswith(start)), None)
    if mime is None:
        raise ValueError(f"{alt}: not a PNG, JPEG or WebP")
    return render("data:{{ mime }};base64,{{ data }}", mime=mime, data=Html(base64.b64encode(content).decode()))


def figures(drawn: Iterable[Html]) -> Html:
    """Figures beside or below one another, as there is room; nothing where there is none."""
    members = [figure for figure in drawn if figure]
    return render('<div class="figures">{{ members }}</div>', members=together(members)) if members else Html("")


def _printable(value: object) -> object:
    """Text as a terminal would show it: no mark turns the direction of what stands beside it, none is half a letter."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(printable, value.split("\n")))
    return value


_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, finalize=_printable, keep_trailing_newline=True, auto_reload=False
)


@cache
def _template(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)

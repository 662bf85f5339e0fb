"""The HTML that results pages share: one file with its pictures inside, without scripts, network access or web fonts.

It reads well in light and dark, on a phone and on a wide screen: tables scroll in their own box, pictures shrink.

Names, questions and answers come from strangers. So HTML is made by `render` and by what stands on it, and nowhere
else: text is escaped there, and only `Html`, the type of markup that was made here, goes into a page as it is. The
page's policy lets a browser load nothing and run nothing, should this ever fail.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from ...pipeline.messages import printable

Html = Markup
"""Markup that this module made; a plain string is text."""

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #6b6b6b; --line: #ddd; --paper: #fff; --win: #0065a3;
  --loss: #a84300 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3; --line: #444; --paper: #161618;
  --win: #6cbcf5; --loss: #ff9d5c } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.2 }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1rem }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { overflow-wrap: normal } th { border-bottom: 1px solid var(--soft); font-weight: 600 }
.small { color: var(--soft); font-size: .8rem; white-space: nowrap } .wide { overflow-x: auto }
figure { margin: 1.2rem 0 } figcaption { font-size: .9rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: 3px }
.supported, .gain { color: var(--win); font-weight: 600 }
.not-supported, .loss, .alarm { color: var(--loss); font-weight: 600 }
"""

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)
"""What a browser may do with the page: draw its own pictures, in its own style."""

_MIME = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}

# An icon is named because a browser would ask for one beside the file.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ policy }}">\
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<h1>{{ heading }}</h1>
{{ intro }}
{% for name, content in sections if content %}<h2>{{ name }}</h2>
{{ content }}
{% endfor %}</body></html>
"""
_TABLE = """<div class="wide"><table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
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


def document(title: str, heading: str, intro: Html, sections: Iterable[tuple[str, Html]]) -> str:
    """A whole page; a section without content is left out."""
    known = {"policy": Html(_POLICY), "style": Html(_STYLE)}
    return str(render(_PAGE, title=title, heading=heading, intro=intro, sections=list(sections), **known))


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
    """A PNG or JPEG inside the page.

    Raises:
        ValueError: it is neither.
    """
    mime = next((mime for start, mime in _MIME.items() if content.startswith(start)), None)
    if mime is None:
        raise ValueError(f"{alt}: not a PNG or JPEG")
    data = Html(base64.b64encode(content).decode())
    return render('<img alt="{{ alt }}" src="data:{{ mime }};base64,{{ data }}">', alt=alt, mime=mime, data=data)


def _shown(value: object) -> object:
    """Text as a terminal would show it: no mark turns the direction of what stands beside it, none is half a letter."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(printable, value.split("\n")))
    return value


_ENVIRONMENT = Environment(
    autoescape=True, undefined=StrictUndefined, finalize=_shown, keep_trailing_newline=True, auto_reload=False
)


@cache
def _template(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)

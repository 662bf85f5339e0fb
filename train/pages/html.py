"""The HTML that results pages share: one file with its pictures inside, without scripts, network access or web fonts.

It reads well in light and dark, on a phone and on a wide screen: tables scroll in their own box, pictures shrink.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

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

_MIME = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def document(title: str, heading: str, intro: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title, heading: plain text. intro: HTML.
        sections: titles as plain text, and their HTML; a section without content is left out.
    """
    body = "".join(f"<h2>{html.escape(name)}</h2>\n{content}\n" for name, content in sections if content)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # else a browser asks for one beside the file
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(heading)}</h1>\n{intro}\n{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells."""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>\n'


def image(alt: str, content: bytes) -> str:
    """A PNG or JPEG inside the page.

    Raises:
        ValueError: it is neither.
    """
    mime = next((mime for start, mime in _MIME.items() if content.startswith(start)), None)
    if mime is None:
        raise ValueError(f"{alt}: not a PNG or JPEG")
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:{mime};base64,{data}">'

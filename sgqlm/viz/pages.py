"""Self-contained HTML: one file, inline images, no network, readable from 390 px upwards."""

import base64
import html
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from PIL import Image

from sgqlm.data import files

# Controls but tab and ends of lines, marks that turn the direction of what follows, and halves of
# characters, which UTF-8 cannot write.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_STYLE = """
:root { --ink: #1d2433; --soft: #5b6475; --line: #dfe3ea; --paper: #ffffff; --back: #f4f6f9;
  --accent: #2457c5; --prompt: #eceef2; --answer: #c9f0d3; --question: #ffdcab; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0 4px; }
h2 { font-size: 1.2rem; margin: 28px 0 10px; }
h3 { font-size: 1rem; margin: 0 0 8px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; }
.soft { color: var(--soft); font-size: .875rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px; margin: 0 0 16px; min-width: 0; }
.grid { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); }
.grid > .card { margin: 0; }
.split { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 800px) { .split { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); } }
figure { margin: 0 0 10px; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.tokens { font: .875rem/2 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { padding: 2px 0; border-right: 1px solid rgba(29, 36, 51, .18);
  -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.prompt { background: var(--prompt); color: #4a5263; }
.answer { background: var(--answer); }
.question { background: var(--question); }
.place { background: var(--accent); color: #fff; border-radius: 4px; padding: 2px 6px !important;
  white-space: nowrap; }
details { margin: 0 0 10px; }
summary { cursor: pointer; color: var(--accent); font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: 8px; font-size: .875rem; margin: 0 0 16px; }
.legend span { padding: 1px 8px; border-radius: 4px; }
"""


def page(
    title: str, body: Iterable[str], *, subtitle: str = "", style: str = "", script: str = ""
) -> str:
    """Return a whole page.

    Args:
        title: plain text, escaped here.
        body: pieces of HTML, as the functions below return them.
        subtitle: plain text under the title.
        style: further CSS.
        script: JavaScript that runs when the page stands.

    Returns:
        The document.
    """
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{note(subtitle) if subtitle else ''}"
        + "\n".join(body)
        + f"</main>{code}</body></html>\n"
    )


def write(path: str | os.PathLike, document: str) -> pathlib.Path:
    """Write a page (complete or not at all), making its folder; return its path."""
    return files.write(path, document)


def escape(text: object) -> str:
    """Return text as HTML."""
    return html.escape(visible(str(text)), quote=True)


def visible(text: str) -> str:
    """Return text with what a page cannot show, such as control characters, as escapes."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def heading(text: str) -> str:
    """Return a section heading."""
    return f"<h2>{escape(text)}</h2>"


def note(text: str) -> str:
    """Return a small grey paragraph."""
    return f'<p class="soft">{escape(text)}</p>'


def card(title: str, *parts: str) -> str:
    """Return a framed block with a title; an empty title is left out."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<section class="card">{head}{"".join(parts)}</section>'


def grid(cards: Iterable[str]) -> str:
    """Return cards in as many columns as the window allows."""
    return f'<div class="grid">{"".join(cards)}</div>'


def split(left: str, right: str) -> str:
    """Return two blocks side by side, one below the other on a narrow window."""
    return f'<div class="split"><div>{left}</div><div>{right}</div></div>'


def figure(image: Image.Image, *, caption: str = "", alt: str = "") -> str:
    """Return an image, inlined, with its caption."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    source = data_uri(image)
    return f'<figure><img src="{source}" alt="{escape(alt or caption)}">{words}</figure>'


def data_uri(image: Image.Image) -> str:
    """Return an image as a `data:` address: JPEG, or PNG where that is smaller."""
    choices = []
    for kind, options in (("jpeg", {"quality": 88}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind, **options)
        choices.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, payload = min(choices)
    return f"data:image/{kind};base64,{base64.b64encode(payload).decode()}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; columns that hold only numbers are set to the right."""
    cells = [[_text(value) for value in row] for row in rows]
    values = [list(column) for column in zip(*cells, strict=True)] or [[] for _ in header]
    kinds = [
        ' class="number"' if column and all(map(_is_number, column)) else "" for column in values
    ]

    def line(tag: str, row: Sequence[str]) -> str:
        inner = (f"<{tag}{k}>{escape(v)}</{tag}>" for k, v in zip(kinds, row, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", row) for row in cells)
    return f'<div class="scroll"><table>{line("th", header)}{body}</table></div>'


def tokens(pieces: Iterable[tuple[str, str]]) -> str:
    """Return coloured tokens.

    Args:
        pieces: (text, kind); kind is `prompt`, `answer`, `question` or `place` (a placeholder).

    Returns:
        A block that wraps, with a hairline between tokens.
    """
    spans = (f'<span class="{escape(kind)}">{escape(text)}</span>' for text, kind in pieces)
    return f'<div class="tokens">{"".join(spans)}</div>'


def fold(title: str, content: str) -> str:
    """Return content that is hidden until its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return the key to the token colours, as (text, kind)."""
    spans = (f'<span class="{escape(kind)}">{escape(text)}</span>' for text, kind in entries)
    return f'<div class="legend">{"".join(spans)}</div>'


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).replace(",", "").isdigit()

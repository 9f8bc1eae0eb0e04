"""Pages of an evaluation: scores beside published ones, charts, wrong answers one by one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from sgqlm.viz import pages

Picture = tuple[Image.Image | None, str]
_WIDTH, _PITCH = 340, 40
_STYLE = """
:root { color-scheme: light dark; --well: #e9ecf1; --good: #1b7a43; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #a9b1c1; --line: #39404f;
  --paper: #1b202a; --back: #11151c; --accent: #8fb3ff; --well: #262c38; --good: #7fd6a0;
  --bad: #ff9c94; } }
h1, h2 { overflow-wrap: anywhere; }
main p, main li, .qa dd { overflow-wrap: anywhere; }
.scores th:first-child, .scores td:first-child { position: sticky; left: 0;
  background: var(--paper); }
.scores td { white-space: pre; }
.scores tr.ours td { font-weight: 600; }
.grid, nav, .browse { margin: 10px 0; }
.chart { max-width: 440px; display: block; }
.notes { margin: 6px 0 0; padding-left: 1.2em; font-size: .875rem; color: var(--soft); }
.find { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 12px; }
.find input, .find select { font: inherit; font-size: .9rem; padding: 6px 8px; min-width: 0;
  max-width: 100%; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; }
.qa { margin: 0; font-size: .9rem; }
.qa dt { color: var(--soft); font-size: .8125rem; }
.qa dd { margin: 0 0 6px; white-space: pre-wrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.card figure img { max-height: 340px; object-fit: contain; background: var(--well); }
nav a { color: var(--accent); margin-right: 14px; overflow-wrap: anywhere; }
[hidden] { display: none !important; }
@media (max-width: 559px) { .card { padding: 10px; } main { padding: 14px 10px 40px; } }
"""
_SCRIPT = """
document.querySelectorAll('.browse').forEach(function (part) {
  var word = part.querySelector('input'), kind = part.querySelector('select');
  var told = part.querySelector('.told');
  var cards = Array.from(part.querySelectorAll('.item'));
  function filter() {
    var count = 0;
    cards.forEach(function (card) {
      var fits = card.textContent.toLowerCase().includes(word.value.toLowerCase()) &&
        (!kind || !kind.value || JSON.parse(card.dataset.kinds).includes(kind.value));
      card.hidden = !fits; count += fits;
    });
    told.textContent = count + ' of ' + cards.length + ' shown';
  }
  part.querySelector('.find').hidden = false;
  word.addEventListener('input', filter);
  if (kind) kind.addEventListener('change', filter);
});
"""


def page(title: str, body: Sequence[str], *, subtitle: str = "") -> str:
    """Return a whole page of the pieces below, light or dark as the reader's system is."""
    return pages.page(title, body, subtitle=subtitle, style=_STYLE, script=_SCRIPT)


def scores(
    header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], *, ours: int = 0
) -> str:
    """Return a table of scores with its notes.

    Args:
        header: names of the columns.
        rows: a model each.
        notes: sentences under the table.
        ours: rows from the top that are set in bold.
    """
    head = "".join(f'<th scope="col">{pages.escape(name)}</th>' for name in header)
    lines = []
    for at, row in enumerate(rows):
        texts = (cell.replace(" (", "\n(") for cell in row)  # intervals under their scores
        line = "".join(f"<td>{pages.escape(text)}</td>" for text in texts)
        kind = ' class="ours"' if at < ours else ""
        lines.append(f"<tr{kind}>{line}</tr>")
    body = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return pages.card("", f'<div class="scroll scores">{body}</div>', listed(notes))


def listed(notes: Sequence[str]) -> str:
    """Return sentences as a list; nothing for none."""
    lines = "".join(f"<li>{pages.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def chart(rows: Sequence[Mapping[str, Any]], *, highest: float | int = 100) -> str:
    """Return horizontal bars, each under its name, with intervals as whiskers.

    Args:
        rows: `name`, `value` (None: a dash), `interval` (`low` and `high`, or None) and `count`.
        highest: the value of a full bar.

    Returns:
        An SVG element that takes its colours from the page.
    """
    parts = []
    for at, row in enumerate(rows):
        y, value, found = at * _PITCH, row["value"], row["interval"]
        shown = "–" if value is None else f"{value:.1f}"
        if found:
            shown += f" ({found['low']:.1f} to {found['high']:.1f})"
        count = f", n = {row['count']:,}" if row.get("count") else ""
        name = str(row["name"])
        room = 50 - len(shown + count)
        short = name if len(name) <= room else name[: max(room - 1, 1)] + "…"
        full = f"{name}: {shown}{count}"
        parts.append(f"<g><title>{pages.escape(full)}</title>")
        parts.append(_text(0, y + 14, short, "start", "ink"))
        parts.append(_text(_WIDTH, y + 14, shown + count, "end", "soft"))
        parts.append(_bar(y + 20, _WIDTH, "well"))
        if value:
            parts.append(_bar(y + 20, _across(value, highest), "accent"))
        if found:
            low, high = _across(found["low"], highest), _across(found["high"], highest)
            path = f"M{low:.1f} {y + 22}v8M{low:.1f} {y + 26}H{high:.1f}M{high:.1f} {y + 22}v8"
            parts.append(f'<path d="{path}" style="stroke:var(--ink);fill:none;stroke-width:1.6"/>')
        parts.append("</g>")
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_PITCH * len(rows)}" width="100%" role="img" '
        f'aria-label="bars" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _across(value: float | int, highest: float | int) -> float:
    return _WIDTH * min(max(value / highest, 0.0), 1.0)


def _bar(y: int, length: float | int, colour: str) -> str:
    return (
        f'<rect x="0" y="{y}" width="{length:.1f}" height="12" rx="3" '
        f'style="fill:var(--{colour})"/>'
    )


def _text(x: int, y: int, text: str, anchor: str, colour: str) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" '
        f'style="fill:var(--{colour})">{pages.escape(text)}</text>'
    )


def section(index: int, title: str, lines: Sequence[str], charts: Sequence[str]) -> str:
    """Return the head of one benchmark: what was found, and its charts.

    Args:
        index: number of the benchmark on the page, for links.
        title: of the benchmark.
        lines: sentences.
        charts: cards with charts.
    """
    first, rest = (lines[0], lines[1:]) if lines else ("", ())
    head = f'<h2 id="t{index}">{pages.escape(title)}</h2><p>{pages.escape(first)}</p>'
    return head + listed(rest) + (pages.grid(charts) if charts else "")


def links(titles: Sequence[str]) -> str:
    """Return links to the sections of the page."""
    inner = "".join(f'<a href="#t{i}">{pages.escape(t)}</a>' for i, t in enumerate(titles))
    return f'<nav aria-label="benchmarks">{inner}</nav>' if len(titles) > 1 else ""


def browser(title: str, items: Sequence[str], kinds: Sequence[str]) -> str:
    """Return cards of items under a search field and a choice of kinds.

    Args:
        title: what the cards are.
        items: of `item`.
        kinds: to choose from.
    """
    if not items:
        return pages.note(title)
    options = "".join(
        f'<option value="{pages.escape(kind)}">{pages.escape(kind)}</option>' for kind in kinds
    )
    choice = f'<select aria-label="kind"><option value="">all kinds</option>{options}</select>'
    tools = (
        '<div class="find" hidden><input type="search" placeholder="search" aria-label="search">'
        f'{choice if kinds else ""}<span class="soft told"></span></div>'
    )
    return f'<div class="browse">{pages.fold(title, tools + pages.grid(items))}</div>'


def item(
    found: Mapping[str, Any], picture: Picture, answers: Sequence[tuple[str, str | None, float]]
) -> str:
    """Return one question as a card.

    Args:
        found: `id`, and where known `question`, `wanted` and `kinds`.
        picture: its image, None where there is none, and words about it.
        answers: (who, what was said, score) each; None: no answer.
    """
    image, words = picture
    shown = pages.figure(image, caption=words, alt=words) if image else pages.note(words)
    lines = [(name, found[name], "") for name in ("question", "wanted") if found.get(name)]
    for who, text, score in answers:
        said = "no answer" if text is None else text or "(empty)"
        if "question" not in found:
            said = "not known"
        lines.append((f"{who}, score {score:.2f}", said, "good" if score >= 1 else "bad"))
    rows = "".join(
        f'<dt>{pages.escape(name)}</dt><dd class="{colour}">{pages.escape(text)}</dd>'
        for name, text, colour in lines
    )
    kinds = pages.escape(json.dumps(list(found.get("kinds", ()))))
    return (
        f'<section class="card item" data-kinds="{kinds}"><h3>{pages.escape(found["id"])}</h3>'
        f'{shown if words or image else ""}<dl class="qa">{rows}</dl></section>'
    )

"""Pages of an evaluation: scores beside published ones, charts, wrong answers one by one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import overlay, pages, scene_graph

Picture = tuple[Image.Image | None, str]
MOST = 24  # rows of one chart; a longer one is cut into several
_WIDTH, _HEAD, _THICK = 340, 20, 12
_SIDE, _WEIGHED = 360, 4
_NODES, _EDGES = 6, 8  # rows under a graph; the others are folded
_COLOURS = ("accent", "m1", "m2", "m3", "m4", "m5")
_STYLE = """
:root { color-scheme: light dark; --well: #e9ecf1; --good: #1b7a43; --bad: #b3261e;
  --m1: #c2571a; --m2: #2b8a7e; --m3: #8a4fb0; --m4: #8c7a12; --m5: #b8396f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #a9b1c1; --line: #39404f;
  --paper: #1b202a; --back: #11151c; --accent: #8fb3ff; --well: #262c38; --good: #7fd6a0;
  --bad: #ff9c94; --m1: #f0a06c; --m2: #6ccabd; --m3: #c79be6; --m4: #d6c55a; --m5: #f08fb8; } }
h1, h2 { overflow-wrap: anywhere; }
main p, main li, .qa dd { overflow-wrap: anywhere; }
.scores th:first-child, .scores td:first-child { position: sticky; left: 0;
  background: var(--paper); }
.scores td { white-space: pre; }
.scores tr.ours td { font-weight: 600; }
.grid, nav, .browse { margin: 10px 0; }
.grid { align-items: start; }
.chart { max-width: 440px; display: block; }
.notes { margin: 6px 0 10px; padding-left: 1.2em; font-size: .875rem; color: var(--soft); }
.find { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 12px; }
.find input, .find select { font: inherit; font-size: .9rem; padding: 6px 8px; min-width: 0;
  max-width: 100%; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; }
.qa { margin: 0; font-size: .9rem; }
.qa dt { color: var(--soft); font-size: .8125rem; }
.qa dd { margin: 0 0 6px; white-space: pre-wrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.card figure img { max-height: 340px; object-fit: contain; background: var(--well); }
.card figure svg { max-height: 380px; }
.numbers table { font-size: .8rem; margin: 0 0 8px; }
.numbers th, .numbers td { padding: 2px 8px 2px 0; }
.key span { white-space: nowrap; margin-right: 14px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
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
        rows: `name`, and `value` (None: a dash) with `interval` (`low` and `high`, or None) and
            `count`, or `bars`: several of these three, one a model; None where a model has none.
        highest: the value of a full bar.

    Returns:
        An SVG element that takes its colours from the page.
    """
    parts, y = [], 0
    for row in rows:
        bars = row.get("bars") or [row]
        shown = [_value(bar, with_interval=len(bars) == 1) for bar in bars]
        count = f", n = {told}" if (told := sizes(bars)) else ""
        name, told = str(row["name"]), " / ".join(shown) + count
        room = 50 - len(told)
        short = name if len(name) <= room else name[: max(room - 1, 1)] + "…"
        full = f"{name}: {' / '.join(_value(bar) for bar in bars)}{count}"
        parts.append(f"<g><title>{pages.escape(full)}</title>")
        parts.append(_text(0, y + 14, short, "start", "ink"))
        parts.append(_text(_WIDTH, y + 14, told, "end", "soft"))
        y += _HEAD
        for at, bar in enumerate(bars):
            parts.append(_drawn(bar, y, _COLOURS[at % len(_COLOURS)], highest))
            y += _THICK + (2 if at < len(bars) - 1 else 8)
        parts.append("</g>")
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {y}" width="100%" role="img" '
        f'aria-label="bars" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def sizes(bars: Sequence[Mapping[str, Any] | None]) -> str:
    """Return over how many questions bars are: `3,757`, or `2 / 3,757` where they differ.

    Args:
        bars: `count` of each, None or absent where it is not known; None for no bar.
    """
    counts = [bar.get("count") if bar else None for bar in bars]
    known = {count for bar, count in zip(bars, counts, strict=True) if bar}
    if known <= {None}:
        return ""
    counts = list(known) if len(known) == 1 else counts
    return " / ".join("–" if count is None else f"{count:,}" for count in counts)


def _value(bar: Mapping[str, Any] | None, *, with_interval: bool = True) -> str:
    if bar is None or bar["value"] is None:
        return "–"
    found = bar["interval"] if with_interval else None
    return f"{bar['value']:.1f}" + (
        f" ({found['low']:.1f} to {found['high']:.1f})" if found else ""
    )


def _drawn(bar: Mapping[str, Any] | None, y: int, colour: str, highest: float | int) -> str:
    out = _bar(y, _WIDTH, "well")
    if bar and bar["value"]:
        out += _bar(y, _across(bar["value"], highest), colour)
    if bar and (found := bar["interval"]):
        low, high = _across(found["low"], highest), _across(found["high"], highest)
        path = f"M{low:.1f} {y + 2}v8M{low:.1f} {y + 6}H{high:.1f}M{high:.1f} {y + 2}v8"
        out += f'<path d="{path}" style="stroke:var(--ink);fill:none;stroke-width:1.6"/>'
    return out


def charts(families: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """Return cards with the charts of families of figures; a long family takes several.

    Args:
        families: `title`, `highest` and `rows` as `chart` takes them.
        unit: of the values.
    """
    cards = []
    for family in families:
        rows, highest = family["rows"], family["highest"]
        title = f"{family['title']}, {unit}"
        title += f", full bar: {highest:,g}" if highest != 100 else ""
        pieces = -(-len(rows) // MOST)
        size = -(-len(rows) // pieces)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            place = f" ({start + 1} to {start + len(part)} of {len(rows)})" if pieces > 1 else ""
            cards.append(pages.card(title + place, chart(part, highest=highest)))
    return cards


def key(names: Sequence[str]) -> str:
    """Return which colour stands for which model in charts with several bars a row."""
    marks = [
        f'<span><i style="background:var(--{_COLOURS[at % len(_COLOURS)]})"></i>'
        f"{pages.escape(name)}</span>"
        for at, name in enumerate(names)
    ]
    return f'<p class="key">{" ".join(marks)}</p>'


def _across(value: float | int, highest: float | int) -> float:
    return _WIDTH * min(max(value / highest, 0.0), 1.0)


def _bar(y: int, length: float | int, colour: str) -> str:
    return (
        f'<rect x="0" y="{y}" width="{length:.1f}" height="{_THICK}" rx="3" '
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


def graph(
    image: Image.Image,
    entities: graphs.Entities,
    *,
    node_attention: np.ndarray,
    edges: np.ndarray,
    words: Sequence[str] = (),
    word_attention: np.ndarray | Sequence[Sequence[float]] = (),
    caption: str = "",
) -> str:
    """Return a picture with its numbered entities, and what a model's scene graph made of them.

    Args:
        image: RGB image of the size that `entities.size` names.
        entities: the n nodes.
        node_attention: f32[n], share of a node's prompt attention that lies on the question.
        edges: f32[n, n], attention of the receiver (row) over the senders (columns).
        words: the m words of the question.
        word_attention: f32[n, m], attention of each node on each word.
        caption: of the picture.
    """
    numbers = [str(at + 1) for at in range(len(entities))]
    seen = overlay.draw_entities(image, entities, side=_SIDE, names=numbers, opacity=0.12)
    drawing = scene_graph.draw(
        image, entities, node_attention=node_attention, edges=edges, names=list(entities.labels),
        weighed=_WEIGHED, side=_SIDE,
    )  # fmt: skip
    heard = np.asarray(word_attention, np.float32).reshape(len(entities), -1)
    loudest = (
        [words[at] for at in heard.argmax(1)] if words and heard.size else ["–"] * len(numbers)
    )
    labels = [label or "–" for label in entities.labels or [""] * len(entities)]
    rows = [
        [number, label, f"{share:.3f}", word]
        for number, label, share, word in zip(numbers, labels, node_attention, loudest, strict=True)
    ]
    strong = scene_graph.arrows(np.asarray(edges), 2)[::-1]
    listed = [[f"{e.sender + 1} to {e.receiver + 1}", f"{e.weight:.3f}"] for e in strong]
    told = "scene graph: of these nodes, redder ones heed the question more; arrows by weight"
    return (
        pages.figure(seen, caption=caption)
        + f"<figure>{drawing}<figcaption>{told}</figcaption></figure>"
        + pages.fold("nodes and edges", _numbers(rows, np.asarray(node_attention), listed))
    )


def _numbers(rows: Sequence[Sequence], shares: np.ndarray, edges: Sequence[Sequence]) -> str:
    """Return the strongest nodes, by their number, and edges as tables, the others folded."""
    strongest = set(np.argsort(-shares, kind="stable")[:_NODES].tolist())
    near = [row for at, row in enumerate(rows) if at in strongest]
    far = [row for at, row in enumerate(rows) if at not in strongest]
    others = _tables(far, edges[_EDGES:])
    told = " and ".join(
        f"{len(part)} more {name}s"[: None if len(part) > 1 else -1]
        for part, name in ((far, "node"), (edges[_EDGES:], "edge"))
        if part
    )
    inner = _tables(near, edges[:_EDGES]) + (pages.fold(told, others) if others else "")
    return f'<div class="numbers">{inner}</div>'


def _tables(nodes: Sequence[Sequence], edges: Sequence[Sequence]) -> str:
    out = pages.table(["node", "label", "on the question", "most on"], nodes) if nodes else ""
    return out + (pages.table(["edge", "weight"], edges) if edges else "")


def item(
    found: Mapping[str, Any],
    picture: Picture,
    answers: Sequence[tuple[str, str | None, tuple[str, str]]],
    *,
    graph: str = "",
) -> str:
    """Return one question as a card.

    Args:
        found: `id`, and where known `question`, `wanted` and `kinds`.
        picture: its image, None where there is none, and words about it.
        answers: (who, what was said, its score in words and `good`, `bad` or nothing) each; None:
            no answer.
        graph: of `graph`, in place of the picture.
    """
    image, words = picture
    shown = pages.figure(image, caption=words, alt=words) if image else pages.note(words)
    shown = graph or shown
    lines = [(name, found[name], "") for name in ("question", "wanted") if found.get(name)]
    for who, text, (score, colour) in answers:
        said = "no answer" if text is None else text or "(empty)"
        lines.append((f"{who}, {score}", said, colour))
    rows = "".join(
        f'<dt>{pages.escape(name)}</dt><dd class="{colour}">{pages.escape(text)}</dd>'
        for name, text, colour in lines
    )
    kinds = pages.escape(json.dumps(list(found.get("kinds", ()))))
    return (
        f'<section class="card item" data-kinds="{kinds}"><h3>{pages.escape(found["id"])}</h3>'
        f'{shown if words or image or graph else ""}<dl class="qa">{rows}</dl></section>'
    )

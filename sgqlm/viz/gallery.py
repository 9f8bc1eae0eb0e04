"""A page of images with their entities, which are chosen in a table and lit in every picture.

Everything works by CSS alone (a chosen radio button lights what carries its class); a few lines of
script only let a tap on a picture choose, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from sgqlm.data import graphs
from sgqlm.viz import canvas, overlay, pages, panels, placing

# css pixels of a picture on a wide and on a narrow page, for which text and lines are laid out
WIDE, NARROW = 520, 322
_HEAT = (213, 94, 0)
_STYLE = """
:root { color-scheme: light dark; --well: #e9ecf1; --pick: #fff1c2; --warn: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #a9b1c1; --line: #39404f;
  --paper: #1b202a; --back: #11151c; --accent: #8fb3ff; --well: #262c38; --pick: #4a3f16;
  --warn: #ff8a80; } }
.defs { position: absolute; }
.rec > h2 { margin: 0 0 4px; font-size: 1.15rem; overflow-wrap: anywhere; }
.rec svg text { font-family: "DejaVu Sans", Verdana, system-ui, sans-serif; }
.rec figure svg { background: var(--well); border-radius: 8px; }
.cols { display: grid; gap: 0 20px; grid-template-columns: minmax(0, 1fr); }
.left figure { max-width: 760px; }
.left figure.coverage { max-width: 440px; }
main { max-width: 1260px; }
@media (min-width: 1160px) {
  .cols { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); }
  .cols > div { position: sticky; top: 8px; align-self: start; } }
.narrow { display: none; }
@media (max-width: 559px) { .wide { display: none; } .narrow { display: inline; } }
.solo, .now span { display: none; }
.now { min-height: 1.5em; font-size: .875rem; margin: 8px 0; overflow-wrap: anywhere; }
.rec:not(:has(.pick:checked)) .now .all { display: inline; }
.rec:has(.pick:checked) .o, .rec:has(tr.row:hover) .o { opacity: .06; }
.rec:has(.pick:checked) .crowd, .rec:has(tr.row:hover) .crowd { opacity: 0; }
.rec:has(.no-m:not(:checked)) .m, .rec:has(.no-b:not(:checked)) .b,
.rec:has(.no-l:not(:checked)) .l { display: none !important; }
.hit { cursor: pointer; pointer-events: all; }
.tools { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .875rem; margin: 0 0 6px; }
.tools label, .ents label { cursor: pointer; }
.ents td { padding: 4px 8px 4px 0; }
.ents label { display: flex; gap: 6px; align-items: center; }
.ents .name { overflow-wrap: anywhere; min-width: 6em; }
.ents td.number { white-space: nowrap; overflow-wrap: normal; }
.chip { white-space: nowrap; overflow-wrap: normal; display: inline-block; min-width: 1.9em;
  text-align: center; border-radius: 4px;
  padding: 0 4px; font-weight: 600; font-size: .8125rem; border: 1px solid var(--line); }
.small { font-size: .8125rem; color: var(--soft); }
.warn { color: var(--warn); font-weight: 600; overflow-wrap: anywhere; }
.words { width: 60%; }
.words span { display: inline-block; padding: 1px 4px; margin: 1px; border-radius: 4px;
  overflow-wrap: anywhere; }
.key { white-space: nowrap; }
.ramp { display: inline-block; width: 6em; height: .8em; border-radius: 3px; margin: 0 .4em;
  vertical-align: middle; border: 1px solid var(--line); }
.jump { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .875rem; margin: 0 0 14px; }
.jump a { color: var(--accent); overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
@media (max-width: 559px) { .rec .far { display: none; } .card { padding: 10px; }
  main { padding: 14px 10px 40px; } }
"""
_SCRIPT = """
document.querySelectorAll('.rec').forEach(function (rec) {
  rec.addEventListener('click', function (event) {
    var hit = event.target.closest('.hit, tr.row');
    if (!hit || event.target.closest('label, input, a, summary')) return;
    var name = Array.from(hit.classList).find(function (c) { return /^[oe]\\d+$/.test(c); });
    var pick = name && rec.querySelector('input.e' + name.slice(1));
    if (pick && pick.checked) pick = rec.querySelector('input.none');
    if (pick) pick.checked = true;
  });
});
"""


def page(
    title: str,
    cards: Sequence[str],
    *,
    subtitle: str = "",
    names: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    most: int = 32,
) -> str:
    """Return the whole page.

    Args:
        title: plain text.
        cards: of `card`, in order.
        subtitle: a line under the title.
        names: what each card is called in the list of links.
        about: how the entities were made; nested values are spelled out.
        most: entities of the image that has most of them.

    Returns:
        The HTML document; it loads nothing from elsewhere.
    """
    links = "".join(f'<a href="#r{i}">{pages.escape(name)}</a>' for i, name in enumerate(names))
    body = [f'<nav class="jump" aria-label="images">{links}</nav>'] if len(names) > 1 else []
    if about:
        facts = pages.table(["setting", "value"], flat(about))
        body.append(pages.fold("How these entities were made", facts))
    return pages.page(
        title, [*body, *cards], subtitle=subtitle, style=_STYLE + lights(most), script=_SCRIPT
    )


def lights(count: int) -> str:
    """Return the CSS that lights entity k in the pictures while it is chosen or under the mouse."""
    rules = []
    for k in range(1, count + 1):
        on = f".rec:has(.e{k}:is(:checked, :hover))"
        rules.append(f"{on} .o{k} {{ opacity: 1 !important; display: inline; }}")
        rules.append(f"{on} tr.e{k} {{ background: var(--pick); }}")
    return "\n".join(rules)


def card(record: panels.Record, index: int) -> str:
    """Return one image as HTML.

    Args:
        record: what to show.
        index: of the image on the page.

    Returns:
        An article with pictures and tables.
    """
    head = f"<h2>{pages.escape(record.key)}</h2>{_status(record)}"
    found, has_entities = record.entities, bool(record.entities)
    left, right = [], []
    if record.image is not None:
        picture = panels.photo(record.image, f"photo{index}")
        shown = [
            *panels.entities(record, picture),
            *panels.graph(record, picture),
            *panels.relations(record, picture),
            *panels.covers(record, picture),
        ]
        left = [canvas.define([(picture.name, picture.image)])]
        left += [_tools(), _now(record)] if has_entities else []
        left += map(_figure, shown)
    if found is not None and len(found):
        right = [entity_table(record, index), _key(record), word_table(record)]
        right += [_tags(found), _triples(record)]
    body = f'<div class="left">{"".join(left)}</div><div>{"".join(right)}</div>'
    return f'<article class="card rec" id="r{index}">{head}<div class="cols">{body}</div></article>'


def entity_table(record: panels.Record, index: int) -> str:
    """Return the table in which entities are chosen: label, scores, share of the image, box."""
    found, attention = record.entities, record.attention
    assert found is not None
    heard = (
        {}
        if attention is None
        else dict(zip(map(int, attention.nodes), attention.on_question, strict=True))
    )
    shares = 100 * areas(found) / (found.size[0] * found.size[1])
    has_quality, has_question = len(found.mask_scores) > 0, attention is not None
    texts = ["entity"] + ["label"] * _has_labels(found)
    head = ["score"] + ["mask"] * has_quality + ["question"] * has_question
    head += ["% area", "x0, y0, x1, y1"]
    near = len(head) - 2
    cells = "".join(f'<th scope="col">{name}</th>' for name in texts)
    cells += "".join(
        f'<th scope="col" class="number{" far" * (k >= near)}">{name}</th>'
        for k, name in enumerate(head)
    )
    rows = []
    for i, colour in enumerate(overlay.colours(len(found))):
        says = filter(None, panels.label_parts(found, i)[:2])
        numbers = [f"{found.scores[i]:.2f}"]
        if has_quality:
            numbers.append(f"{found.mask_scores[i]:.2f}")
        if has_question:
            numbers.append(f"{heard[i]:.2f}" if i in heard else "no node")
        box = ", ".join(f"{v:.0f}" for v in found.boxes[i])
        values = [*numbers, f"{shares[i]:.1f}", box]
        line = "".join(
            f'<td class="number{" far" * (k >= near)}">{value}</td>'
            for k, value in enumerate(values)
        )
        rows.append(
            f'<tr class="row e{i + 1}"><td><label><input type="radio" name="pick{index}" '
            f'class="pick e{i + 1}" aria-label="entity {pages.escape(" ".join(says))}">'
            f'<span class="chip" style="background:{_css(colour)};color:{overlay.ink(colour)}">'
            f"{i + 1}</span></label></td>"
            f"{_label(found, i)}{line}</tr>"
        )
    every = (
        f'<p class="tools"><label><input type="radio" name="pick{index}" class="none" checked> '
        "all entities</label></p>"
    )
    body = f'<table class="ents"><tr>{cells}</tr>{"".join(rows)}</table>'
    return f'{every}<div class="scroll">{body}</div>'


def word_table(record: panels.Record) -> str:
    """Return which words of the question light which node; nothing without a question."""
    attention, found = record.attention, record.entities
    if attention is None or found is None or not len(attention.words):
        return ""
    weights = np.asarray(attention.on_words, np.float64)
    top = max(float(weights.max(initial=0.0)), 1e-9)
    colours = overlay.colours(len(found))
    rows = []
    for k in np.argsort(-np.asarray(attention.on_question), kind="stable"):
        i = int(attention.nodes[k])
        name = pages.escape(found.labels[i] if len(found.labels) else "")
        chip = f'<span class="chip" style="background:{_css(colours[i])};'
        chip += f'color:{overlay.ink(colours[i])}">{i + 1}</span> '
        words = "".join(
            f'<span style="background:{_css(_HEAT, weight / top)}" '
            f'title="{100 * weight:.1f} %">{pages.escape(word)}</span>'
            for word, weight in zip(attention.words, weights[k], strict=True)
        )
        share = f"{attention.on_question[k]:.2f}"
        rows.append(
            f'<tr class="row e{i + 1}"><td>{chip}{name}</td><td class="number">{share}</td>'
            f'<td class="words">{words}</td></tr>'
        )
    head = "<tr><th>node</th><th>question</th><th>each word</th></tr>"
    ramp = f"linear-gradient(90deg, {_css(_HEAT, 0.0)}, {_css(_HEAT, 1.0)})"
    legend = (
        f'<p class="small">Attention of a node on a word: 0<span class="ramp" '
        f'style="background:{ramp}"></span>{100 * top:.1f} %. What is not on a word lies on the '
        "null token.</p>"
    )
    table = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    title = f"Words of the question and the nodes they light: {attention.question}"
    return f"<details open><summary>{pages.escape(title)}</summary>{legend}{table}</details>"


def areas(found: graphs.Entities) -> np.ndarray:
    """Return the pixels of each mask, int[n]."""
    from pycocotools import mask as coco_mask

    codes = found.coded_masks()
    plain = [
        code
        if isinstance(code["counts"], bytes | str)
        else graphs.encode_rle(graphs.decode_rle(code))
        for code in codes
    ]
    return np.asarray(coco_mask.area(cast(Any, plain)) if plain else np.zeros(0, int))


def flat(value: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Return nested settings as rows of name and value; empty ones are left out."""
    rows: list[list[str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            rows += flat(item, f"{prefix}{key}.")
        elif isinstance(item, list | tuple):
            words = [", ".join(map(str, i)) if isinstance(i, list | tuple) else i for i in item]
            shown = "; ".join(map(str, words[:20])) + f"; and {len(words) - 20} more" * (
                len(words) > 20
            )
            rows += [[f"{prefix}{key}", shown]] if words else []
        elif item not in ("", None):
            rows.append([f"{prefix}{key}", str(item)])
    return rows


def _figure(panel: panels.Panel) -> str:
    width = panel.size[0]
    layers = "".join(
        f'<g class="{name}">{"".join(s.svg() for s in panel.over(width / pixels))}</g>'
        for name, pixels in (("wide", WIDE), ("narrow", NARROW))
    )
    under = [*panel.under, *(shape for _, shape in panel.solo)]
    inner = "".join(shape.svg() for shape in under) + layers
    picture = canvas.frame_svg(inner, panel.size, label=panel.caption)
    note = pages.escape(panel.caption)
    if panel.kind == "coverage":
        ramp = "linear-gradient(90deg, #fff, #555)"
        bar = f'0<span class="ramp" style="background:{ramp}"></span>100 %'
        note += f'; share of a patch: <span class="key">{bar}</span>'
    return f'<figure class="{panel.kind}">{picture}<figcaption>{note}</figcaption></figure>'


def _status(record: panels.Record) -> str:
    found = record.entities
    size = f"{found.size[1]} x {found.size[0]} pixels" if found is not None else ""
    if record.status.startswith("error"):
        lines = f'<p class="warn">{pages.escape(record.status)}</p>'
    elif found is None or not len(found):
        lines = f'<p class="warn">empty: no entity was found; {pages.escape(size)}</p>'
    else:
        noun = "entity" if len(found) == 1 else "entities"
        lines = pages.note(f"{len(found)} {noun}; {size}")
    return lines + "".join(f'<p class="warn">{pages.escape(note)}</p>' for note in record.notes)


def _tools() -> str:
    boxes = "".join(
        f'<label><input type="checkbox" class="no-{name[0]}" checked> {name}</label>'
        for name in ("masks", "boxes", "labels")
    )
    return f'<div class="tools" role="group" aria-label="layers">{boxes}</div>'


def _now(record: panels.Record) -> str:
    """Return the line that names the chosen entity under the pictures."""
    found = record.entities
    assert found is not None
    texts = [" ".join(filter(None, panels.label_parts(found, i))) for i in range(len(found))]
    lines = "".join(
        f'<span class="o{i + 1}"><b>{pages.escape(text)}</b></span>' for i, text in enumerate(texts)
    )
    hint = '<span class="all soft">Choose an entity in the table, or tap it in a picture.</span>'
    return f'<p class="now" aria-live="polite">{hint}{lines}</p>'


def _key(record: panels.Record) -> str:
    attention = record.attention
    if attention is None or not len(attention.nodes):
        return ""
    values = np.asarray(attention.on_question)
    if not attention.question:
        return pages.note("The graph hears no question, so all its nodes are pale.")
    low, high = float(values.min()), float(values.max())
    ramp = "linear-gradient(90deg, rgb(246, 232, 180), rgb(201, 42, 42))"
    return (
        f'<p class="small">Nodes, share of the attention on the question: {low:.2f}'
        f'<span class="ramp" style="background:{ramp}"></span>{high:.2f}.</p>'
    )


def _label(found: graphs.Entities, i: int) -> str:
    """Return the cell of the label and what else the entity may be; none where all are empty."""
    if not _has_labels(found):
        return ""
    others = found.alternatives[i] if len(found.alternatives) else ()
    words = ", ".join(f"{label} {score:.2f}" for label, score in others)
    more = f'<div class="small">or {pages.escape(words)}</div>' if words else ""
    name = found.labels[i] if len(found.labels) else ""
    return f'<td class="name">{pages.escape(name) or "–"}{more}</td>'


def _has_labels(found: graphs.Entities) -> bool:
    return any(found.labels) or any(found.alternatives)


def _tags(found: graphs.Entities) -> str:
    if not found.tags:
        return ""
    words = ", ".join(f"{tag} {score:.2f}" for tag, score in found.tags)
    return pages.fold(f"{len(found.tags)} tags of the whole image", pages.note(words))


def _triples(record: panels.Record) -> str:
    known = record.relations
    if known is None or not known.triples:
        return ""
    rows = [[known.names[s], predicate, known.names[o]] for s, predicate, o in known.triples]
    noun = "relation" if len(rows) == 1 else "relations"
    title = f"{len(rows)} annotated {noun}"
    return pages.fold(title, pages.table(["subject", "predicate", "object"], rows))


def _css(colour: overlay.Colour, alpha: placing.Number = 1.0) -> str:
    return f"rgba({colour[0]}, {colour[1]}, {colour[2]}, {float(alpha):.3f})"

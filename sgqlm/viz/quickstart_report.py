"""The quickstart's report: one HTML page with curves, accuracy and what the model saw."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import curves, overlay, pages, prototypes, scene_graph

ARMS = {
    "test": "full model",
    "prior": "answer prior",
    "no_graph": "graph removed",
    "shuffled_graph": "other graph",
    "edges_permuted": "edges permuted",
}
FAMILIES = {
    "attribute": "attribute",
    "one_hop": "one-hop relation",
    "exist": "exist",
    "count": "count",
    "left_right": "left or right",
}
_ROW = "display:flex;flex-wrap:wrap;gap:18px"
_PICTURES = (
    "flex:3 1 560px;min-width:0;display:grid;gap:10px;"
    "grid-template-columns:repeat(auto-fit,minmax(138px,1fr))"
)
_TILES = "display:grid;gap:10px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))"


@dataclasses.dataclass(frozen=True)
class Example:
    """One test image and everything the report shows of it.

    Attributes:
        image: the photograph or scene.
        entities: the nodes that the model was given.
        node_attention: f32[n], share of each node's prompt attention on the question.
        edges: f32[n, n], attention of the receiver over the senders.
        nearest: int[grid, grid], prototype of each patch; None without prototypes.
        square: the image as the model sees it; under the prototype map.
        question: what was asked.
        answer: what the model answered.
        truth: the right answer.
        asked: pairs of a question that the model asked itself and its own answer.
    """

    image: Image.Image
    entities: graphs.Entities
    node_attention: np.ndarray
    edges: np.ndarray
    nearest: np.ndarray | None
    square: Image.Image
    question: str
    answer: str
    truth: str
    asked: Sequence[tuple[str, str]] = ()


def write(
    folder: str | os.PathLike,
    report: Mapping,
    *,
    losses: Mapping[str, Mapping[str, curves.Series]],
    examples: Sequence[Example],
) -> pathlib.Path:
    """Write `report.html`.

    Args:
        folder: where to.
        report: the content of `report.json`, see `evals.report`.
        losses: stage -> name of the curve -> points (step, loss).
        examples: test images to show.

    Returns:
        The path of the page.
    """
    body = [
        _summary(report),
        pages.heading("Loss of each stage"),
        pages.grid(pages.card(name, curves.lines(found)) for name, found in losses.items()),
        pages.heading("Accuracy on test scenes"),
        pages.note(
            "Greedy generation and exact match. The prior is the most frequent training answer of "
            "each kind of question. The other three take something away at test time only, so "
            "they are diagnostics, not trained rivals."
        ),
        pages.grid(_family(report, *item) for item in ({"": "all questions"} | FAMILIES).items()),
        '<div style="height:16px"></div>' + pages.card("", accuracy_table(report)),
        pages.heading("Questions the model asks"),
        _asked(report["asked"]),
        pages.heading(f"{len(examples)} test images"),
        pages.note(
            "In this order: the image; its entities as the noisy detector gives them; the "
            "scene graph, nodes larger and redder the more of their attention lies on the "
            "question, arrows as wide as the attention between nodes (the two strongest per node); "
            "the prototype that each patch belongs to."
        ),
        *(example_card(i, example) for i, example in enumerate(examples)),
    ]
    page = pages.page(
        "sgqlm quickstart",
        body,
        subtitle="A small model through every stage on procedural scenes, from nothing.",
    )
    return pages.write(pathlib.Path(folder) / "report.html", page)


def accuracy_table(report: Mapping) -> str:
    """Return the accuracy of every arm and family as an HTML table."""
    rows = [
        [name, *(_share(report[arm], family) for family in ("", *FAMILIES))]
        for arm, name in ARMS.items()
    ]
    return pages.table(["", "all", *FAMILIES.values()], rows)


def _summary(report: Mapping) -> str:
    test, asked = report["test"], report["asked"]
    minutes, seconds = divmod(round(report["seconds"]), 60)
    facts = {
        "time": f"{minutes} min {seconds:02d} s",
        "test accuracy": _share(test, ""),
        "attribute questions": _share(test, "attribute"),
        "prior, attribute": _share(report["prior"], "attribute"),
        "one-hop relation": _share(test, "one_hop"),
        "asked: well formed": _format(asked["well_formed_share"]),
    }
    tiles = (
        f'<div class="card" style="margin:0"><div class="soft">{pages.escape(name)}</div>'
        f'<div style="font-size:1.35rem;font-weight:600">{pages.escape(value)}</div></div>'
        for name, value in facts.items()
    )
    return f'<div style="{_TILES}">{"".join(tiles)}</div>'


def _family(report: Mapping, family: str, name: str) -> str:
    values = {label: _value(report[arm], family) for arm, label in ARMS.items()}
    return pages.card(name, curves.bars(values))


def _asked(asked: Mapping) -> str:
    rows = [
        ["questions, one per test image", asked["questions"]],
        ["different ones", _format(asked["distinct_share"])],
        [
            "well formed: the grammar parses and all it names is there",
            _format(asked["well_formed_share"]),
        ],
        [
            "the same, asked with another scene's graph",
            _format(asked["well_formed_share_shuffled"]),
        ],
    ]
    return pages.card("", pages.table(["", "share"], rows))


def example_card(index: int, example: Example) -> str:
    """Return one image with its entities, graph, prototypes, question and answer as HTML."""
    count = len(example.entities.boxes)
    entities = overlay.draw_entities(
        example.image,
        example.entities,
        side=360,
        names=[str(i + 1) for i in range(count)],
        opacity=0.12,
    )
    graph = scene_graph.draw(
        example.image,
        example.entities,
        node_attention=example.node_attention,
        edges=example.edges,
    )
    pictures = [
        pages.figure(overlay.fit(example.image.convert("RGB"), 360), caption="image"),
        pages.figure(entities, caption=f"{count} entities"),
        f"<figure>{graph}<figcaption>scene graph</figcaption></figure>",
    ]
    if example.nearest is not None:
        used = len(np.unique(example.nearest))
        tinted = prototypes.draw(example.square, example.nearest)
        pictures.append(pages.figure(tinted, caption=f"{used} prototypes"))
    is_right = example.answer.strip().lower() == example.truth.strip().lower()
    colour, mark = ("#1d7a46", "✓") if is_right else ("#b3261e", "✗")
    words = [
        f"<p><b>{pages.escape(example.question)}</b><br>"
        f'<span style="color:{colour};font-weight:600">{mark} {pages.escape(example.answer)}</span>'
        f'<span class="soft"> &ensp;truth: {pages.escape(example.truth)}</span></p>',
        _tags(example.entities),
        '<p class="soft" style="margin:0">The model asks, and answers:</p>' * bool(example.asked),
        *(
            f'<p style="margin:0 0 4px">{pages.escape(question)} <b>{pages.escape(answer)}</b></p>'
            for question, answer in example.asked
        ),
    ]
    body = (
        f'<div style="{_ROW}"><div style="{_PICTURES}">{"".join(pictures)}</div>'
        f'<div style="flex:1 1 250px;min-width:0">{"".join(words)}</div></div>'
    )
    return pages.card(f"{index + 1}", body)


def _tags(entities: graphs.Entities) -> str:
    tags = [f"{i + 1} {label}" for i, label in enumerate(entities.labels) if label]
    return pages.note("Predicted tags: " + ", ".join(tags)) if tags else ""


def _value(arm: Mapping, family: str) -> float | None:
    return arm["by_family"][family] if family else arm["accuracy"]


def _share(arm: Mapping, family: str) -> str:
    return _format(_value(arm, family))


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"

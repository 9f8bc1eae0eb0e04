"""The pictures of one image: masks, boxes, scene graph, annotated relations, coverage."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import canvas, coverage, overlay, placing, scene_graph

Number = float | int
PHOTO = 960  # pixels of the longer side of an inlined photograph
KINDS = ("masks", "boxes", "graph", "relations", "coverage")  # of the panels of a sheet
MOST_RELATIONS = 24  # annotated relations in one picture; a table has all
_DARK = "#10141c"


@dataclasses.dataclass(frozen=True)
class Attention:
    """What a model makes of the entities of an image.

    Attributes:
        question: the prompt; empty for an unprompted graph.
        nodes: int[n], index of each node among the entities of the image.
        on_question: f32[n], share of a node's prompt attention on the words of the question.
        edges: f32[n, n], attention of the receiver (row) over the senders.
        words: m words of the question.
        on_words: f32[n, m].
    """

    question: str
    nodes: np.ndarray
    on_question: np.ndarray
    edges: np.ndarray
    words: Sequence[str]
    on_words: np.ndarray


@dataclasses.dataclass(frozen=True)
class Relations:
    """An annotated scene graph.

    boxes: f32[m, 4] in pixels; names: of the m boxes; triples: (subject, predicate, object).
    """

    boxes: np.ndarray
    names: Sequence[str]
    triples: Sequence[tuple[int, str, int]]


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and all that is known of it.

    Attributes:
        key: of the image.
        image: RGB, of any resolution; None where it cannot be shown.
        entities: None where the extraction failed.
        status: `ok`, `empty` or `error: ...`.
        attention: of a model, where one was asked.
        relations: that are annotated, where the data set has some.
        views: patch grids whose coverage is shown.
        notes: what a reader has to know, such as that the image has changed.
        incoming: arrows drawn per node of the scene graph.
    """

    key: str
    image: Image.Image | None
    entities: graphs.Entities | None
    status: str = "ok"
    attention: Attention | None = None
    relations: Relations | None = None
    views: Sequence[coverage.View] = ()
    notes: Sequence[str] = ()
    incoming: int = 2


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        kind: one of `KINDS`, or `entities`, which is masks and boxes in one.
        caption: a sentence.
        size: width and height of the canvas.
        under: shapes that do not depend on the size on the page.
        over: from the units of a pixel on the page, the shapes on top: lines, nodes, text.
        solo: (index of an entity, shape) that is shown when the entity is chosen.
    """

    kind: str
    caption: str
    size: canvas.Size
    under: Sequence[canvas.Shape]
    over: Callable[[Number], list[canvas.Shape]]
    solo: Sequence[tuple[int, canvas.Shape]] = ()


def photo(image: Image.Image, name: str) -> canvas.Picture:
    """Return the photograph of a record at the size that is inlined."""
    small = image if max(image.size) <= PHOTO else overlay.fit(image, PHOTO)
    return canvas.Picture(small.convert("RGB"), (0, 0, 1, 1), name)


def entities(record: Record, picture: canvas.Picture) -> list[Panel]:
    """Return the panel of a page: masks, boxes and labels in one, each in a layer of its own."""
    masks, boxes = both(record, picture)
    if not boxes:
        return masks

    def over(px: Number) -> list[canvas.Shape]:
        return boxes[0].over(px)

    caption = "masks, boxes and labels with their scores"
    return [dataclasses.replace(masks[0], kind="entities", caption=caption, over=over)]


def both(record: Record, picture: canvas.Picture) -> tuple[list[Panel], list[Panel]]:
    """Return the panel of the masks and that of the boxes; the second is left out if none is there.

    Args:
        record: with its image.
        picture: the photograph, see `photo`.

    Returns:
        Two lists of at most one panel.
    """
    found = record.entities
    size = found.size if found is not None else _size(record.image)
    frame = placing.frame((0, 0, size[1], size[0]))
    back = dataclasses.replace(picture, box=frame.box, is_blocky=_is_blocky(picture, frame))
    if found is None or not len(found):
        plain = Panel("masks", "the image", (frame.width, frame.height), [back], lambda px: [])
        return [plain], []
    colours = overlay.colours(len(found))
    box = frame.box
    scaled = overlay.scale_masks(found, (max(1, round(box[2])), max(1, round(box[3]))))
    crowd = canvas.Picture(owners(scaled, colours), box, tag="o m crowd")
    solo = []
    for i in range(len(found)):
        if (cut := silhouette(scaled[i], colours[i])) is not None:
            image, (x, y) = cut
            place = (box[0] + x, box[1] + y, image.width, image.height)
            solo.append((i, canvas.Picture(image, place, tag=f"m solo o{i + 1}")))
    flat = (frame.width, frame.height)
    names = [label_parts(found, i) for i in range(len(found))]
    numbers = [(number, "", "") for number, _, _ in names]

    def tags(px: Number) -> list[canvas.Shape]:
        anchors = [_anchor(mask, frame, i, found) for i, mask in enumerate(scaled)]
        return labels(numbers, anchors, found.scores, colours, frame, px)

    def over(px: Number) -> list[canvas.Shape]:
        places = [frame.rect(*row) for row in _clipped(found)]
        return [
            *outlines(places, colours, px),
            *labels(names, places, found.scores, colours, frame, px),
        ]

    count = f"{len(found)} {'entity' if len(found) == 1 else 'entities'}"
    return (
        [Panel("masks", f"masks of {count}", flat, [back, crowd], tags, solo)],
        [Panel("boxes", "boxes with labels and scores", flat, [back], over)],
    )


def graph(record: Record, picture: canvas.Picture) -> list[Panel]:
    """Return the panel of a model's scene graph; none without a model or without nodes."""
    attention, found = record.attention, record.entities
    if attention is None or found is None or not len(attention.nodes):
        return []
    frame = placing.frame((0, 0, found.size[1], found.size[0]))
    ids = [int(i) for i in attention.nodes]
    nodes = found.take(ids)
    edges = scene_graph.arrows(np.asarray(attention.edges), record.incoming)
    top = max([edge.weight for edge in edges], default=1.0)
    slim = min(1.0, 12 / max(len(edges), 1)) / top  # many arrows have to be thin ones
    shown = [edge._replace(weight=edge.weight * slim) for edge in edges]
    heat = scene_graph.scale(np.asarray(attention.on_question))

    def over(px: Number) -> list[canvas.Shape]:
        return scene_graph.shapes(
            frame.place(_centres(nodes)),
            shown,
            px=px,
            area=(0, 0, frame.width, frame.height),
            heat=heat,
            names=list(nodes.labels),
            ids=ids,
        )

    caption = f"scene graph of {len(ids)} nodes"
    if edges:
        caption += "; an arrow leads from sender to receiver and is as wide as the attention, "
        caption += f"up to {top:.2f}; the {len(edges)} strongest are drawn"
    size = (frame.width, frame.height)
    return [Panel("graph", caption, size, _pale(picture, frame), over)]


def relations(record: Record, picture: canvas.Picture) -> list[Panel]:
    """Return the panel of the annotated relations; none where there are none."""
    known, found = record.relations, record.entities
    if known is None or not known.triples or found is None:
        return []
    frame = placing.frame((0, 0, found.size[1], found.size[0]))
    shown = list(known.triples)[:MOST_RELATIONS]
    used = sorted({i for subject, _, object_ in shown for i in (subject, object_)})
    place = {index: k for k, index in enumerate(used)}
    boxes = np.asarray(known.boxes, np.float64).reshape(-1, 4)[used]
    numbers = match(boxes, found.boxes)
    colours = overlay.colours(max([len(found), *(n + 1 for n in numbers)]))
    edges = [scene_graph.Arrow(place[s], place[o], 0.25, text) for s, text, o in _merged(shown)]

    def over(px: Number) -> list[canvas.Shape]:
        return scene_graph.shapes(
            frame.place((boxes[:, :2] + boxes[:, 2:]) / 2),
            edges,
            px=px,
            area=(0, 0, frame.width, frame.height),
            names=[known.names[i] for i in used],
            ids=numbers,
            colours=[colours[n] if n >= 0 else (91, 100, 117) for n in numbers],
        )

    more = f", the first {len(shown)} of {len(known.triples)}" * (len(known.triples) > len(shown))
    caption = f"annotated relations{more}; the model never sees them"
    size = (frame.width, frame.height)
    return [Panel("relations", caption, size, _pale(picture, frame), over)]


def covers(record: Record, picture: canvas.Picture) -> list[Panel]:
    """Return one panel a view: coverage of the patches on the model's square."""
    found = record.entities
    if found is None or not len(found):
        return []
    out = []
    for view in record.views:
        values, colours = view.of(found), np.array(overlay.colours(len(found)), np.uint8)
        frame = placing.frame(view.plane(found.size), margin=0.01)
        image = frame.rect(0, 0, found.size[1], found.size[0])
        square = frame.rect(*view.window(found.size))
        under = [
            *coverage.ground(frame, found.size, view),
            *_pale(dataclasses.replace(picture, box=image), frame, place=image),
            canvas.Picture(
                coverage.overview(values, overlay.colours(len(found))),
                square,
                is_blocky=True,
                tag="o crowd",
                opacity=0.8,
            ),
        ]
        solo = [
            (i, canvas.Picture(picture_, square, is_blocky=True, tag=f"solo o{i + 1}"))
            for i, picture_ in enumerate(map(coverage.heat, values, colours))
        ]

        def over(px: Number, frame=frame, view=view) -> list[canvas.Shape]:
            return coverage.grid_lines(frame, found.size, view, px)

        what = "padded" if view.fit == "pad" else "cropped"
        caption = f"coverage of the {view.grid} x {view.grid} patches of the {what} square"
        out.append(Panel("coverage", caption, (frame.width, frame.height), under, over, solo))
    return out


def owners(masks: np.ndarray, colours: Sequence[overlay.Colour]) -> Image.Image:
    """Return all masks as one picture in which each pixel has the colour of its smallest mask.

    Args:
        masks: bool[n, h, w].
        colours: n colours.

    Returns:
        RGBA of w x h pixels, transparent where no mask is.
    """
    owner = np.full(masks.shape[1:], -1)
    for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
        owner[masks[i]] = i
    paint = np.array([*colours, (0, 0, 0)], np.uint8)
    wide = np.pad(owner, 1, mode="edge")
    edge = np.zeros(owner.shape, bool)
    for other in (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]):
        edge |= other != owner
    alpha = np.where(owner < 0, 0, np.where(edge, 255, 105)).astype(np.uint8)
    return Image.fromarray(np.dstack([paint[owner], alpha]))


def silhouette(
    mask: np.ndarray, colour: overlay.Colour
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Return one mask, filled and outlined, cut to what it covers, and where that begins (x, y)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    wide = np.pad(part, 2)
    inner = part.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        inner &= wide[dy : dy + part.shape[0], dx : dx + part.shape[1]]
    image = Image.fromarray(part.astype(np.uint8) + (part & ~inner), "P")
    image.putpalette([0, 0, 0, *colour, *colour])
    image.info["transparency"] = bytes([0, 150, 255])
    return image, (int(columns[0]), int(rows[0]))


def label_parts(entities: graphs.Entities, i: int) -> tuple[str, str, str]:
    """Return number, name (or "") and score of an entity as text."""
    name = entities.labels[i] if len(entities.labels) else ""
    return str(i + 1), name, f"{entities.scores[i]:.2f}"


def label_forms(parts: tuple[str, str, str], size: Number, room: Number) -> list[str]:
    """Return what a label may say, the fullest first, each no wider than `room`.

    Args:
        parts: number, name and score; an empty one is left out.
        size: of the text.
        room: widest text; a longer name ends in an ellipsis.

    Returns:
        One to three texts: number, name and score; number and name; the number.
    """
    number, name, score = parts
    forms = []
    for others in ([number, score], [number]):
        taken = placing.measure(" ".join([*others, ""]), size)
        short = placing.shorten(name, size, room - taken)
        forms.append(" ".join(part for part in (number, short, *others[1:]) if part))
    return list(dict.fromkeys([*forms, number]))


def outlines(
    boxes: Sequence[placing.Box], colours: Sequence[overlay.Colour], px: Number
) -> list[canvas.Shape]:
    """Return the boxes, large ones below."""
    order = sorted(range(len(boxes)), key=lambda i: -boxes[i][2] * boxes[i][3])
    return [
        canvas.Rect(boxes[i], "", _hex(colours[i]), 1.8 * px, halo=_DARK, tag=f"o b hit o{i + 1}")
        for i in order
    ]


def labels(
    parts: Sequence[tuple[str, str, str]],
    anchors: Sequence[placing.Box],
    scores: np.ndarray,
    colours: Sequence[overlay.Colour],
    frame: placing.Frame,
    px: Number,
) -> list[canvas.Shape]:
    """Return labels that do not cover each other; the surest entity is placed first.

    Args:
        parts: number, name and score of each entity.
        anchors: what each belongs to, x, y, width, height in the canvas.
        scores: f32[n].
        colours: n colours.
        frame: the canvas.
        px: units of one pixel on the page.

    Returns:
        Pills, and a line to the anchor of each that had to move away from it.
    """
    size = 12 * px
    order: list[int] = np.argsort(-np.asarray(scores), kind="stable").tolist()
    texts = [label_forms(parts[i], size, 0.42 * frame.width) for i in order]
    sizes = [[(placing.measure(t, size) + 0.7 * size, 1.35 * size) for t in row] for row in texts]
    area = (0, 0, frame.width, frame.height)
    places = placing.place_labels(sizes, [anchors[i] for i in order], area)
    lines: list[canvas.Shape] = []
    pills: list[canvas.Shape] = []
    for i, row, place in zip(order, texts, places, strict=True):
        if place is None:
            continue
        (form, box), tag = place, f"o l hit o{i + 1}"
        middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        x, y, w, h = anchors[i]
        if not (_meet(box[0], box[2], x, w) and _meet(box[1], box[3], y, h)):
            ends = [(x + w / 2, y + h / 2), middle]
            lines.append(canvas.Line(ends, _hex(colours[i]), 1.4 * px, 1.0, _DARK, tag=tag))
        pills.append(
            canvas.Rect(box, _hex(colours[i]), "#ffffff", 0.7 * px, 3 * px, halo="", tag=tag)
        )
        pills.append(canvas.Text(middle, row[form], size, overlay.ink(colours[i]), tag=tag))
    return [*lines, *pills]


def match(boxes: np.ndarray, others: np.ndarray) -> list[int]:
    """Return for each box the other box that is the same (IoU above 0.9), or -1."""
    found = []
    for box in np.asarray(boxes, np.float64).reshape(-1, 4):
        low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
        inter = np.maximum(high - low, 0).prod(1)
        areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
        iou = inter / np.maximum(areas - inter, 1e-9)
        best = int(iou.argmax()) if len(iou) else -1
        found.append(best if best >= 0 and iou[best] > 0.9 and best not in found else -1)
    return found


def _merged(triples: Sequence[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """Join the predicates of one pair."""
    joined: dict[tuple[int, int], list[str]] = {}
    for subject, predicate, object_ in triples:
        names = joined.setdefault((subject, object_), [])
        if predicate not in names:
            names.append(predicate)
    return [(s, ", ".join(names), o) for (s, o), names in joined.items()]


def _pale(picture: canvas.Picture, frame: placing.Frame, place=None) -> list[canvas.Shape]:
    """Return the photograph, faded, so that what lies on it can be read."""
    box = place or frame.box
    blocky = _is_blocky(picture, frame)
    return [
        canvas.Rect(box, "#ffffff"),
        dataclasses.replace(picture, box=box, opacity=0.5, is_blocky=blocky),
    ]


def _is_blocky(picture: canvas.Picture, frame: placing.Frame) -> bool:
    return frame.box[2] > 4 * picture.image.width or frame.box[3] > 4 * picture.image.height


def _anchor(mask: np.ndarray, frame: placing.Frame, i: int, found: graphs.Entities) -> placing.Box:
    """Return the point of a mask nearest its centre of mass, in the canvas; or the box."""
    point = overlay.centre(mask)
    if point is None:
        return frame.rect(*_clipped(found)[i])
    return frame.box[0] + point[0], frame.box[1] + point[1], 0, 0


def _centres(found: graphs.Entities) -> np.ndarray:
    boxes = np.array(_clipped(found)).reshape(-1, 4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _clipped(found: graphs.Entities) -> list[list[float]]:
    """Return the boxes inside the image."""
    height, width = found.size
    limit = np.array([width, height, width, height])
    return np.clip(np.asarray(found.boxes, np.float64), 0, limit).tolist()


def _meet(start: Number, length: Number, other: Number, other_length: Number) -> bool:
    return start <= other + other_length + 1e-6 and other <= start + length + 1e-6


def _size(image: Image.Image | None) -> tuple[int, int]:
    return (image.height, image.width) if image is not None else (1, 1)


def _hex(colour: overlay.Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)

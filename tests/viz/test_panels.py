import dataclasses

import numpy as np
import pytest
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import canvas, coverage, gallery, overlay, panels, scene_graph
from tests.viz import pictures


def test_a_pixel_has_the_colour_of_its_smallest_mask():
    masks = np.zeros((2, 30, 30), bool)
    masks[0, 2:28, 2:28] = True
    masks[1, 10:20, 10:20] = True
    picture = np.asarray(panels.owners(masks, overlay.colours(2)))
    outer, inner = overlay.colours(2)
    assert tuple(picture[5, 5, :3]) == outer and tuple(picture[15, 15, :3]) == inner
    assert picture[0, 0, 3] == 0 and 0 < picture[5, 5, 3] < 255
    assert picture[10, 10, 3] == 255  # the outline


def test_a_silhouette_is_its_mask():
    mask = np.zeros((30, 40), bool)
    mask[10:20, 5:25] = True
    mask[14:16, 10:12] = False
    found = panels.silhouette(mask, (9, 8, 7))
    assert found is not None
    image, corner = found
    assert corner == (5, 10) and image.size == (20, 10)
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(alpha > 0, mask[10:20, 5:25])
    assert panels.silhouette(np.zeros((3, 3), bool), (0, 0, 0)) is None


def test_labels_say_less_where_there_is_less_room():
    forms = panels.label_forms(("3", "a rather long name", "0.87"), 10, 90)
    assert forms[0].startswith("3 ") and forms[0].endswith("… 0.87") and forms[-1] == "3"
    assert panels.label_forms(("3", "dog", "0.87"), 10, 200) == ["3 dog 0.87", "3 dog", "3"]
    assert panels.label_forms(("3", "", "0.87"), 10, 200) == ["3 0.87", "3"]


@pytest.mark.parametrize("pixels", [gallery.WIDE, gallery.NARROW])
def test_labels_of_32_boxes_can_all_be_read(pixels):
    record = pictures.random_record(32)
    (panel,) = panels.both(record, panels.photo(pictures.image(record), ""))[1]
    shapes = panel.over(panel.size[0] / pixels)
    pills = [s for s in shapes if isinstance(s, canvas.Rect) and " l " in s.tag]
    texts = [s for s in shapes if isinstance(s, canvas.Text)]
    assert len(pills) == len(texts) == 32
    assert {int(text.text.split()[0]) for text in texts} == set(range(1, 33))
    for i, (x, y, w, h) in enumerate(pill.box for pill in pills):
        for a, b, c, d in (pill.box for pill in pills[:i]):
            assert x >= a + c - 1e-9 or a >= x + w - 1e-9 or y >= b + d - 1e-9 or b >= y + h - 1e-9
    smallest = min(text.size for text in texts) * pixels / panel.size[0]
    assert smallest >= 11  # css pixels


def test_annotated_boxes_take_the_numbers_of_their_entities():
    others = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    boxes = np.array([[20, 20, 40, 39], [0, 0, 5, 5], [20, 20, 40, 40]])
    assert panels.match(boxes, others) == [1, -1, -1]
    assert panels.match(boxes, np.zeros((0, 4), np.float32)) == [-1, -1, -1]


def test_relations_are_arrows_with_their_predicates():
    record = pictures.scene_record()
    photo = panels.photo(pictures.image(record), "")
    (panel,) = panels.relations(record, photo)
    texts = [s.text for s in panel.over(2.0) if isinstance(s, canvas.Text)]
    assert record.relations is not None
    assert {p for _, p, _ in record.relations.triples} <= set(texts)
    assert panels.relations(dataclasses.replace(record, relations=None), photo) == []


def test_two_predicates_of_a_pair_share_an_arrow():
    boxes = np.array([[0, 0, 20, 20], [60, 40, 90, 60]], np.float32)
    known = panels.Relations(boxes, ["man", "horse"], [(0, "on", 1), (0, "riding", 1)])
    record = panels.Record("k", Image.new("RGB", (90, 60)), graphs.Entities.from_boxes(
        boxes, (60, 90)
    ), relations=known)  # fmt: skip
    (panel,) = panels.relations(record, panels.photo(pictures.image(record), ""))
    shapes = panel.over(1.5)
    assert "on, riding" in [s.text for s in shapes if isinstance(s, canvas.Text)]
    assert len([s for s in shapes if isinstance(s, canvas.Polygon)]) == 1


def test_the_graph_numbers_its_nodes_as_the_table_does():
    record = pictures.scene_record()
    assert record.attention is not None
    some = dataclasses.replace(
        record.attention, nodes=record.attention.nodes[[2, 0]],
        on_question=record.attention.on_question[[2, 0]],
        edges=np.array([[0, 0.9], [0.4, 0]]),
        on_words=record.attention.on_words[[2, 0]],
    )  # fmt: skip
    record = dataclasses.replace(record, attention=some)
    (panel,) = panels.graph(record, panels.photo(pictures.image(record), ""))
    numbers = [s.text for s in panel.over(1.5) if isinstance(s, canvas.Text) and s.is_bold]
    assert numbers == [str(int(i) + 1) for i in some.nodes]
    assert "0.90" in panel.caption
    silent = dataclasses.replace(record, attention=None)
    assert panels.graph(silent, panels.photo(pictures.image(record), "")) == []


def test_every_view_is_a_panel_and_every_entity_can_be_chosen():
    record = pictures.scene_record()
    views = [coverage.parse("8x8:pad"), coverage.parse("4x4:crop@56")]
    record = dataclasses.replace(record, views=views)
    found = panels.covers(record, panels.photo(pictures.image(record), ""))
    assert record.entities is not None
    assert [panel.kind for panel in found] == ["coverage"] * 2
    for panel, view in zip(found, views, strict=True):
        assert [i for i, _ in panel.solo] == list(range(len(record.entities)))
        for (_, shape), row in zip(panel.solo, view.of(record.entities), strict=True):
            assert isinstance(shape, canvas.Picture)
            np.testing.assert_array_equal(np.asarray(shape.image)[..., 3].reshape(-1), row)


def test_arrows_widen_with_attention():
    widths = [scene_graph.width(w) for w in np.linspace(0, 1, 11)]
    assert widths == sorted(widths) and widths[-1] > 3 * widths[0] > 0


def test_opposite_arrows_bend_apart_and_single_ones_are_straight():
    points = np.array([[50.0, 50], [250, 50], [150, 180]])
    edges = [scene_graph.Arrow(0, 1, 0.5), scene_graph.Arrow(1, 0, 0.9), scene_graph.Arrow(0, 2, 1)]
    shapes = scene_graph.shapes(
        points, edges, px=1.0, area=(0, 0, 300, 200), colours=overlay.colours(3)
    )
    lines = [s for s in shapes if isinstance(s, canvas.Line)]
    assert [len(line.points) for line in lines] == [3, 3, 2]
    (_, (_, up), _), (_, (_, down), _) = lines[0].points, lines[1].points
    assert (up - 50) * (down - 50) < 0
    assert lines[1].width > lines[0].width
    heads = [s for s in shapes if isinstance(s, canvas.Polygon)]
    assert len(heads) == 3
    for head in heads:
        (x0, y0), (x1, y1), (x2, y2) = head.points
        assert abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) / 2 > 25  # square pixels
    assert lines[2].tag == "o o1 o3"


def test_only_the_strongest_arrows_are_drawn():
    edges = np.random.default_rng(0).random((40, 40))
    found = scene_graph.arrows(edges, 2)
    assert len(found) == 48
    assert [a.weight for a in found] == sorted(a.weight for a in found)
    assert scene_graph.arrows(edges, 0) == []

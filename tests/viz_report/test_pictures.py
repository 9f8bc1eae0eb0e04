import re

import numpy as np
from PIL import Image

from sgqlm.viz import prototypes, scene_graph


def test_arrows_lead_from_the_sender_to_the_receiver(examples):
    example = examples[0]
    count = len(example.entities)
    edges = np.zeros((count, count))
    edges[1, 2] = 1.0
    svg = scene_graph.draw(
        example.image, example.entities, node_attention=np.zeros(count), edges=edges, side=112
    )
    lines = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', svg)
    assert len(lines) == 1
    start, end = np.reshape([float(v) for v in lines[0]], (2, 2))
    boxes = example.entities.boxes
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(start - centres[2]).max() < 0.1
    assert np.hypot(*(end - centres[1])) < np.hypot(*(end - centres[2]))
    assert svg.count("<circle") == count


def test_the_most_activated_node_is_the_largest(examples):
    example = examples[0]
    count = len(example.entities)
    heat = np.linspace(0.2, 0.9, count)
    svg = scene_graph.draw(
        example.image, example.entities, node_attention=heat, edges=np.zeros((count, count))
    )
    radii = [float(r) for r in re.findall(r' r="([\d.]+)"', svg)]
    assert radii == sorted(radii)
    assert radii[0] < radii[-1]


def test_strongest_edges_are_few_and_never_loops():
    edges = np.array([[0.9, 0.1, 0.0], [0.2, 0.0, 0.8], [0.5, 0.5, 0.0]])
    found = scene_graph.strongest(edges, 1)
    assert found == [(2, 0), (1, 2)]


def test_equal_attention_is_no_attention():
    assert scene_graph.scale(np.full(3, 0.7)).tolist() == [0, 0, 0]
    assert scene_graph.scale(np.zeros(0)).shape == (0,)


def test_patches_of_one_prototype_share_a_colour():
    white = Image.new("RGB", (20, 20), "white")
    nearest = np.array([[3, 3], [3, 9]])
    picture = np.asarray(prototypes.draw(white, nearest, side=40))
    assert picture.shape == (40, 40, 3)
    corners = picture[10, 10], picture[10, 30], picture[30, 10], picture[30, 30]
    np.testing.assert_array_equal(corners[0], corners[1])
    np.testing.assert_array_equal(corners[0], corners[2])
    assert not np.array_equal(corners[0], corners[3])

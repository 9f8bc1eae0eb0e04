import dataclasses
import html.parser
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import gallery, panels
from tests import paths
from tests.viz import pictures

VOID = {"meta", "img", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that tags close in order, and collects addresses, ids and radio buttons."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.ids, self.radios = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [named[k] for k in ("src", "href") if k in named]
        self.ids += [named["id"]] if "id" in named else []
        if named.get("type") == "radio":
            self.radios.append((named["name"], named["class"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def record():
    return pictures.scene_record()


@pytest.fixture(scope="module")
def page(record):
    empty = panels.Record(
        "none.png", Image.new("RGB", (9, 9)), graphs.Entities.empty((9, 9)), "empty"
    )
    failed = panels.Record("bad.png", None, None, "error: no <picture>")
    noted = dataclasses.replace(pictures.random_record(3), notes=("The image & more",))
    cards = [gallery.card(item, i) for i, item in enumerate((record, empty, failed, noted))]
    about = {"extractor": "paper", "settings": {"box_threshold": 0.25, "tags": [], "none": ""}}
    return gallery.page("A <title>", cards, names=["a", "b", "c", "d"], about=about)


def test_the_page_is_whole_and_needs_nothing_else(page):
    read = Reader(page)
    inside = {address[1:] for address in read.addresses if address.startswith("#")}
    assert inside <= set(read.ids) and len(read.ids) == len(set(read.ids))
    others = [a for a in read.addresses if not a.startswith(("data:image/", "#"))]
    assert others == []
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|@import|url\(", page)
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


def test_every_entity_is_chosen_by_a_button_that_works_without_script(page, record):
    radios = Reader(page).radios
    count = len(record.entities)
    assert [kind for name, kind in radios if name == "pick0"] == [
        "none", *(f"pick e{k + 1}" for k in range(count)),
    ]  # fmt: skip
    for k in range(1, count + 1):
        assert f".rec:has(.e{k}:is(:checked, :hover)) .o{k}" in page
        assert f".rec:has(.e{k}:is(:checked, :hover)) tr.e{k}" in page
        assert len(re.findall(rf'class="[^"]*\bo{k}\b', page)) > 4  # mask, box, label, node, heat


def test_each_photograph_is_inlined_once(record):
    card = gallery.card(record, 7)
    assert card.count("data:image/jpeg") + card.count('id="photo7"') <= 2
    assert card.count('href="#photo7"') == 4  # entities, graph, relations, coverage


def test_failures_have_cards_of_their_own(page):
    assert "error: no &lt;picture&gt;" in page
    assert "empty: no entity was found; 9 x 9 pixels" in page
    assert "The image &amp; more" in page


def test_labels_are_escaped_and_kept_whole_in_the_table():
    card = gallery.card(pictures.random_record(5), 0)
    Reader(card)
    assert '<b>"' not in card and "&lt;b&gt;&quot;поезд" in card
    assert "a very long label of a thing that nobody can name" in card and "日本の猫" in card


def test_the_table_has_alternatives_quality_and_attention(record):
    count = len(record.entities)
    entities = dataclasses.replace(
        record.entities, mask_scores=np.full(count, 0.77, np.float32),
        alternatives=[[("moon", 0.4321)]] * count, tags=[("sky", 0.9)],
    )  # fmt: skip
    found = gallery.entity_table(dataclasses.replace(record, entities=entities), 0)
    assert found.count("or moon 0.43") == found.count(">0.77<") == count
    assert f">{record.attention.on_question[0]:.2f}<" in found
    fewer = dataclasses.replace(record.attention, nodes=record.attention.nodes[:1] + 1)
    fewer = dataclasses.replace(
        fewer,
        on_question=fewer.on_question[:1],
        edges=fewer.edges[:1, :1],
        on_words=fewer.on_words[:1],
    )
    found = gallery.entity_table(dataclasses.replace(record, attention=fewer), 0)
    assert found.count("no node") == count - 1


def test_shares_are_those_of_the_masks():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, :5] = True
    masks[1, 0, 0] = True
    dense = graphs.Entities(masks, np.zeros((2, 4)), [], np.ones(2), (10, 20))
    plain = [{"size": [10, 20], "counts": [0, 50, 150]}] * 2
    coded = graphs.Entities(plain, np.zeros((2, 4)), [], np.ones(2), (10, 20))
    assert gallery.areas(dense).tolist() == [100, 1]
    assert gallery.areas(coded).tolist() == [50, 50]
    assert len(gallery.areas(graphs.Entities.empty((4, 4)))) == 0


def test_the_hottest_word_is_the_darkest(record):
    weights = np.zeros_like(record.attention.on_words)
    weights[:, 1] = 0.5
    weights[0, 2] = 0.25
    heard = dataclasses.replace(record.attention, on_words=weights)
    text = gallery.word_table(dataclasses.replace(record, attention=heard))
    shades = re.findall(r"rgba\(213, 94, 0, ([\d.]+)\)\" title=\"([\d.]+) %\">([^<]*)<", text)
    assert {shade for shade, _, word in shades if word == "is"} == {"1.000"}
    assert {shade for shade, _, word in shades if word == "it"} == {"0.500", "0.000"}
    silent = dataclasses.replace(record.attention, words=[], on_words=weights[:, :0], question="")
    assert gallery.word_table(dataclasses.replace(record, attention=silent)) == ""


def test_settings_are_spelled_out():
    rows = gallery.flat({"a": {"b": 1, "c": None}, "d": list(range(30)), "e": [], "f": False})
    assert rows[0] == ["a.b", "1"] and rows[-1] == ["f", "False"]
    assert rows[1][1].endswith("; and 10 more") and len(rows) == 3


def test_a_page_of_photographs_stays_small():
    image = Image.open(paths.shared("real/images") / "market.jpg").convert("RGB")
    big = image.resize((3000, 2000))
    record = dataclasses.replace(pictures.random_record(32, size=(2000, 3000)), image=big)
    assert len(gallery.card(record, 0)) < 750_000  # eight of them: 6 MB

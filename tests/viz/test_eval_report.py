"""Charts and cards of an evaluation, and the page in a browser."""

import dataclasses
import html
import re
import subprocess
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import eval_report

ROWS = [
    {"name": "a name that is much longer than there is room for", "value": 50.0, "count": 9,
     "interval": {"low": 25.0, "high": 75.0}},
    {"name": "<b>", "value": None, "count": None, "interval": None},
]  # fmt: skip


def test_bars_have_the_length_of_their_value():
    root = xml.etree.ElementTree.fromstring(eval_report.chart(ROWS))
    bars = [
        e.get("width") for e in root.iter() if e.tag.endswith("rect") and "accent" in e.get("style")
    ]
    whiskers = [e.get("d") for e in root.iter() if e.tag.endswith("path")]
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert bars == ["170.0"] and whiskers == ["M85.0 22v8M85.0 26H255.0M255.0 22v8"]
    assert texts[0].endswith("…") and texts[1] == "50.0 (25.0 to 75.0), n = 9" and texts[3] == "–"


def test_several_models_share_a_chart_and_long_families_are_cut():
    one = {"value": 50.0, "interval": None, "count": 3}
    bars = [one, None, {**one, "value": 100.0}]
    text = eval_report.chart([{"name": "a", "bars": bars}])
    root = xml.etree.ElementTree.fromstring(text)
    widths = {
        e.get("style")[len("fill:var(--") : -1]: e.get("width")
        for e in root.iter()
        if e.tag.endswith("rect")
    }
    assert widths == {"well": "340.0", "accent": "170.0", "m2": "340.0"}
    assert "50.0 / – / 100.0, n = 3" in text and "<b>" not in eval_report.key(["<b>"])
    bars[0] = {**one, "count": 3_757}
    assert "n = 3,757 / – / 3" in eval_report.chart([{"name": "a", "bars": bars}])
    rows = [{"name": str(n), "value": 1.0, "count": 1, "interval": None} for n in range(65)]
    found = eval_report.charts([{"title": "t", "highest": 100, "rows": rows}], "%")
    assert len(found) == 3 and "t, % (1 to 22 of 65)" in found[0]
    long = [{"title": "t", "highest": 500, "rows": rows[:1]}]
    assert "t, x 100, full bar: 500" in eval_report.charts(long, "x 100")[0]
    assert sum(card.count("<title>") for card in found) == 65


def test_a_graph_has_labels_weights_and_shades():
    entities = graphs.Entities(
        np.zeros((2, 20, 30), bool), np.array([[0, 0, 9, 9], [15, 5, 29, 19]], np.float32),
        ["<cup>", "tray"], np.ones(2, np.float32), (20, 30),
    )  # fmt: skip
    text = eval_report.graph(
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)),
        entities,
        node_attention=np.array([0.25, 0.75], np.float32),
        edges=np.array([[0.1, 0.9], [0.625, 0.375]], np.float32),
        words=["what", "cup"],
        word_attention=np.array([[0.1, 0.15], [0.5, 0.25]], np.float32),
        caption="image 7",
    )
    assert "<cup>" not in text and text.count("&lt;cup&gt;") >= 2 and "0.90" in text
    assert text.index("2 to 1") < text.index("1 to 2") and "0.625" in text
    rows = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    assert rows[:8] == ["1", "&lt;cup&gt;", "0.250", "cup", "2", "tray", "0.750", "what"]


def test_only_the_strongest_nodes_and_edges_are_not_folded():
    count = 7
    boxes = np.tile(np.array([[0, 0, 9, 9]], np.float32), (count, 1))
    names = [f"thing{n}" for n in range(count)]
    entities = graphs.Entities(
        np.zeros((count, 20, 30), bool), boxes, names, np.ones(count, np.float32), (20, 30)
    )
    shares = np.linspace(0.7, 0.1, count)[::-1].copy()  # the first has the least
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    edges = (1 - np.eye(count)) * np.linspace(0.1, 0.2, count)
    text = eval_report.graph(image, entities, node_attention=shares, edges=edges)
    bare = dataclasses.replace(entities, labels=[])  # of an extractor without a tagger
    assert eval_report.graph(image, bare, node_attention=shares, edges=edges).count("<td>–") >= 7
    tables = text[text.index('<div class="numbers">') :]
    shown, folded = tables.split("<details>")
    assert "thing0" not in shown and "thing0" in folded and shown.count("thing") == 6
    assert shown.count(" to ") == 8 and "1 more node and 6 more edges" in folded


def test_what_no_page_can_show_is_an_escape():
    shown = eval_report.pages.escape("a\x08\x19<b>\u202e\r\n\tc\ud800")
    assert shown == r"a\x08\x19&lt;b&gt;\u202e" + "\r\n\tc" + r"\ud800"


def cards():
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    found = {"id": "1" * 80, "question": "q " + "x" * 90, "wanted": "<i>", "kinds": ['a"b']}
    grades = ("score 0.00", "bad"), ("score 1.00", "good")
    said = [("given", None, grades[0]), ("b", "", grades[1])]
    yield eval_report.item(found, (image, "image"), said)
    yield eval_report.item({"id": "2"}, (None, ""), [("given", "not known", ("score 0.30", ""))])


def test_cards_escape_and_tell_what_is_not_known():
    first, second = cards()
    assert "&lt;i&gt;" in first and "no answer" in first and "(empty)" in first
    assert "data:image/" in first and 'data-kinds="[&quot;a\\&quot;b&quot;]"' in first
    assert "not known" in second and "given, score 0.30" in second and "<img" not in second
    assert eval_report.browser("nothing is wrong", [], []) == eval_report.pages.note(
        "nothing is wrong"
    )


def page():
    table = eval_report.scores(
        ["model", *"abcdefgh"], [["m" * 30, *["71.0 (1.0 to 2.0) [1]"] * 8]], ["n" * 99], ours=1
    )
    chart = eval_report.pages.card("c", eval_report.chart(ROWS))
    body = [
        eval_report.links(["x" * 70, "y"]),
        table,
        eval_report.section(0, "t" * 90, ["l", "m" * 99], [chart]),
    ]
    return eval_report.page(
        "Evaluation", [*body, eval_report.browser("wrong", list(cards()), ['a"b'])]
    )


def test_the_page_loads_nothing():
    assert not re.search(r'(src|href)="(?!data:|#)', page()) and "@import" not in page()
    assert "prefers-color-scheme: dark" in page() and "(1.0 to 2.0)" in page()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(width, tmp_path):
    opened = html.escape(page().replace("<details>", "<details open>"))
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<body><iframe width="{width}" height="900" srcdoc="{opened}"></iframe><pre id="o"></pre>'
        "<script>document.querySelector('iframe').onload = function () {"
        "var d = this.contentDocument, w = d.defaultView, s = d.querySelector('input');"
        "s.value = 'not known'; s.dispatchEvent(new w.Event('input'));"
        "document.getElementById('o').textContent = [d.documentElement.scrollWidth - w.innerWidth,"
        "d.querySelector('.told').textContent].join('|'); };</script></body>",
        "utf-8",
    )
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=150, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="o">(.*?)</pre>', done.stdout)
    assert found and found[1] == "0|1 of 2 shown"

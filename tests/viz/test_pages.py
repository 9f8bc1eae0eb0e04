import base64
import html.parser
import io
import re

import numpy as np
from PIL import Image

from sgqlm.viz import pages


class Checker(html.parser.HTMLParser):
    """Collect addresses, and fail on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def sample_page():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    return pages.page(
        "A <title> & more",
        [
            pages.legend([("prompt", "prompt")]),
            pages.heading("Part"),
            pages.grid([pages.card("One", pages.figure(noise, caption="noise"))]),
            pages.split(pages.note("left"), pages.table(["name", "n"], [["a<b", 3], ["c", 1234]])),
            pages.tokens([("<script>alert(1)</script>", "prompt"), (" yes", "answer")]),
        ],
        subtitle="what it shows",
    )


def test_a_page_is_well_formed_and_needs_no_network():
    document = sample_page()
    checker = Checker()
    checker.feed(document)
    assert checker.open == []
    assert len(checker.addresses) == 1 and checker.addresses[0].startswith("data:image/")
    assert not re.search(r"https?:|@import|url\(", document)
    assert "width=device-width" in document


def test_text_is_escaped():
    document = sample_page()
    assert "<script>" not in document and "&lt;script&gt;" in document
    assert "A &lt;title&gt; &amp; more" in document


def test_inline_images_keep_their_pixels():
    image = Image.new("RGB", (16, 8), (10, 200, 30))
    head, payload = pages.data_uri(image).split(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert head.endswith(";base64") and decoded.size == (16, 8)
    assert np.abs(np.asarray(decoded.convert("RGB"), int) - np.asarray(image)).max() < 8


def test_columns_of_numbers_are_set_to_the_right():
    text = pages.table(["name", "n"], [["a", 3], ["b", 4.25]])
    assert '<td class="number">4.25</td>' in text and "<td>a</td>" in text


def test_write_leaves_only_the_page(tmp_path):
    path = pages.write(tmp_path / "deep" / "page.html", sample_page())
    assert [item.name for item in path.parent.iterdir()] == ["page.html"]

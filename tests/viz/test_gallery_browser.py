"""The page in a real browser, as wide as a telephone and as a laptop."""

import dataclasses
import html
import json
import re
import subprocess

import pytest

from sgqlm.viz import coverage, gallery
from tests.viz import pictures

pytestmark = pytest.mark.browser

# measures the page in a frame of a given width: headless windows are never narrower than 500 pixels
WRAP = """<!DOCTYPE html><body><iframe width="{width}" height="900" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
document.querySelector('iframe').onload = function () {{
  var inner = this.contentDocument, frame = inner.defaultView, wide = [], small = [];
  var pick = inner.querySelector('input.e1');
  inner.querySelectorAll('details').forEach(function (item) {{ item.open = true; }});
  inner.querySelectorAll('main *').forEach(function (item) {{
    var box = item.getBoundingClientRect();
    if (!box.width || item.closest('.scroll') && !item.matches('.scroll')) return;
    if (box.right > frame.innerWidth + 1 || box.left < -1) wide.push(item.outerHTML.slice(0, 80));
  }});
  inner.querySelectorAll('main *').forEach(function (item) {{
    var own = Array.from(item.childNodes).some(function (node) {{
      return node.nodeType === 3 && node.data.trim(); }});
    if (!own || !item.getBoundingClientRect().width) return;
    var size = parseFloat(frame.getComputedStyle(item).fontSize);
    if (item.getScreenCTM) size *= item.getScreenCTM().a;
    if (size < 11) small.push(size.toFixed(1) + ' ' + item.outerHTML.slice(0, 80));
  }});
  var label = inner.querySelector('.boxes-none, .rec text.l.o2');
  var before = frame.getComputedStyle(label).opacity;
  pick.checked = true;
  var solo = inner.querySelector('use.solo.o1, image.solo.o1');
  document.getElementById('found').textContent = JSON.stringify({{
    page: inner.documentElement.scrollWidth - frame.innerWidth, wide: wide, small: small,
    before: before, after: frame.getComputedStyle(label).opacity,
    solo: frame.getComputedStyle(solo).display }});
}};
</script></body>"""


@pytest.fixture(scope="module")
def page():
    views = [coverage.parse("24x24:pad"), coverage.parse("16x16:crop@224")]
    scene = dataclasses.replace(pictures.scene_record(), key="key-without-a-space" * 9)
    records = [
        scene,
        dataclasses.replace(pictures.random_record(32), views=views),
        pictures.random_record(4, size=(2000, 1)),
        pictures.random_record(4, size=(1, 2000)),
    ]
    cards = [gallery.card(record, i) for i, record in enumerate(records)]
    about = {"weights": {"sha256": "0" * 64}}
    return gallery.page("Entities", cards, names=[r.key for r in records], about=about)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_and_all_text_can_be_read(page, width, tmp_path):
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(WRAP.format(width=width, page=html.escape(page)), "utf-8")
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=150, check=True,
    )  # fmt: skip
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert text and text[1], "the page did not load"
    found = json.loads(html.unescape(text[1]))
    assert found["page"] <= 0 and found["wide"] == [] and found["small"] == []
    # choosing the first entity dims the label of the second, and shows the mask of the first
    assert found["before"] == "1" and float(found["after"]) < 0.2 and found["solo"] == "inline"

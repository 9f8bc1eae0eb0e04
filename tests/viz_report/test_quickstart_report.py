import html.parser
import re

from sgqlm.viz import quickstart_report

VOID = {"meta", "img", "br"}


class Balance(html.parser.HTMLParser):
    """Raises where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.stack = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Leave `<circle/>` and its like alone."""

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_page_is_whole_and_needs_no_network(report, losses, examples, tmp_path):
    path = quickstart_report.write(tmp_path, report, losses=losses, examples=examples)
    page = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    parser = Balance()
    parser.feed(page)
    assert parser.stack == []
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert links and all(link.startswith("data:image/") for link in links)
    assert "<script" not in page
    for text in (*losses, "13 min 01 s", "edges permuted", "&lt;green&gt;", "0.27"):
        assert text in page


def test_right_and_wrong_answers_are_marked(report, losses, examples, tmp_path):
    page = quickstart_report.write(tmp_path, report, losses=losses, examples=examples).read_text()
    assert page.count("✗ blue") == 1
    assert page.count("✓ red") == 1


def test_a_family_without_questions_is_a_dash(report):
    arms = {
        arm: {**report[arm], "by_family": dict(report[arm]["by_family"])}
        for arm in report
        if arm in quickstart_report.ARMS
    }
    for arm in arms.values():
        arm["by_family"]["count"] = None
    assert quickstart_report.accuracy_table(arms).count("–") == 5

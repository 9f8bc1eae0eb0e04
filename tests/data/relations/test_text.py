"""Captions to relations: by rule, and by a service that speaks the OpenAI protocol."""

import itertools

import pytest

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.data.relations import endpoint, text, types
from tests import chat_service


@pytest.mark.parametrize(
    ("between", "predicate"),
    [
        (" riding on the ", "riding on"),
        (" is standing next to a ", "standing next to"),
        (" in front of ", "in front of"),
        (" with ", "with"),
        (" who is holding ", "holding"),
        (" sits on ", "sits on"),
        (" in the middle of ", "in middle of"),
        (" covered in ", "covered in"),
        (", on ", ""),
        (" and ", ""),
        (" and a dog with ", ""),
        (" during ", ""),
        (" next ", ""),
        (" that was seen yesterday by the side of ", ""),
        (" is ", ""),
        ("", ""),
        (" 2 ", ""),
    ],
)
def test_the_text_between_two_phrases(between, predicate):
    assert text.between(between) == predicate


def spans(caption, *phrases):
    return [(caption.index(p), caption.index(p) + len(p)) for p in phrases]


def test_neighbouring_phrases_alone_are_related():
    caption = "A man riding a horse, a dog behind the fence and a cat"
    found = text.RuleBased()(
        caption, spans(caption, "A man", "a horse", "a dog", "the fence", "a cat")
    )
    assert found == [(0, "riding", 1), (2, "behind", 3)]
    assert text.head("the old barn") == "old barn" and text.head("a") == "a"


@pytest.fixture
def service():
    with chat_service.running() as server:
        yield server


CAPTION = "A man riding a horse"
SPANS = [(0, 5), (13, 20)]
GOOD = '[[1, "Riding", 2]]'


def ask(service, tmp_path, *, suffix="/v1", caption=CAPTION, **options):
    options = {"sleep": lambda seconds: None, "timeout": 0.3} | options
    url = f"http://127.0.0.1:{service.server_port}{suffix}"
    made = endpoint.Endpoint(url, "tiny", tmp_path / "answers.jsonl", **options)
    return made(caption, SPANS)


def test_an_answer_is_asked_for_once_and_kept(service, tmp_path, monkeypatch):
    monkeypatch.setenv(chat.KEY, "sk-secret")
    service.answers += [GOOD, "```json\n[]\n```"]
    assert ask(service, tmp_path) == [(0, "riding", 1)]
    assert ask(service, tmp_path) == [(0, "riding", 1)]
    assert ask(service, tmp_path, caption="A man near a horse  ") == []
    assert len(service.asked) == 2
    path, body, key = service.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer sk-secret"
    assert body["model"] == "tiny" and body["temperature"] == 0
    assert "1: A man\n2: a horse" in body["messages"][1]["content"]
    assert "sk-secret" not in (tmp_path / "answers.jsonl").read_text()


def test_a_line_that_was_cut_off_is_asked_again_and_spoils_no_other(service, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"question": "ab')
    service.answers += [GOOD]
    assert ask(service, tmp_path) == [(0, "riding", 1)]
    assert ask(service, tmp_path) == [(0, "riding", 1)]
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "The man rides.", "{}", "[1]", '[[1, "on"]]', '[[1, "on", 3]]', '[[0, "on", 1]]',
        '[[1, "on", 1]]', '[[1, 5, 2]]', '[[1, "", 2]]', '[[true, "on", 2]]',
        '[[1, "one two three four five six", 2]]', 'Sure! [[1, "on", 2]]', '[[1, "on", 2]',
    ],
)  # fmt: skip
def test_an_answer_of_another_form_gives_nothing_and_is_counted(service, tmp_path, answer):
    report = types.Report()
    service.answers.append(answer)
    assert ask(service, tmp_path, report=report) == []
    assert report.notes == {"answer that cannot be used": 1}
    assert ask(service, tmp_path, report=report) == []  # the answer is known by now
    assert len(service.asked) == 1


def test_a_busy_or_slow_service_is_asked_again(service, tmp_path):
    waits = []
    service.headers = {"Retry-After": "7"}
    service.answers += [429, 500, b"<html>", {"error": "x"}, None, GOOD]
    assert ask(service, tmp_path, sleep=waits.append) == [(0, "riding", 1)]
    assert waits[0] == 7.0 and all(a < b for a, b in itertools.pairwise(waits))
    assert len(service.asked) == 6


@pytest.mark.parametrize(("status", "count"), [(401, 1), (404, 1), (302, 1), (503, 3)])
def test_a_refusal_is_told_without_the_key(service, tmp_path, monkeypatch, status, count):
    monkeypatch.setenv(chat.KEY, "sk-secret")
    service.headers = {"Location": "http://127.0.0.1:1/elsewhere"}
    service.answers += [status] * 6
    with pytest.raises(errors.SgqlmError, match=f"HTTP {status}") as caught:
        ask(service, tmp_path, tries=3)
    assert len(service.asked) == count
    assert "sk-secret" not in str(caught.value) and caught.value.code == errors.RESOURCES


def test_no_service_and_no_address(service, tmp_path):
    port = service.server_port
    service.shutdown()
    service.server_close()
    with pytest.raises(errors.SgqlmError, match="gives no answer"):
        endpoint.Endpoint(
            f"http://127.0.0.1:{port}", "m", tmp_path / "a", tries=2, sleep=lambda s: None
        )(CAPTION, SPANS)
    for url in ("file:///etc/hostname", "localhost:80", ""):
        with pytest.raises(errors.SgqlmError, match="an address and a model"):
            endpoint.Endpoint(url, "m", tmp_path / "a")

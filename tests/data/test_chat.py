"""The client of chat completion services; pauses and refusals are tested with its first user."""

import json

import pytest

from sgqlm import errors
from sgqlm.data import chat
from tests import chat_service

ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture
def service():
    with chat_service.running() as server:
        yield server


def client(service, **options):
    options = {"sleep": lambda seconds: None, "timeout": 0.5} | options
    return chat.Client(f"http://127.0.0.1:{service.server_port}/v1", "tiny", **options)


def test_settings_are_passed_on(service):
    service.answers += ["hi", "ho"]
    assert client(service).complete(ASKED, max_tokens=3, temperature=0.2) == "hi"
    assert client(service).complete(ASKED) == "ho"
    first, second = (body for _, body, _ in service.asked)
    assert first == {"model": "tiny", "messages": ASKED, "temperature": 0.2, "max_tokens": 3}
    assert "max_tokens" not in second


def test_an_answer_without_text_is_empty(service):
    service.answers.append({"choices": [{"message": {"content": None}}]})
    assert client(service).complete(ASKED) == ""


def test_a_key_that_cannot_be_sent_is_not_told(service, monkeypatch):
    monkeypatch.setenv(chat.KEY, "sk-sec\nret")
    with pytest.raises(errors.SgqlmError, match="no answer") as caught:
        client(service, tries=1).complete(ASKED)
    assert "sk-sec" not in str(caught.value)


def test_the_reason_of_a_bad_request_is_told_without_the_key(service, monkeypatch):
    monkeypatch.setenv(chat.KEY, "sk-secret")
    service.answers.append((400, b'{"error": "max_tokens is not supported, sk-secret"}'))
    with pytest.raises(errors.SgqlmError, match="max_tokens is not supported") as caught:
        client(service).complete(ASKED)
    assert "sk-secret" not in str(caught.value) and len(service.asked) == 1


def test_addresses():
    assert chat.is_address("http://a:1/v1") and chat.is_address("https://a")
    for text in ("", "a:1", "ftp://a", "http://", "http://[", "none"):
        assert not chat.is_address(text)


def test_a_line_that_was_cut_off_makes_room(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    chat.append(path, {"a": 1})
    path.write_text(path.read_text() + '{"b": ')
    chat.append(path, {"c": "ü\n"})
    path.write_text(path.read_text() + '{"d": 1}')  # whole, by an editor that ends no line
    chat.append(path, {"e": 2})
    *lines, last = path.read_text().split("\n")
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"c": "ü\n"}, {"d": 1}, {"e": 2}]
    assert last == ""

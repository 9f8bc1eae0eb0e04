import json

import pytest

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.evals import judge
from tests import chat_service

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "Grade this"}]
SETTINGS = {"max_tokens": 3, "temperature": 0.0}


@pytest.fixture
def service():
    with chat_service.running() as server:
        yield server


def record(service, path, replies):
    service.answers += replies
    url = f"http://127.0.0.1:{service.server_port}/v1"
    made = judge.make(url, model="tiny", record=path)
    assert made.name == "tiny"
    return [made.complete(ASKED, **SETTINGS) for _ in replies]


def test_replies_are_recorded_and_replayed_in_order(service, tmp_path, monkeypatch):
    monkeypatch.setenv(chat.KEY, "sk-secret")
    path = tmp_path / "new" / "replies.jsonl"
    assert record(service, path, ["0.5", "0.7"]) == ["0.5", "0.7"]
    assert "sk-secret" not in path.read_text()
    path.write_text(path.read_text() + '{"prompt": "cut')
    again = judge.make(f"replay:{path}")
    assert again.name == "tiny"
    assert [again.complete(ASKED, **SETTINGS) for _ in range(2)] == ["0.5", "0.7"]
    with pytest.raises(errors.SgqlmError, match="used up"):
        again.complete(ASKED, **SETTINGS)
    assert len(service.asked) == 2


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5}, {"max_tokens": 4}, {"messages": [{"role": "user", "content": "B"}]}],
)
def test_a_reply_belongs_to_its_question_and_settings(service, tmp_path, change):
    path = tmp_path / "replies.jsonl"
    record(service, path, ["1"])
    asked = {"messages": ASKED, **SETTINGS, **change}
    with pytest.raises(errors.SgqlmError, match="never recorded"):
        judge.Replay(path).complete(**asked)


def test_files_that_are_no_replies(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(errors.SgqlmError, match="no such file"):
        judge.Replay(path)
    path.write_text("")
    with pytest.raises(errors.SgqlmError, match="one judge"):
        judge.Replay(path)
    line = {"prompt": "a", "judge": "one", "reply": "1"}
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | {"judge": "two"}) + "\n")
    with pytest.raises(errors.SgqlmError, match="one, two"):
        judge.Replay(path)
    path.write_text('{"question_id": 1, "content": "8 7"}\n')
    with pytest.raises(errors.SgqlmError, match="record 1"):
        judge.Replay(path)


def test_the_judge_is_what_the_user_names(service, monkeypatch):
    with pytest.raises(errors.SgqlmError, match="needs a judge"):
        judge.make("none").complete(ASKED, **SETTINGS)
    monkeypatch.delenv(judge.MODEL, raising=False)
    monkeypatch.setenv(judge.URL, f"http://127.0.0.1:{service.server_port}/v1")
    with pytest.raises(errors.SgqlmError, match="name of a model"):
        judge.make("openai")
    for kind in ("gpt-4", "", "replay", "ftp://host"):
        with pytest.raises(errors.SgqlmError, match="no such judge"):
            judge.make(kind, model="m")
    monkeypatch.setenv(judge.MODEL, "from-environment")
    service.answers.append("1.0")
    made = judge.make("openai")
    assert made.complete(ASKED, **SETTINGS) == "1.0" and made.name == "from-environment"
    assert service.asked[0][1]["model"] == "from-environment"


def test_a_key_that_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.delenv(judge.URL, raising=False)
    monkeypatch.delenv(chat.KEY, raising=False)
    with pytest.raises(errors.SgqlmError, match="key of the judge") as caught:
        judge.make("openai", model="m")
    assert chat.KEY in str(caught.value)
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    assert judge.make("openai", model="m", key_env="OTHER_KEY").name == "m"
    assert judge.about(judge.make("openai", model="m", key_env="OTHER_KEY")) == {
        "backend": "http",
        "host": "api.openai.com",
    }


def test_the_named_key_is_sent_and_never_told(service, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    service.answers += ["1", (400, b"what is sk-other")]
    url = f"http://127.0.0.1:{service.server_port}/v1"
    made = judge.make(url, model="tiny", key_env="OTHER_KEY")
    made.complete(ASKED, **SETTINGS)
    assert service.asked[0][2] == "Bearer sk-other"
    with pytest.raises(errors.SgqlmError, match="OTHER_KEY") as caught:
        made.complete(ASKED, **SETTINGS)
    assert "sk-other" not in str(caught.value) and "what is" in str(caught.value)


def test_a_record_is_of_one_judge(service, tmp_path):
    path = tmp_path / "replies.jsonl"
    record(service, path, ["1"])
    url = f"http://127.0.0.1:{service.server_port}/v1"
    with pytest.raises(errors.SgqlmError, match="replies of tiny, the judge now is other"):
        judge.make(url, model="other", record=path)

import pytest

from sgqlm import errors
from sgqlm.evals import answers

HEADER = {"task": "relations", "predicates": ["on"], "pairs": ("a", "b")}


def write(path, keys=("a", "b")):
    with answers.AnswerFile(path, HEADER) as file:
        for key in keys:
            file.add({"key": key, "value": 1})


def test_answers_are_appended_under_one_header(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    write(path, "a")
    with answers.AnswerFile(path, HEADER) as file:
        assert file.done == {"a"}
        file.add({"key": "b"})
    head, lines = answers.read(path)
    assert head["task"] == "relations" and [line["key"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_an_unfinished_line_is_asked_again(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert {line["key"] for line in answers.read(path)[1]} >= {"a"}
    write(path, "b")
    assert [line["key"] for line in answers.read(path)[1]] == ["a", "b"]


def test_an_unfinished_header_is_written_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"task": "rela')
    write(path)
    assert len(answers.read(path)[1]) == 2


def test_other_settings_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path)
    with pytest.raises(errors.SgqlmError, match="predicates"):
        answers.AnswerFile(path, HEADER | {"predicates": ["under"]})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{]\n" + lines[1])
    with pytest.raises(errors.SgqlmError, match=r"answers\.jsonl:2") as caught:
        answers.read(path)
    assert caught.value.fix == "delete line 2, and what it answers is asked again"
    with pytest.raises(errors.SgqlmError, match="one json object a line"):  # of the user
        list(answers.iterate(path))
    path.write_text(lines[0] + "\n{}\n" + lines[1])
    with pytest.raises(errors.SgqlmError, match="it has no key") as caught:
        answers.read(path)
    assert caught.value.where.endswith("jsonl:3")
    path.write_text("[1]\n")
    with pytest.raises(errors.SgqlmError, match=r"no json object\n.*delete the file"):
        answers.read(path)
    path.write_text('{"key": "a"}\n')
    with pytest.raises(errors.SgqlmError, match="no header"):
        answers.read(path)
    with pytest.raises(errors.SgqlmError, match="no such file"):
        answers.read(tmp_path / "none")


def test_half_a_surrogate_pair_is_kept(tmp_path):
    path, text = tmp_path / "answers.jsonl", "what is \ud83d?"
    with answers.AnswerFile(path, HEADER) as file:
        file.add({"key": "a", "text": text})
    assert answers.read(path)[1] == [{"key": "a", "text": text}]
    answers.write(path, [{"key": "b", "text": text}])
    assert list(answers.iterate(path)) == [{"key": "b", "text": text}]
    assert b"\\ud83d" in path.read_bytes()

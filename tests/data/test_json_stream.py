"""Reading a json in pieces gives the values and the errors of reading it whole."""

import json

import pytest

from sgqlm.data import json_stream

VALUES = [
    {
        "id": 7,
        "text": 'a "quoted" \\ back\\slash, tab\t and é 漢字 😀',
        "turns": [{"a": [1, [2.5, -3e-7]]}],
    },
    {"id": "x" * 300, "none": None, "yes": True, "nested": [[[[]]], {}]},
    12345678901234567890,
    "äöü " * 40,
    -0.25,
    [],
]


@pytest.fixture(params=[3, 17, 1 << 22])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", request.param)


def _read(path):
    found = list(json_stream.entries(path))
    with path.open("rb") as file:
        for entry in found:
            if not entry.problem:
                assert json_stream.read_at(file, entry.start, entry.end) == entry.value
    return found


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_", [True, False])
def test_a_list_gives_its_values_and_their_places(tmp_path, chunk, indent, ascii_):
    file = tmp_path / "a.json"
    for mark in (b"", b"\xef\xbb\xbf"):
        text = json.dumps(VALUES, indent=indent, ensure_ascii=ascii_)
        file.write_bytes(mark + text.encode() + b" \n")
        assert [entry.value for entry in _read(file)] == VALUES
    file.write_text(" [ ] ")
    assert _read(file) == []


BROKEN = [
    '[{"a": 1}, {"b" 2}]',
    '[\n {"a": 1},\n {"b": [1, 2\n}]\n]',
    '[{"a": "no end}]',
    '[{"a": "bad \\x escape"}, 1]',
    '[{"a": "new\nline"}]',
    '[{"a": 1},]',
    '[{"a": 1} {"b": 2}]',
    '[{"a": nu}]',
    "[1, 2] 3",
    '[{"a": 1',
    "[",
    "",
    "  \n ",
    '{"a": 1} 7',
]


@pytest.mark.parametrize("text", BROKEN)
def test_errors_are_those_of_reading_it_whole(tmp_path, chunk, text):
    # with a hundred characters before and after, a cut is not taken for an error or the other way
    padded = text.replace('{"a": 1', '{"p": "' + "p" * 100 + '", "a": 1') + " " * 100
    file = tmp_path / "a.json"
    file.write_text(padded)
    last = list(json_stream.entries(file))[-1]
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(padded)
    error = caught.value
    assert last.is_last
    assert last.problem == f"line {error.lineno}, column {error.colno}: {error.msg}"


def test_what_is_no_list_says_so(tmp_path, chunk):
    file = tmp_path / "a.json"
    for text, said in (('{"a": 1}', "an object, not a list"), ('"a"', "a text, not a list")):
        file.write_text(text)
        (entry,) = json_stream.entries(file)
        assert said in entry.problem and entry.is_last
    file.write_text('{"a": 1}\n{"a": 2}\n\n{"a":\n3}')  # one object after the other, as POPE is
    assert [entry.value["a"] for entry in _read(file)] == [1, 2, 3]
    (entry,) = json_stream.entries(tmp_path / "none.json")
    assert entry.problem == "the file cannot be read: No such file or directory"


def test_a_byte_that_is_no_text_is_named(tmp_path, chunk):
    file = tmp_path / "a.json"
    start = '["é' + "x" * 50
    file.write_bytes(start.encode() + b'\xff"]')
    (entry,) = json_stream.entries(file)
    assert entry.problem == f"byte {len(start.encode())} is not UTF-8"
    file.write_bytes('["é"]'.encode("utf-16"))
    assert next(json_stream.entries(file)).problem == "byte 0 is not UTF-8"
    file.write_bytes('["é'.encode()[:-1])
    assert next(json_stream.entries(file)).problem == "byte 2 is not UTF-8"


def test_lines_fail_one_by_one(tmp_path):
    file = tmp_path / "a.jsonl"
    odd = {"text": "a\u2028b\x85c"}  # json allows these inside a text
    lines = [json.dumps(odd, ensure_ascii=False).encode(), b"{oops", b"", b'"\xff"', b"[1]\r", b"["]
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    found = _read(file)
    assert [entry.value for entry in found if not entry.problem] == [odd, [1]]
    problems = [entry.problem for entry in found if entry.problem]
    assert [problem.split(":")[0] for problem in problems] == [
        "line 2, column 2", "line 4", "line 6, column 2",
    ]  # fmt: skip
    assert not any(entry.is_last for entry in found)


def test_too_deep_and_too_long(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[" * 100_000)
    assert next(json_stream.entries(file)).problem == "brackets are nested too deeply"
    file.write_text(f"[{'1' * 5000}]")
    assert "Exceeds the limit" in next(json_stream.entries(file)).problem

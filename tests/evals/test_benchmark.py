"""What is asked of a benchmark, and what is refused before an answer is lost."""

import dataclasses
import pathlib

import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import images
from sgqlm.decode import inputs
from sgqlm.evals import answers, benchmark, questions, tasks
from tests import tiny_model
from tests.evals import benchmark_files as files

HEAD = {"task": "gqa", "model": "m"}
TEXTS = ("a", "ccc", "bb")


def job(count=3):
    found = [questions.Question(at, text, text, "a.jpg") for at, text in enumerate(TEXTS)]
    here = pathlib.Path()
    return benchmark.Job(tasks.Place(tasks.get("gqa"), here, here, ()), found, range(count))


@pytest.fixture
def answered(tmp_path):
    """Return a folder with all answers; that to the second question is an error."""
    path = tmp_path / benchmark.PROGRESS
    with answers.AnswerFile(path, HEAD) as out:
        for at, text in enumerate(TEXTS):
            out.add({"key": str(at), "text": text, "metadata": {"error": "x"} if at == 1 else {}})
    return path


def test_long_questions_come_first_and_none_twice(tmp_path):
    assert benchmark.plan(job(), tmp_path, HEAD) == [1, 2, 0]
    with answers.AnswerFile(tmp_path / benchmark.PROGRESS, HEAD) as out:
        out.add({"key": "1", "text": "", "metadata": {}})
    assert benchmark.plan(job(), tmp_path, HEAD) == [2, 0]
    assert benchmark.plan(job(2), tmp_path, HEAD) == [0]


def test_questions_about_one_image_stand_together(tmp_path):
    names = ("a.jpg", "b.jpg", "a.jpg", "", "b.jpg", "")
    texts = ("aa", "bbbb", "a", "cccccc", "bbbbb", "c")
    found = [
        questions.Question(at, text, text, name)
        for at, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    wanted = dataclasses.replace(job(), questions=found, chosen=range(6))
    assert benchmark.by_image(wanted, wanted.chosen) == [[3], [4, 1], [0, 2], [5]]
    assert benchmark.plan(wanted, tmp_path, HEAD) == [3, 4, 1, 0, 2, 5]
    many = dataclasses.replace(wanted, questions=found[:1] * 150, chosen=range(150))
    assert list(map(len, benchmark.by_image(many, many.chosen))) == [64, 64, 22]


def test_a_batch_opens_an_image_once(tmp_path, monkeypatch):
    folder = tmp_path / tasks.get("gqa").images[0]
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no picture")
    opened = []
    opening = images.open_image
    monkeypatch.setattr(
        images,
        "open_image",
        lambda source, **more: opened.append(source) or opening(source, **more),
    )
    names = ("a.jpg", "b.jpg", "a.jpg", "a.jpg")
    found = [questions.Question(at, "what?", "what?", name) for at, name in enumerate(names)]
    place = tasks.Place(tasks.get("gqa"), tmp_path, tmp_path, ())
    wanted = benchmark.Job(place, found, range(4))
    ((batch, rows),) = benchmark._ahead(wanted, [[0, 1, 2, 3]])
    assert batch == [0, 1, 2, 3] and "b.jpg" in rows[1]
    assert rows[0].image is rows[2].image is rows[3].image and rows[0].image.size == (8, 6)
    assert [path.name for path in opened] == ["a.jpg", "b.jpg"]


def test_errors_are_forgotten_on_request_unless_the_settings_changed(answered):
    before = answered.read_text()
    with pytest.raises(errors.SgqlmError, match="another evaluation"):
        benchmark.plan(job(), answered.parent, {**HEAD, "model": "n"}, retry=True)
    assert answered.read_text() == before
    assert benchmark.plan(job(), answered.parent, HEAD) == []
    assert benchmark.count_errors(job(), answered.parent) == 1
    assert benchmark.count_errors(job(1), answered.parent) == 0
    assert benchmark.plan(job(), answered.parent, HEAD, retry=True) == [1]
    assert [line["key"] for line in answers.read(answered)[1]] == ["0", "2"]
    assert benchmark.count_errors(job(), answered.parent) == 0


def test_a_part_does_not_take_the_place_of_the_whole(answered):
    before = answered.read_text()
    with pytest.raises(errors.SgqlmError, match="all 3 questions of gqa") as caught:
        benchmark.plan(job(1), answered.parent, HEAD, retry=True)
    assert "--limit" in caught.value.fix and answered.read_text() == before


def test_the_new_tokens_that_are_advised_fit_the_longest_question(tmp_path):
    model = tiny_model.make()
    place = tasks.locate(tasks.get("pope"), files.make(tmp_path, ["pope"]))
    job = benchmark.prepare(place)
    with pytest.raises(errors.SgqlmError, match="too few for") as caught:
        benchmark.check_room(model, job, benchmark.Settings("c", "m", max_new_tokens=600))
    most = int(caught.value.fix.partition("=")[2].split()[0])
    benchmark.check_room(model, job, benchmark.Settings("c", "m", max_new_tokens=most))
    longest = max((question.text for question in job.questions), key=len)
    row = inputs.Row([inputs.human(longest)], Image.new("RGB", (9, 9)))
    left = model.config.model.llm.max_positions
    left -= inputs.prepare(row, model.config, model.tokenizer).length
    assert left - 2 * model.config.model.graph.num_nodes <= most <= left


def test_half_a_surrogate_pair_is_asked_as_the_replacement_character(tmp_path):
    asked = questions.Question(1, "what \ud83d is it?", "what \ud83d is it?")
    one = benchmark.Job(job().place, [asked], [0])

    def respond(batch, rows):
        return [benchmark.Said(rows[0].turns[0]["value"])]

    with answers.AnswerFile(tmp_path / benchmark.PROGRESS, HEAD) as out:
        benchmark.run(one, [0], out, respond, model_id="m")
    (line,) = benchmark.collect(one, tmp_path)
    assert line["text"] == "what \N{REPLACEMENT CHARACTER} is it?"
    assert line["prompt"] == asked.prompt

"""Asking about many images: both flows, resuming, faults of the model and of the files."""

import dataclasses
import json

import pytest

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import scenes, self_questioning
from tests import tiny_model

# the same shapes as in the other tests of rounds: programs are compiled once
SHORT = {f"{name}_tokens": 4 for name in ("description", "question", "answer")}
SHORT |= {"count": 3, "batch_size": 2}


@pytest.fixture(scope="module")
def model():
    return tiny_model.make()


@pytest.fixture(scope="module")
def row():
    (case,) = scenes.make_cases(tiny_model.SCENES, count=1)
    return inputs.Row((), case.image, case.entities)


def settings(**changes):
    return self_questioning.Settings(**{**SHORT, **changes})


def about(model, row, asked, *, name=""):
    return self_questioning.about_each(model, [row], asked, names=[name])[0]


def test_official_flow_asks_behind_a_greedy_description(model, row):
    asked = settings(flow="official", sampling=ask.OFFICIAL, consistency=2)
    found = about(model, row, asked, name="a.png")
    turns = [inputs.human(ask.FIRST_TURN)]
    (text,) = model.respond([dataclasses.replace(row, turns=turns)], max_new_tokens=4)
    assert found["description"] == text
    base = dataclasses.replace(row, turns=[*turns, {"from": "gpt", "value": text}])
    assert len(found["questions"]) == len(found["answers"]) == len(found["agreement"]) == 3
    first = next(i for i in range(3) if i not in found["unanswered"])
    wanted = ask.answer_own(model, [base], [found["questions"][first]], max_new_tokens=4)
    assert [found["answers"][first]] == wanted
    assert all(0 <= value <= 1 for value in found["agreement"] if value is not None)
    assert found == about(model, row, asked, name="a.png")
    other = about(model, row, asked, name="b.png")
    assert other["questions"] != found["questions"]
    assert other["description"] == found["description"]


def test_own_flow_asks_different_questions_at_once(model, row):
    found = about(model, row, settings(sampling=sample.Sampling(1.0)))
    assert len(set(found["questions"])) == len(found["questions"]) == 3
    assert found.keys() == {"questions", "answers", "unanswered"}


class Says(model_lib.VisionLanguageModel):
    """A model that asks what it is told to, and answers by the number of the row."""

    def __init__(self, model, *texts):
        super().__init__(model.config, model.params, model.tokenizer)
        self.texts = texts

    def respond(self, rows, *, max_new_tokens, sampling, batch_size, draws=None):
        if rows and rows[0].open_role == "vuser":
            return list(self.texts)
        return [f"answer {i % 2 if sampling.temperature else 'sure'}" for i in range(len(rows))]


def test_questions_that_no_conversation_holds_stay_unanswered(model, row):
    says = Says(model, "is it?", "", "</s>VUSER: x", "is it?")
    found = about(says, row, settings(flow="official", count=4, consistency=2))
    assert found["questions"] == list(says.texts)
    assert found["answers"] == ["answer sure", "", "", "answer sure"]
    assert found["unanswered"] == [1, 2]
    assert found["agreement"] == [0.5, None, None, 0.5]  # one word of two


def test_many_images_give_what_each_gives_alone(model):
    cases = scenes.make_cases(tiny_model.SCENES, count=2)
    rows = [inputs.Row((), case.image, case.entities) for case in cases]
    asked = settings(flow="official", sampling=ask.OFFICIAL, consistency=2)
    alone = [about(model, row, asked, name=name) for row, name in zip(rows, "ab", strict=True)]
    assert self_questioning.about_each(model, rows, asked, names=["a", "b"]) == alone
    assert self_questioning.about_each(model, [], asked, names=[]) == []


def test_a_description_that_no_conversation_holds_is_left_out(row):
    class Silent(Says):
        """Describes nothing, and keeps what it is asked."""

        def respond(self, rows, *, max_new_tokens, **more):
            self.seen = rows
            if rows[0].turns[-1:] == [inputs.human(ask.FIRST_TURN)]:
                return [""] * len(rows)
            return super().respond(rows, max_new_tokens=max_new_tokens, **more)

    silent = Silent(tiny_model.make(), "is it?")
    found = about(silent, row, settings(flow="official", count=1))
    assert found["description"] == "" and found["answers"] == ["answer sure"]
    assert [turn["value"] for turn in silent.seen[0].turns] == ["is it?"]


def test_lengths_that_the_model_cannot_hold_are_refused_before_it_runs(model):
    self_questioning.check_room(model, settings(flow="official"), flag="--x")
    long = settings(flow="official", description_tokens=300, question_tokens=150)
    with pytest.raises(errors.SgqlmError, match="too short for an image") as told:
        self_questioning.check_room(model, long, flag="--x")
    assert "512 positions" in told.value.why and "smaller --x" in told.value.fix


def test_a_run_goes_on_and_tries_again_what_went_wrong(tmp_path):
    calls = []

    def load(name):
        if name == "bad":
            raise errors.SgqlmError("cannot be read", code=errors.DATA)
        return name.upper()

    def asked(names, loaded):
        calls.append(list(names))
        assert list(loaded) == [name.upper() for name in names]
        if "odd" in names:
            raise errors.SgqlmError("cannot be asked about", code=errors.DATA)
        return [{"questions": [f"what is {name}?"], "answers": ["it"]} for name in names]

    path, told = tmp_path / "deep" / "q.jsonl", []
    out = self_questioning.QuestionFile(path, {"seed": 0})
    names = ["a", "bad", "odd", "b"]
    failed = self_questioning.run(names, out, load, asked, at_once=3, update=told.append)
    assert {name: error.what for name, error in failed.items()} == {
        "bad": "cannot be read", "odd": "cannot be asked about"
    }  # fmt: skip
    assert calls == [["a", "odd"], ["a"], ["odd"], ["b"]]  # each alone only where one is wrong
    assert told == [3, 4]
    with path.open("ab") as file:
        file.write(b'{"image": "c", "quest')  # killed while it wrote
    again = self_questioning.QuestionFile(path, {"seed": 0})
    calls.clear()
    self_questioning.run(["a", "b", "c"], again, load, asked, at_once=3)
    assert calls == [["c"]]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a", "b", "c"]
    assert lines == self_questioning.read(path)
    with pytest.raises(errors.SgqlmError, match="another evaluation"):
        self_questioning.QuestionFile(path, {"seed": 1})


def test_errors_that_are_no_fault_of_an_image_end_the_run(tmp_path):
    def asked(names, loaded):
        raise errors.SgqlmError("no memory", code=errors.RESOURCES)

    out = self_questioning.QuestionFile(tmp_path / "q.jsonl", {})
    with pytest.raises(errors.SgqlmError, match="no memory"):
        self_questioning.run(["a", "b"], out, str, asked, at_once=2)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"image": "a", "questions": ["what?"], "answers": ["it"]}\n')
    with pytest.raises(errors.SgqlmError, match="nothing says how"):
        self_questioning.QuestionFile(path, {})
    path.write_text('{"question_id": 1}\n')
    with pytest.raises(errors.SgqlmError, match="no questions"):
        self_questioning.read(path)


def test_measures_leave_out_what_was_not_measured():
    line = {"image": "a", "questions": ["what is it?", ""], "answers": ["it", ""]}
    found = self_questioning.measure([line])
    assert found["agreement"] is found["clip_score"] is None
    assert found["unanswered"] == 0
    more = {"unanswered": [1], "agreement": [0.5, None], "clip_score": [0.7, None]}
    found = self_questioning.measure([line | more, line])
    assert (found["agreement"], found["clip_score"], found["unanswered"]) == (0.5, 0.7, 1)
    assert "0.700" in self_questioning.told(found)[-1]


def test_images_with_fewer_questions_than_wanted_are_told():
    lines = [{"questions": ["what is it?"] * count} for count in (2, 1, 0)]
    found = self_questioning.measure(lines, wanted=2)
    assert (found["wanted"], found["fewer"]) == (2, 2)
    assert "2 images have fewer than 2: what was drawn again" in "".join(
        self_questioning.told(found)
    )
    assert "fewer" not in "".join(self_questioning.told(self_questioning.measure(lines)))

"""Rounds of self-asked questions: what stands in the prompts, what a batch changes, what fails."""

import dataclasses
import pathlib

import pytest

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.decode import ask, inputs
from sgqlm.evals import benchmark, questions, scenes, self_asked_rounds, sharing, tasks
from tests import tiny_model

ROUNDS = self_asked_rounds.Rounds(count=2, tokens=4)
CHOSEN = benchmark.Settings("", "", max_new_tokens=4)
SAID = {
    "description": "two stars",
    "questions": ["how many?", "", "which colour?"],
    "answers": ["two", "", "red"],
}


class Spy(model_lib.VisionLanguageModel):
    """The tiny model; keeps the rows that it is given."""

    def __init__(self, template="trained"):
        made = benchmark.with_template(tiny_model.make(), template)
        super().__init__(made.config, made.params, made.tokenizer)
        self.calls = []

    def respond(self, rows, **more):
        self.calls.append((rows, more))
        return super().respond(rows, **more)


@pytest.fixture(scope="module")
def trained():
    return Spy()


@pytest.fixture(scope="module")
def papers():
    return Spy("vicuna_v1")


@pytest.fixture(scope="module")
def images():
    cases = scenes.make_cases(tiny_model.SCENES, count=2)
    return [inputs.Row((), case.image, case.entities) for case in cases]


def asked(row, text="what?"):
    return dataclasses.replace(row, turns=[inputs.human(text)])


def job(*named):
    found = [questions.Question(at, text, text, name) for at, (name, text) in enumerate(named)]
    here = pathlib.Path()
    return benchmark.Job(tasks.Place(tasks.get("gqa"), here, here, ()), found, range(len(found)))


def answering(model, wanted, rounds=ROUNDS):
    return self_asked_rounds.answering(model, wanted, CHOSEN, rounds, batch_size=2)


def shown(model, row):
    prepared = inputs.prepare(row, model.config, model.tokenizer)
    return model.tokenizer.surface([t for t in prepared.expanded.tokens if t >= 0])


def test_the_dialogue_stands_in_front_as_in_the_release(papers, images):
    row, note = self_asked_rounds.in_front(papers, asked(images[0]), SAID, room=4)
    text = shown(papers, row)
    assert "curious virtual user" not in text and "VUSER" not in text
    assert text.endswith(
        f"{ask.FIRST_TURN} ASSISTANT: two stars</s>USER: how many? ASSISTANT: two</s>"
        "USER: which colour? ASSISTANT: red</s>USER: what? ASSISTANT:"
    )
    assert note["left_out"] == [""]
    kept = [turn["value"] for turn in note["turns"][2:]]
    assert kept == ["how many?", "two", "which colour?", "red"]


def test_a_template_with_the_role_keeps_it(trained, images):
    row, _ = self_asked_rounds.in_front(trained, asked(images[0]), SAID, room=4)
    assert row.vusr_turns == (2, 4)
    assert "</s>VUSER: how many?</s>  ASSISTANT: two</s>" in shown(trained, row)
    assert shown(trained, row).endswith("USER: what? ASSISTANT:")


def test_what_is_too_long_goes_the_oldest_question_first(trained, images):
    def left(room):
        row, note = self_asked_rounds.in_front(trained, asked(images[0]), SAID, room=room)
        length = inputs.prepare(row, trained.config, trained.tokenizer).length
        return [turn["value"] for turn in note["turns"][::2]], note["left_out"], 512 - length

    told, _, room = left(0)
    assert told == [ask.FIRST_TURN, "how many?", "which colour?"] == left(room)[0]
    told, out, room = left(room + 1)
    assert (told, out) == ([ask.FIRST_TURN, "which colour?"], ["how many?", ""])
    told, out, room = left(room + 1)
    assert (told, out) == ([ask.FIRST_TURN], ["how many?", "", "which colour?"])
    assert left(room + 1)[0] == left(600)[0] == []


def test_what_no_conversation_holds_is_left_out(trained, images):
    said = {**SAID, "description": "", "answers": ["it </s>", "", "red"]}
    row, note = self_asked_rounds.in_front(trained, asked(images[0]), said, room=4)
    assert [turn["value"] for turn in note["turns"]] == ["which colour?", "red"]
    assert row.vusr_turns == (0,)
    assert shown(trained, row).startswith("<s> USER:  \nVUSER: which colour?</s>")


def test_rounds_are_real_turns_of_the_model_and_alike_in_any_batch(trained, images):
    wanted = job(("a", "what?"), ("b", "where?"), ("a", "who?"), ("", "hello"))
    rows = [asked(images[0]), asked(images[1]), asked(images[0], "who?")]
    rows += [inputs.Row([inputs.human("hello")])]
    respond = answering(trained, wanted)
    trained.calls.clear()
    found = respond(range(4), rows)
    describe, draw, answer, last = trained.calls
    assert [row.turns[0]["value"] for row in describe[0]] == [ask.FIRST_TURN] * 2
    assert all(shown(trained, row).endswith("</s>VUSER:") for row in draw[0])
    assert len(draw[0]) == 4 and draw[1]["sampling"] == ask.OFFICIAL
    assert {row.vusr_turns for row in answer[0]} <= {(0,), (2,)}
    assert [row.turns[-1] for row in last[0]] == [row.turns[-1] for row in rows]
    assert not found[3].metadata
    notes = [said.metadata[self_asked_rounds.KEY] for said in found[:3]]
    assert notes[0] == notes[2] != notes[1]  # one dialogue an image
    assert [note["turns"] for note in notes] == [list(row.turns[:-1]) for row in last[0][:3]]
    assert answering(trained, wanted)([1], rows[1:2]) == found[1:2]
    other = answering(trained, wanted, dataclasses.replace(ROUNDS, seed=1))
    assert other([1], rows[1:2])[0].metadata != found[1].metadata


def test_the_papers_template_asks_with_the_one_that_can(images):
    class Fine(Spy):
        """Says the same to everything."""

        def respond(self, rows, **more):
            self.calls.append((rows, more))
            return ["fine"] * len(rows)

    fine = Fine("vicuna_v1")
    answering(fine, job(("a", "what?")))([0], [asked(images[0])])
    prompts = [[shown(fine, row) for row in rows] for rows, _ in fine.calls]
    assert [len(part) for part in prompts] == [1, 2, 2, 1]
    assert all("curious virtual user" in text for part in prompts[:3] for text in part)
    assert prompts[2][0].endswith("VUSER: fine</s>  ASSISTANT:")
    assert "curious virtual user" not in prompts[3][0]
    assert prompts[3][0].count("USER: fine ASSISTANT: fine</s>") == 2


def test_an_image_is_asked_about_once_for_all_its_questions(images):
    class Fine(Spy):
        """Says the same to everything."""

        def respond(self, rows, **more):
            self.calls.append((rows, more))
            return ["fine"] * len(rows)

    fine, names = Fine(), ["a", "a", "b", "", "a", "c"]
    wanted = job(*((name, "what?") for name in names))
    rows = [asked(images[0]) if name else inputs.Row([inputs.human("hello")]) for name in names]
    respond = answering(fine, wanted)
    order = share(wanted, sharing.Team(pathlib.Path()))
    assert order == [0, 2, 1, 4, 3, 5]
    found = {}
    for start in (0, 2, 4):
        batch = order[start : start + 2]
        found.update(zip(batch, respond(batch, [rows[at] for at in batch]), strict=True))
    described = [rows for rows, _ in fine.calls if rows[0].turns[0]["value"] == ask.FIRST_TURN]
    assert [len(rows) for rows in described if len(rows[0].turns) == 1] == [2, 1]
    notes = [found[at].metadata.get(self_asked_rounds.KEY) for at in range(6)]
    assert notes[0] == notes[1] == notes[4] and notes[0] and not notes[3]
    # an image belongs to one process
    teams = [sharing.Team(pathlib.Path(), index, 2) for index in range(2)]
    assert [share(wanted, team) for team in teams] == [[0, 1, 4], [2, 3, 5]]


def share(wanted, team):
    own = sharing.share(benchmark.by_image(wanted, wanted.chosen), team)
    return self_asked_rounds.order(own, batch_size=2)


def test_one_bad_image_does_not_stop_the_others(images):
    class Fussy(Spy):
        """Cannot see the first image."""

        def respond(self, rows, **more):
            if any(row.image is images[0].image for row in rows):
                raise errors.SgqlmError("cannot see", code=errors.DATA)
            return ["fine"] * len(rows)

    wanted = job(("a", "what?"), ("b", "what?"), ("c", "what?"))
    rows = [asked(images[0]), asked(images[1]), "no such picture"]
    found = answering(Fussy(), wanted)(range(3), rows)
    assert [(said.text, said.error) for said in found] == [
        ("", "cannot see"), ("fine", ""), ("", "no such picture")
    ]  # fmt: skip
    assert [bool(said.metadata) for said in found] == [False, True, False]


def test_settings_that_cannot_work_are_refused_at_once(papers):
    with pytest.raises(errors.SgqlmError, match="holds no conversation"):
        answering(Spy("plain"), job())
    with pytest.raises(errors.SgqlmError, match="too short for an image") as told:
        answering(papers, job(), dataclasses.replace(ROUNDS, tokens=40))
    assert "--round-tokens" in told.value.fix


def test_no_rounds_are_the_plain_protocol(trained, images):
    none = self_asked_rounds.Rounds()
    assert none.header() == {} and ROUNDS.header()["self_questions"]["count"] == 2
    found = answering(trained, job(("a", "what?")), none)([0], [asked(images[0])])
    assert not found[0].metadata
    assert found[0].text == trained.respond([asked(images[0])], max_new_tokens=4)[0]

import dataclasses

from sgqlm.decode import ask, inputs, sample
from sgqlm.text import conversation
from tests.text import helpers


def test_asked_questions_are_different_and_repeatable(model, rows):
    row = dataclasses.replace(rows[0], turns=())
    sampling = sample.Sampling(1.0)

    def draw(seed):
        return ask.questions(model, row, count=3, sampling=sampling, max_new_tokens=5, seed=seed)

    found = draw(0)
    assert len(set(found)) == len(found) == 3
    assert found == draw(0)
    assert found != draw(1)


def test_greedy_asks_once(model, rows):
    row = dataclasses.replace(rows[0], turns=())
    found = ask.questions(model, row, count=4, sampling=sample.Sampling(), max_new_tokens=5)
    assert len(found) == 1


def test_own_questions_are_answered_as_turns_of_the_model(model, rows):
    base = dataclasses.replace(rows[0], turns=())
    row = ask.own_turn(base, "how many stars?")
    prepared = inputs.prepare(row, model.config, model.tokenizer)
    text = model.tokenizer.surface(prepared.expanded.tokens)
    assert text.rstrip().endswith("VUSER: how many stars?</s>  ASSISTANT:")
    assert prepared.expanded.prompts == [[]]
    assert len(ask.answer_own(model, [base] * 2, ["how many?", "why?"], max_new_tokens=3)) == 2
    later = ask.own_turn(
        dataclasses.replace(
            rows[0], turns=[inputs.human("what?"), {"from": "gpt", "value": "a star"}]
        ),
        "how many stars?",
    )
    assert later.vusr_turns == (2,)


def test_what_is_asked_about_an_image_depends_on_no_other(model, cases):
    images = [inputs.Row((), case.image, case.entities) for case in cases]
    wanted = {"count": 3, "sampling": sample.Sampling(1.0), "max_new_tokens": 5}
    alone = [ask.questions(model, row, seed=at, **wanted) for at, row in enumerate(images)]
    assert ask.different(model, images, seeds=range(3), batch_size=4, **wanted) == alone
    back = ask.different(model, images[::-1], seeds=[2, 1, 0], batch_size=4, **wanted)
    assert back[::-1] == alone
    again = ask.independent(model, [images[0]] * 2, seeds=[0, 1], **wanted)
    assert again[0] == ask.independent(model, images[:1], seeds=[0], **wanted)[0] != again[1]


def test_an_image_that_gives_too_few_questions_is_asked_again(rows):
    class Shy:
        """Says a new thing only when it is asked with another seed."""

        def __init__(self):
            self.asked = []

        def respond(self, rows, *, draws=(), **_):
            self.asked.append(sorted({seed for seed, _ in draws}))
            return [
                "" if seed < 4 else f"{seed % 2} {n}?" if seed > 5 else "0?" for seed, n in draws
            ]

    shy = Shy()
    found = ask.different(shy, rows[:2], seeds=[0, 1], count=2)
    assert shy.asked == [[0, 4], [1, 5], [2, 6], [3]]  # the second image has two after its third
    assert found == [[], ["0?", "0 0?"]]


class Bus:
    """Keeps what it is asked, and says what the recorded run of the release has."""

    def __init__(self):
        self.rows, self.settings = [], []

    def respond(self, rows, *, max_new_tokens, sampling, batch_size, draws=None):
        self.rows.append(rows)
        self.settings.append((max_new_tokens, sampling, draws))
        return ["A red bus waits at a stop."] * len(rows)


def test_official_flow_has_the_prompts_and_draws_of_the_release(rows):
    bus = Bus()
    opened = ask.describe(bus, [dataclasses.replace(rows[0], turns=())])
    asked = ask.independent(bus, opened, seeds=[7], count=2)
    assert len(asked[0]) == 2  # equal ones stay
    drawn = (300, sample.Sampling(1.2, 300, 0.95), [(7, 0), (7, 1)])
    assert bus.settings == [(1024, sample.Sampling(), None), drawn]
    records = {r["name"]: r for r in helpers.read("sq_llava/prompts.json")}
    names = ("sq_first_round", "sq_question_prompt")
    for name, (asked, *_) in zip(names, bus.rows, strict=True):
        found = conversation.prompt(
            asked.turns,
            "v1_sq",
            tokenizer=helpers.llama(records[name]["tokenizer_legacy"]),
            open_role=asked.open_role,
        )
        assert found.input_ids == records[name]["input_ids"]
        assert asked.image is rows[0].image

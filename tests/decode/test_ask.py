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


class Bus:
    """Keeps what it is asked, and says what the recorded run of the release has."""

    def __init__(self):
        self.rows, self.settings = [], []

    def respond(self, rows, *, max_new_tokens, sampling, seed, batch_size):
        self.rows.append(rows)
        self.settings.append((max_new_tokens, sampling, seed, batch_size))
        return ["A red bus waits at a stop."] * len(rows)


def test_official_flow_has_the_prompts_and_draws_of_the_release(rows):
    bus = Bus()
    row = ask.describe(bus, dataclasses.replace(rows[0], turns=()))
    assert len(ask.independent(bus, row, count=2)) == 2  # equal ones stay
    greedy = (1024, sample.Sampling(), 0, 1)
    assert bus.settings == [greedy, (300, sample.Sampling(1.2, 300, 0.95), 0, 2)]
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

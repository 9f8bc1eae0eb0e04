import dataclasses

from sgqlm.decode import ask, inputs, sample


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

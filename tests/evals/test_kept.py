"""A stopped evaluation goes on: what is on disk is not asked again."""

import pytest

from sgqlm.decode import inputs, sample
from sgqlm.evals import answers, kept

ROWS = [inputs.Row([inputs.human("x" * (n + 1))]) for n in range(5)]


class Counter:
    """Answers with the draw of each row, and breaks after so many rows."""

    def __init__(self, most=99):
        self.asked, self.most = 0, most

    def respond(self, rows, *, draws=None, **_):
        if self.asked + len(rows) > self.most:
            raise KeyboardInterrupt
        self.asked += len(rows)
        assert draws is not None
        return [
            f"{len(row.turns[0]['value'])} {draw}" for row, draw in zip(rows, draws, strict=True)
        ]


def ask(responder, **changed):
    settings = {"max_new_tokens": 3, "sampling": sample.Sampling(), "batch_size": 2} | changed
    return responder.respond(ROWS, **settings)


def evaluate(path, model):
    """Two calls in the first part, one in the second."""
    with answers.AnswerFile(path, {"task": "t"}) as out:
        responder = kept.Kept(model, out, "t")
        responder.begin("a")
        found = [ask(responder), ask(responder, draws=[(7, at) for at in range(5)])]
        responder.begin("b")
        return [*found, ask(responder)], responder.texts("a")


def test_a_killed_run_repeats_nothing(tmp_path):
    whole, first = evaluate(tmp_path / "whole.jsonl", Counter())
    assert first == whole[0] and whole[0] == [f"{n} (0, {n - 1})" for n in range(1, 6)]
    assert whole[1][3] == "4 (7, 3)"
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "cut.jsonl", Counter(most=8))
    rest = Counter()
    assert evaluate(tmp_path / "cut.jsonl", rest) == (whole, first)
    assert rest.asked == 15 - 7  # batches of 2, 2, 1, 2: the fifth broke
    assert evaluate(tmp_path / "cut.jsonl", Counter(most=0)) == (whole, first)


def test_without_a_file_texts_stay_in_memory():
    responder = kept.Kept(Counter())
    responder.begin("a")
    assert ask(responder) == responder.texts("a")

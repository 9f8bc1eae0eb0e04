import numpy as np

from sgqlm.text import conversation, self_questioning
from tests.text import helpers

CHAT = helpers.chat("<image>\na?", "b", "c?", "d", "e?", "f")


def _draw(probability=0.5, *, turns=CHAT, seed=1, record=2, epoch=3, **keywords):
    keywords = {"has_image": True, **keywords}
    return self_questioning.choose_turns(
        turns, probability, seed=seed, record=record, epoch=epoch, **keywords
    )


def test_the_draw_depends_on_seed_record_and_epoch_only():
    assert _draw() == _draw()
    for name in ("seed", "record", "epoch"):
        assert len({_draw(**{name: value}) for value in range(40)}) > 4
    assert _draw(record=np.int64(2), epoch=np.int32(3)) == _draw()
    assert len({_draw(record=f"scene/{value}") for value in range(40)}) > 4
    assert _draw(seed=-1, record=-1) == _draw(seed=-1, record=-1)


def test_probabilities_are_kept_and_nested():
    records = range(4000)
    for probability in (0.2, 0.5):
        taken = np.array([[i in _draw(probability, record=r) for i in (0, 2, 4)] for r in records])
        np.testing.assert_allclose(taken.mean(0), probability, atol=0.03)  # 4 standard errors
        assert abs(np.corrcoef(taken.T)[0, 1]) < 0.07
    assert all(set(_draw(0.2, record=r)) <= set(_draw(0.5, record=r)) for r in range(200))
    assert _draw(0.0) == ()
    assert _draw(1.0) == (0, 2, 4)


def test_only_turns_that_can_be_asked_are_taken():
    assert _draw(1.0, has_image=False) == ()
    assert _draw(1.0, turns=helpers.chat("<image>", "b", "c?", "d")) == (2,)
    assert _draw(1.0, turns=helpers.chat("a?", "b", "<image>\nc?", "d", "e?", "f")) == (4,)
    assert _draw(1.0, turns=helpers.chat("<image>\na?", "b", "<image>\nc?", "d")) == (0,)
    assert _draw(1.0, turns=helpers.chat("a?", "b")) == ()


def test_official_spares_the_first_turn():
    assert _draw(1.0, compat="official") == (2, 4)
    opened = [helpers.turn("gpt", "hi"), *CHAT]
    assert _draw(1.0, turns=opened, compat="official") == (1, 3, 5)


def test_every_candidate_can_be_encoded():
    rng, tokenizer = np.random.default_rng(0), helpers.trained()
    for _ in range(50):
        turns = [{**turn, "value": turn["value"]} for turn in CHAT]
        turns[2 * rng.integers(3)]["value"] = str(rng.choice(["<image>", "<image>\nx", "  x"]))
        if not any("<image>" in turn["value"] for turn in turns):
            continue
        chosen = self_questioning.candidates(turns, has_image=True)
        conversation.encode(turns, "v1_sq", tokenizer=tokenizer, vusr_turns=chosen)

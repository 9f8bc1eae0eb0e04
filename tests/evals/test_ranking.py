import json

import numpy as np
import pytest
from PIL import Image

from sgqlm import config, errors
from sgqlm.data.relations import conversations, types
from sgqlm.decode import inputs, score
from sgqlm.evals import ranking, scenes
from sgqlm.text import conversation, tokenizer
from tests import paths, tiny_model

WORDS = ["on", "on top of", "holding", "in"]
ASKED = ["what is it?", "what colour is the star?", "how many red circles are there?"]


@pytest.fixture(scope="module")
def model():
    return tiny_model.make()


@pytest.fixture(scope="module")
def picture(model):
    (case,) = scenes.make_cases(tiny_model.SCENES, count=1)
    return ranking.open_picture(model, case.image, case.entities)


@pytest.fixture(scope="module")
def ranked(model, picture):
    return ranking.Ranker(model, WORDS).rank(picture, ASKED)


def log_likelihood(model, picture, question, word) -> float:
    """Score an answer in the sequence that training would have."""
    row = inputs.Row([inputs.human(question)], *picture)
    start = inputs.prepare(row, model.config, model.tokenizer)
    (ids,) = ranking.continuations([word], model.config, model.tokenizer)
    before = conversation.prompt(row.turns, "v1_sq", tokenizer=model.tokenizer, system="").input_ids
    logits = model.logits([picture.square], [before + ids], [picture.entities], [question])[0]
    logits = logits[start.length - 1 : start.length - 1 + len(ids)].astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(-1))
    return float((logits[np.arange(len(ids)), ids] - log_sum).sum())


def test_a_word_scores_as_the_whole_sequence(model, picture, ranked):
    assert ranked.values.shape == (3, 4) and ranked.values.dtype == np.float32
    for word in (1, 3):
        wanted = log_likelihood(model, picture, ASKED[1], WORDS[word])
        assert ranked.values[1, word] == pytest.approx(wanted, abs=1e-4)  # float32 sums


def test_words_are_spelled_as_answers_and_end(model):
    found = ranking.continuations(WORDS, model.config, model.tokenizer)
    words = model.tokenizer
    assert [words.decode(ids[:-1]).strip() for ids in found] == WORDS
    assert all(ids[-1] == words.eos_id for ids in found)
    with pytest.raises(errors.SgqlmError, match="no continuation"):
        ranking.Ranker(model, [])


def test_batches_and_their_odd_end_change_nothing(model, picture, ranked):
    options = ranking.Options(batch_size=2)
    found = ranking.Ranker(model, WORDS, options=options).rank(picture, ASKED)
    np.testing.assert_allclose(found.values, ranked.values, atol=1e-4)
    assert 0 < ranked.cost.run < ranked.cost.plain / 3
    assert ranked.cost.plain == found.cost.plain and found.cost.run > ranked.cost.run


def test_calibration_takes_away_what_is_said_without_the_image(model, picture, ranked):
    options = ranking.Options(is_calibrated=True)
    found = ranking.Ranker(model, WORDS, options=options).rank(picture, ASKED)
    blank = ranking.Ranker(model, WORDS).rank(ranking.Picture(None, None), ASKED)
    np.testing.assert_allclose(found.values, ranked.values - blank.values, atol=1e-4)
    assert np.abs(found.values - ranked.values).max() > 1


def test_the_mean_is_over_the_tokens_of_a_word(model, picture, ranked):
    options = ranking.Options(is_per_token=True)
    found = ranking.Ranker(model, WORDS, options=options).rank(picture, ASKED)
    lengths = [len(ids) for ids in ranking.continuations(WORDS, model.config, model.tokenizer)]
    np.testing.assert_allclose(found.values, ranked.values / lengths, rtol=1e-5)


def test_entities_are_labelled_and_covered_once(model):
    (case,) = scenes.make_cases(tiny_model.SCENES, count=1)
    found = ranking.open_picture(model, case.image, case.entities)
    assert any(found.entities.labels) and len(found.entities.coverage) == 1
    assert ranking.open_picture(model, Image.new("RGB", (30, 20)), None).entities is None


def test_lists_are_read_from_every_form(tmp_path):
    files = {
        "plain.txt": "\ufeffOn\n\n wearing \non\n",
        "list.json": json.dumps(["on", "wearing"]),
        "VG.json": json.dumps({"idx_to_predicate": {"10": "wearing", "2": "on"}}),
        "psg.json": json.dumps({"predicate_classes": ["on", "wearing"], "data": []}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert ranking.read_words(tmp_path / name, "predicates") == ["on", "wearing"], name
    (tmp_path / "o.json").write_text(
        json.dumps({"thing_classes": ["man"], "stuff_classes": ["sky"]})
    )
    assert ranking.read_words(tmp_path / "o.json", "objects") == ["man", "sky"]


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "{", '{"idx_to_predicate": {"x": "on"}}', "[]"])
def test_a_file_without_a_list_is_refused(tmp_path, text):
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(errors.SgqlmError, match="no predicates"):
        ranking.read_words(tmp_path / "wrong.json", "predicates")
    with pytest.raises(errors.SgqlmError, match="no predicates"):
        ranking.read_words(tmp_path / "none.txt", "predicates")


def test_the_official_list_of_vg150():
    file = paths.shared("samples/vg150/VG-SGG-dicts-with-attri.json")
    predicates, objects = (ranking.read_words(file, kind) for kind in ("predicates", "objects"))
    assert (len(predicates), len(objects)) == (50, 150)
    assert predicates[30] == "on" and objects[:2] == ["airplane", "animal"]


def test_one_position_of_two_hundred_is_run():
    """Count for 64 pairs of an image of LLaVA 7B, with 32 graph tokens, and VG150's predicates."""
    words = tokenizer.load(str(paths.fixture("llama_tokenizer.model")))
    file = paths.shared("samples/vg150/VG-SGG-dicts-with-attri.json")
    names = ranking.read_words(file, "objects")
    text = config.Config(text=config.TextConfig(template="v1_sq"))
    ids = ranking.continuations(ranking.read_words(file, "predicates"), text, words)
    found = score.choices(ids)
    assert found.num_nodes == 75  # of 129 tokens
    boxes = np.sort(np.random.default_rng(0).uniform(0, 480, (32, 2, 2)), axis=1).reshape(32, 4)
    objects = [types.Object(names[4 * i], tuple(map(float, box))) for i, box in enumerate(boxes)]
    item = types.Annotated("a", (480, 640), objects, [])
    lengths, shared = [], []
    for pair in [(s, o) for s in range(32) for o in range(32) if s != o][:64]:
        turns = [inputs.human(conversations.ask_predicate(item, *pair))]
        encoded = conversation.prompt(turns, "v1_sq", tokenizer=words)
        whole = conversation.expand(encoded, 576, 32).tokens
        lengths.append(len(whole))
        shared.append(whole.index(-201))  # the graph hears the question
    assert len(set(shared)) == 1
    done = score.cost(lengths, shared[0], found)
    assert 190 < done.plain / done.run < 210

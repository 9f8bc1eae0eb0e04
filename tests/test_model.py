import dataclasses

import numpy as np
import pytest
from PIL import Image

import sgqlm
from sgqlm import config, errors, types
from sgqlm import model as model_lib
from sgqlm.evals import scenes
from sgqlm.train import checkpoint
from tests import paths, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model.make()


@pytest.fixture(scope="module")
def cases():
    return scenes.make_cases(tiny_model.SCENES, count=3)


def test_logits_replace_the_image_token_and_do_not_look_ahead(model, cases):
    ids = np.array([[1, -200, 20, 21, 22], [1, -200, 20, 21, 23], [1, 5, 20, 21, 22]])
    pictures = [cases[0].image, cases[0].image, None]
    entities = [cases[0].entities, cases[0].entities, None]
    found = model.logits(pictures, ids, entities)
    grown = model.config.model.num_image_tokens + len(cases[0].entities) - 1
    assert found.shape == (3, 5 + grown, model.config.model.llm.vocab_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :-1], found[1, :-1], atol=1e-5)
    assert np.abs(found[0, -1] - found[1, -1]).max() > 1e-3
    alone = model.logits([None], ids[2:])
    assert alone.shape[1] == 5
    np.testing.assert_allclose(found[2, :5], alone[0], atol=1e-4)


def test_logits_hear_the_prompt_and_see_the_graph(model, cases):
    def run(entities=None, prompts=None):
        return model.logits([cases[0].image], [[1, -200, 20]], entities, prompts)

    plain = run([cases[0].entities])
    prompted = run([cases[0].entities], ["what colour is the star?"])
    assert plain.shape == prompted.shape
    assert np.abs(plain - prompted)[0, -1].max() > 1e-4
    assert run().shape[1] == plain.shape[1] - len(cases[0].entities)


def test_the_answer_hears_the_graph_it_is_given(model, cases):
    other = [cases[1].entities]
    question = [cases[0].questions[0].text]
    own = model.generate([cases[0].image], question, [cases[0].entities], max_new_tokens=4)
    assert own != model.generate([cases[0].image], question, other, max_new_tokens=4)


def test_scene_graph_gives_attention_per_node(model, cases):
    found = model.scene_graph(cases[0].image, "what colour is the star?", cases[0].entities)
    count = len(cases[0].entities)
    order = np.argsort(-cases[0].entities.scores, kind="stable")
    np.testing.assert_array_equal(found.entities.boxes, cases[0].entities.boxes[order])
    assert found.node_attention.shape == (count,)
    assert ((found.node_attention > 0) & (found.node_attention < 1)).all()
    np.testing.assert_allclose(found.edges.sum(1), 1, atol=1e-5)
    assert not found.edges.diagonal().any()
    silent = model.scene_graph(cases[0].image, "", cases[0].entities)
    np.testing.assert_allclose(silent.node_attention, 0, atol=1e-6)
    assert list(silent.words) == [] and np.shape(silent.word_attention) == (count, 0)


def test_scene_graph_tells_which_words_light_which_node(model, cases):
    found = model.scene_graph(cases[0].image, "what colour is the star?", cases[0].entities)
    assert list(found.words) == ["what", "colour", "is", "the", "star?"]
    assert np.shape(found.word_attention) == (len(found.entities), 5)
    np.testing.assert_allclose(np.sum(found.word_attention, 1), found.node_attention, atol=1e-5)
    given = cases[0].entities.take(np.asarray(found.source))
    np.testing.assert_array_equal(found.entities.boxes, given.boxes)


def test_scene_graph_without_entities_is_empty(model, cases):
    found = model.scene_graph(cases[0].image, "what?")
    assert (len(found.entities), found.node_attention.shape, found.edges.shape) == (0, (0,), (0, 0))


def test_labels_come_from_the_pixels_and_survive_the_tokenizer(model, cases):
    (tagged,) = model.tag([cases[0].image], [cases[0].entities])
    assert len(tagged.labels) == len(cases[0].entities)
    bare = model.logits([cases[0].image], [[1, -200, 20]], [cases[0].entities])
    given = model.logits([cases[0].image], [[1, -200, 20]], [tagged])
    np.testing.assert_array_equal(bare, given)
    renamed = dataclasses.replace(tagged, labels=["red star"] * len(tagged))
    changed = model.logits([cases[0].image], [[1, -200, 20]], [renamed])
    assert np.abs(given - changed).max() > 1e-4


def test_what_cannot_be_done_is_said(model, cases):
    with pytest.raises(errors.SgqlmError, match="cannot hold: prototypes"):
        model.save_pretrained("somewhere", format="peft")
    with pytest.raises(errors.SgqlmError, match="image is None"):
        model.logits([None], [[1, -200]])
    mute = model_lib.VisionLanguageModel(model.config, model.params, None)
    assert mute.logits([None], [[1, 5]]).shape[1] == 2
    with pytest.raises(errors.SgqlmError, match="tokenizer"):
        mute.generate([None], ["hello"])
    late = dataclasses.replace(
        model.config,
        model=dataclasses.replace(
            model.config.model,
            graph=dataclasses.replace(model.config.model.graph, placement="after_question"),
        ),
    )
    other = model_lib.VisionLanguageModel(late, model.params, model.tokenizer)
    with pytest.raises(errors.SgqlmError, match="after_question"):
        other.logits([cases[0].image], [[1, -200]], prompts=["what?"])
    with pytest.raises(errors.SgqlmError):
        sgqlm.load("no/such/folder")


def test_a_checkpoint_gives_the_same_model_back(model, cases, tmp_path):
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    folder = checkpoint.save(
        tmp_path / "checkpoints", meta, model.params, tokenizer=model.tokenizer.model_bytes
    )
    again = sgqlm.load(folder)
    assert again.config == model.config
    ids = [[1, -200, 20]]
    np.testing.assert_array_equal(
        again.logits([cases[0].image], ids, [cases[0].entities]),
        model.logits([cases[0].image], ids, [cases[0].entities]),
    )


def test_a_hugging_face_folder_gives_the_logits_of_torch():
    folder = paths.fixture("llava/tiny_llava_hf/config.json").parent
    oracle = np.load(folder / "oracle_forward.npz")
    ids = oracle["input_ids"][0].tolist()
    start, count = ids.index(300), ids.count(300)
    ids[start : start + count] = [types.IMAGE_TOKEN_ID]
    model = sgqlm.load(folder)
    found = model.logits([Image.fromarray(oracle["image_rgb"])], [ids])
    np.testing.assert_allclose(found, oracle["logits"], atol=1e-4)
    with pytest.raises(errors.SgqlmError, match="tokenizer"):
        model.generate([None], ["hello"])

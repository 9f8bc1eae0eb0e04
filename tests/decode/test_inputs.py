import dataclasses

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors, types
from sgqlm.decode import inputs
from tests import tiny_model


def prepare(model, row):
    return inputs.prepare(row, model.config, model.tokenizer)


def test_rows_hold_exactly_their_image_and_graph_tokens(model, rows):
    prepared = [prepare(model, row) for row in rows]
    tokens = [row.expanded.tokens for row in prepared]
    images = [ids.count(types.IMAGE_TOKEN_ID) for ids in tokens]
    graphs = [ids.count(types.GRAPH_TOKEN_ID) for ids in tokens]
    assert images == [model.config.model.num_image_tokens] * 2 + [0]
    assert graphs == [len(rows[0].entities), 0, 0]
    batch = inputs.collate(prepared, 64, model.config.model)
    assert batch.lengths.tolist() == [len(ids) for ids in tokens]
    assert batch.graph.valid.sum(1).tolist() == graphs
    assert batch.image_valid.tolist() == [True, True, False]
    assert not (batch.labels != types.IGNORE).any()


def test_the_graph_hears_the_question_and_nothing_when_the_model_asks(model, rows):
    asked = prepare(model, rows[0]).expanded.prompts
    assert asked == [inputs.graph_prompt(rows[0].turns[0]["value"], model.config, model.tokenizer)]
    assert asked[0]
    asking = dataclasses.replace(rows[0], turns=(), open_role="vuser")
    assert prepare(model, asking).expanded.prompts == [[]]


def test_edge_permutations_move_every_node_and_no_empty_slot(model, rows):
    changed = dataclasses.replace(rows[0], permute_edges=5)
    prepared = [prepare(model, row) for row in (rows[0], changed)]
    slots = model.config.model.graph.num_nodes
    still, moved = inputs.edge_permutations(prepared, slots)
    count = len(rows[0].entities)
    assert still.tolist() == list(range(slots))
    assert sorted(moved[:count]) == list(range(count))
    assert not (moved[:count] == np.arange(count)).any()
    assert moved[count:].tolist() == list(range(count, slots))
    assert inputs.edge_permutations(prepared[:1], slots) is None


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_derangement_has_no_fixed_point_unless_it_must(count):
    found = inputs.derangement(count, 3)
    assert sorted(found) == list(range(count))
    assert count == 1 or not (found == np.arange(count)).any()


def test_an_image_token_without_image_is_refused():
    model = tiny_model.make()
    with pytest.raises(errors.SgqlmError, match="image is None") as caught:
        inputs.prepare_ids(
            inputs.Row(),
            [1, types.IMAGE_TOKEN_ID],
            prompt=[],
            config=model.config.model,
            tokenizer=None,
        )
    assert caught.value.code == errors.DATA


def test_any_picture_becomes_a_square(model):
    grey = Image.new("L", (30, 10), 200)
    row = prepare(model, inputs.Row([inputs.human("what?")], grey))
    pixels = inputs.collate([row], 32, model.config.model).images
    assert pixels.shape[1:] == (56, 56, 3)
    assert pixels[0, 28, 28].tolist() == [200, 200, 200]


class _Pieces:
    """Spells each id as the piece of that index."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def surface(self, ids):
        return "".join(self.pieces[i] for i in ids)


def test_attention_on_tokens_becomes_attention_on_words():
    pieces = _Pieces("wh", "at", " is", " i", "t", "?")
    attention = np.arange(12, dtype=np.float32).reshape(2, 6)
    words, found = inputs.by_word(range(6), attention, pieces)
    assert words == ["what", "is", "it?"]
    np.testing.assert_array_equal(found, [[1, 2, 12], [13, 8, 30]])
    assert inputs.by_word(range(3), attention[:, :3], _Pieces("这", "是", "猫"))[0] == list(
        "这是猫"
    )
    words, found = inputs.by_word([], attention[:, :0], pieces)
    assert words == [] and found.shape == (2, 0)

"""Arrays that travel between the parts, and the letters of their shapes.

B batch, T text positions (image and graph tokens included), P patches, I image tokens in the LLM,
N node slots, R graph runs of a sequence (1, or one per asked turn), Q prompt tokens, L label
tokens, K prototypes, D ViT width, G graph width, H LLM width, V vocabulary.
"""

from typing import Any, NamedTuple

IMAGE_TOKEN_ID = -200
GRAPH_TOKEN_ID = -201
IGNORE = -100

# values of `Batch.target_kind`
NOT_TRAINED, ANSWER, QUESTION = 0, 1, 2

Params = dict[str, Any]
Array = Any  # numpy on the host, jax on the device


class GraphBatch(NamedTuple):
    """Entities and prompts of a batch, as the scene-graph network takes them.

    A prompt belongs to one run of graph tokens in the sequence: run 0 is the one after the image;
    with `after_question` every asked turn has its own. `prompt_ids` may also be [B, Q].
    """

    coverage: Array  # uint8[B, N, P]: share of patch p under mask n, 255 = all of it
    boxes: Array  # f32[B, N, 4]: x0, y0, x1, y1 in the model's square, 0..1
    label_ids: Array  # int32[B, N, L]: token ids, -1 padding
    valid: Array  # bool[B, N]
    prompt_ids: Array  # int32[B, R, Q]
    prompt_valid: Array  # bool[B, R, Q]
    predicate_ids: Array | None = None  # int32[B, N(receiver), N(sender), L]; diagnostics only


class Batch(NamedTuple):
    """One training or evaluation batch: fixed shapes, right-padded."""

    images: Array  # uint8[B, S, S, 3]; zeros where there is none
    image_valid: Array  # bool[B]
    tokens: Array  # int32[B, T]; IMAGE_TOKEN_ID and GRAPH_TOKEN_ID stand once per token
    lengths: Array  # int32[B]: valid positions, the rest is padding
    labels: Array  # int32[B, T]; labels[t] = tokens[t] where trained, else IGNORE (not shifted)
    weights: Array  # f32[B, T]: loss weight of labels[t]; 0 for dummies and untrained
    target_kind: Array  # int8[B, T]: NOT_TRAINED, ANSWER or QUESTION
    graph: GraphBatch | None
    row: Array  # int32[B]: index of the sample in its split, -1 for a dummy

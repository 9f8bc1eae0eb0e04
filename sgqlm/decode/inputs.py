"""Prompts as batches: text, image and entities of each row, padded to one shape."""

import dataclasses
import functools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.data import graphs, images
from sgqlm.text import conversation


@dataclasses.dataclass(frozen=True)
class Row:
    """One conversation that the model is to continue.

    Attributes:
        turns: LLaVA turns so far, `{"from": "human" | "gpt", "value": str}`.
        image: the picture; None for text only.
        entities: nodes of the scene graph; None for none.
        open_role: who speaks next: the assistant, or the model as a questioner.
        vusr_turns: indices of the human turns that the model asked itself.
        permute_edges: diagnostics only: seed of a permutation of the nodes between which the
            edges run, the nodes themselves staying right.
        template: conversation format, with its own system text; empty for those of the model.
    """

    turns: Sequence[Mapping[str, str]] = ()
    image: Image.Image | None = None
    entities: graphs.Entities | None = None
    open_role: Literal["assistant", "vuser"] = "assistant"
    vusr_turns: tuple[int, ...] = ()
    permute_edges: int | None = None
    template: str = ""


class Prepared(NamedTuple):
    """A row, its tokens with all placeholders, and its graph nodes."""

    row: Row
    expanded: conversation.Expanded
    nodes: graphs.Nodes | None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.expanded.tokens)


def human(text: str) -> dict[str, str]:
    """Return what the user says as a turn; `conversation.prompt` puts the image in front."""
    return {"from": "human", "value": text}


def answer(text: str) -> dict[str, str]:
    """Return what the model says as a turn."""
    return {"from": "gpt", "value": text}


def graph_prompt(text: str, config: config_lib.Config, tokenizer: Any) -> list[int]:
    """Return the ids that the graph hears when the user asks `text`; none for an empty text."""
    if not text:
        return []
    template = config.text.template
    return conversation.prompt(
        [human(text)], template, tokenizer=tokenizer, has_image=False
    ).prompt_ids


def by_word(
    ids: Sequence[int], attention: np.ndarray, tokenizer: Any
) -> tuple[list[str], np.ndarray]:
    """Sum the attention on tokens to attention on words, for pictures.

    A word begins with a space, or is one wide character (Chinese, Japanese, Korean).

    Args:
        ids: the q tokens of a prompt.
        attention: f32[n, q].
        tokenizer: the one that made the ids.

    Returns:
        The m words, and f32[n, m].
    """
    starts = []
    for i, token in enumerate(ids):
        first = tokenizer.surface([token])[:1]
        if not i or first == " " or (first and unicodedata.east_asian_width(first) in "WF"):
            starts.append(i)
    if not starts:
        return [], np.zeros((len(attention), 0), np.float32)
    ends = [*starts[1:], len(ids)]
    found = [tokenizer.surface(ids[a:b]).strip() for a, b in zip(starts, ends, strict=True)]
    return found, np.add.reduceat(attention, starts, axis=1)


def prepare(row: Row, config: config_lib.Config, tokenizer: Any) -> Prepared:
    """Tokenise a row and put one placeholder where each image and graph token will stand.

    Args:
        row: the conversation.
        config: model and text settings.
        tokenizer: of the model.

    Returns:
        The row, ready to be collated.
    """
    text = config.text
    encoded = conversation.prompt(
        row.turns,
        row.template or text.template,
        tokenizer=tokenizer,
        has_image=row.image is not None,
        open_role=row.open_role,
        vusr_turns=row.vusr_turns,
        system=None if row.template else text.system,
        vusr_marker=text.vusr_marker,
    )
    return _expand(row, encoded, config.model, tokenizer)


def prepare_ids(
    row: Row,
    ids: Sequence[int],
    *,
    prompt: Sequence[int],
    config: config_lib.ModelConfig,
    tokenizer: Any,
) -> Prepared:
    """Expand raw ids, as `prepare` does for a conversation.

    Args:
        row: image and entities; its turns are not looked at.
        ids: token ids with `types.IMAGE_TOKEN_ID` where the image stands.
        prompt: ids of the question that the graph hears.
        config: the model.
        tokenizer: of the model, for labels of entities; may be None without entities.

    Returns:
        The row, ready to be collated.

    Raises:
        SgqlmError: there is a placeholder, but no image.
    """
    if row.image is None and types.IMAGE_TOKEN_ID in ids:
        raise errors.SgqlmError(
            f"a row has the image token {types.IMAGE_TOKEN_ID}, but its image is None",
            fix="give the image, or leave the token out",
            code=errors.DATA,
        )
    encoded = conversation.Encoded(
        input_ids=list(ids),
        labels=[types.IGNORE] * len(ids),
        prompt_ids=list(prompt),
        kinds=[types.NOT_TRAINED] * len(ids),
        asked=(),
        text="",
    )
    return _expand(row, encoded, config, tokenizer)


def make_nodes(row: Row, config: config_lib.ModelConfig, tokenizer: Any) -> graphs.Nodes | None:
    """Return the graph nodes of a row; None without a graph, an image or entities."""
    if not config.graph.enabled or row.image is None or row.entities is None:
        return None
    encode = None if tokenizer is None else functools.partial(tokenizer.encode, bos=False)
    return graphs.make_nodes(row.entities, config, encode=encode)


def collate(rows: Sequence[Prepared], length: int, config: config_lib.ModelConfig) -> types.Batch:
    """Build the batch of some rows.

    Args:
        rows: the conversations.
        length: padded length, at least that of the longest row.
        config: the model.

    Returns:
        A batch without labels, right-padded.
    """
    shape, size = (len(rows), length), config.vision.image_size
    tokens = np.zeros(shape, np.int32)
    pixels = np.zeros((len(rows), size, size, 3), np.uint8)
    squares: dict[int, np.ndarray] = {}
    for b, (row, expanded, _) in enumerate(rows):
        tokens[b, : len(expanded.tokens)] = expanded.tokens
        if row.image is not None:
            if id(row.image) not in squares:
                upright = images.open_image(row.image)
                squares[id(row.image)] = images.to_square(upright, size, config.image_fit)
            pixels[b] = squares[id(row.image)]
    graph = None
    if config.graph.enabled:
        prompts = [expanded.prompts for _, expanded, _ in rows]
        nodes = [found for *_, found in rows]
        graph = graphs.stack(nodes, prompts, config, num_runs=max((1, *map(len, prompts))))
    return types.Batch(
        images=pixels,
        image_valid=np.array([row.image is not None for row, *_ in rows]),
        tokens=tokens,
        lengths=np.array([row.length for row in rows], np.int32),
        labels=np.full(shape, types.IGNORE, np.int32),
        weights=np.zeros(shape, np.float32),
        target_kind=np.zeros(shape, np.int8),
        graph=graph,
        row=np.arange(len(rows), dtype=np.int32),
    )


def edge_permutations(rows: Sequence[Prepared], num_nodes: int) -> np.ndarray | None:
    """Draw the permutations that the rows ask for.

    Args:
        rows: the conversations.
        num_nodes: slots N.

    Returns:
        int32[B, N] that leaves no valid node in its place (unless it is alone) and every empty
        slot where it is; None if no row asks for one.
    """
    if all(row.permute_edges is None for row, *_ in rows):
        return None
    out = np.tile(np.arange(num_nodes, dtype=np.int32), (len(rows), 1))
    for slots, (row, _, nodes) in zip(out, rows, strict=True):
        if row.permute_edges is not None and nodes is not None:
            count = len(nodes.boxes)
            slots[:count] = derangement(count, row.permute_edges)
    return out


def derangement(count: int, seed: int) -> np.ndarray:
    """Return int32[count], a random permutation without a fixed point: one random cycle."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    out = np.empty(count, np.int32)
    out[order] = np.roll(order, -1)
    return out


def _expand(row, encoded, config, tokenizer) -> Prepared:
    nodes = make_nodes(row, config, tokenizer)
    expanded = conversation.expand(
        encoded,
        config.num_image_tokens,
        0 if nodes is None else len(nodes.boxes),
        placement=config.graph.placement,
    )
    return Prepared(row, expanded, nodes)

"""Likelihood of given continuations: many of them after many prompts, no token run twice.

What is run once and then attended to from a cache, from the outside in:

- the beginning that all rows of a batch share: system text, image, and graph tokens if they are the
  same (the questions about one image share 600 of their 700 tokens);
- the rest of each row, up to where it is to be continued;
- each beginning of a continuation: they form a tree, since "on", "on top of" and "on back of" begin
  alike, and a token sees its ancestors only.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.decode import generate, prefixes
from sgqlm.models import llama, vlm
from sgqlm.parallel import rules

NODES = 256  # inner tokens of continuations that run at once
_UNIT = 16  # their number is a multiple of it


class Tree(NamedTuple):
    """Some continuations as a tree of tokens; M inner tokens, C continuations of up to L tokens.

    An inner token is one that another follows. Example: `a b` and `a c` have the inner token `a`;
    `where` is [[0, 1], [0, 1]] and `targets` [[a, b], [a, c]].

    Attributes:
        tokens: int32[M], the inner tokens; padded with zeros.
        depth: int32[M], how many tokens precede each within its continuation.
        visible: bool[M, M], which inner token (row) sees which (column).
        where: int32[C, L], what predicts a token: 0 the prompt's last one, 1 + m inner token m.
        targets: int32[C, L], the tokens of the continuations.
        valid: bool[C, L], False behind the end of a continuation.
    """

    tokens: np.ndarray
    depth: np.ndarray
    visible: np.ndarray
    where: np.ndarray
    targets: np.ndarray
    valid: np.ndarray


class Choices(NamedTuple):
    """Continuations in the form that programs take.

    Attributes:
        trees: all of one shape, together all continuations in order.
        lengths: int32[C], tokens of each continuation.
        num_nodes: inner tokens of all trees, without padding.
    """

    trees: tuple[Tree, ...]
    lengths: np.ndarray
    num_nodes: int


class Cost(NamedTuple):
    """Positions that the language model ran, and would have run sequence by sequence."""

    run: int
    plain: int

    def __add__(self, other):
        """Return the sum of both counts."""
        return Cost(self.run + other.run, self.plain + other.plain)


def choices(continuations: Sequence[Sequence[int]], *, num_nodes: int = NODES) -> Choices:
    """Prepare continuations.

    Args:
        continuations: token ids of each, its end token included.
        num_nodes: inner tokens that may run at once; more are run in turn.

    Raises:
        SgqlmError: there is none, or an empty one.
    """
    if not continuations or not all(len(ids) for ids in continuations):
        what = "an empty continuation" if continuations else "no continuation"
        raise errors.SgqlmError(f"{what} cannot be scored", fix="give at least one token each")
    groups, inner = [], []
    for ids in map(tuple, continuations):
        new = {ids[:size] for size in range(1, len(ids))}
        if not groups or len(inner[-1] | new) > num_nodes:
            groups.append([])
            inner.append(set())
        groups[-1].append(ids)
        inner[-1] |= new
    shape = (
        -(-max(max(map(len, inner)), 1) // _UNIT) * _UNIT,
        max(map(len, groups)),
        max(map(len, continuations)),
    )
    trees = tuple(_tree(group, shape) for group in groups)
    lengths = np.array([len(ids) for ids in continuations], np.int32)
    return Choices(trees, lengths, sum(map(len, inner)))


def cost(lengths: Sequence[int] | np.ndarray, shared: int, found: Choices) -> Cost:
    """Count the positions of one batch.

    Args:
        lengths: of the prompts.
        shared: see `prefixes.shared_length`.
        found: what follows them.

    Returns:
        What `Scorer.score` runs, padding apart, and what scoring each sequence alone would.
    """
    rows, total = len(lengths), int(np.sum(lengths))
    alone = int((found.lengths - 1).sum())  # the last token is predicted, never read
    run = shared + total - rows * shared + rows * found.num_nodes
    return Cost(run, total * len(found.lengths) + rows * alone)


class Scorer:
    """Scores continuations with one model, on the devices and in the layout it generates on.

    Args:
        generator: of the model.
    """

    def __init__(self, generator: generate.Generator):
        self._generator = generator

    def score(self, batch: types.Batch, found: Choices) -> np.ndarray:
        """Return the log-likelihood of every continuation of every row.

        A row's numbers do not depend on the rows beside it, but rows of one image are cheaper
        together.

        Args:
            batch: right-padded prompts, numpy arrays.
            found: the continuations, see `choices`.

        Returns:
            f32[B, C], sums of the log probabilities of a continuation's tokens.

        Raises:
            SgqlmError: the model has fewer positions than that.
        """
        model = self._generator
        longest = int(np.max(batch.lengths))
        most, needed = model.config.llm.max_positions, longest + int(found.lengths.max()) - 1
        if needed > most:
            raise errors.SgqlmError(
                f"a prompt of {longest} tokens and its continuation need {needed} positions, but "
                f"the model has {most}",
                fix="shorten the prompt",
            )
        shared = prefixes.shared_length(batch)
        length = batch.tokens.shape[1]
        sizes = (
            min(generate.bucket(shared), length),
            min(generate.bucket(longest - shared), length),
        )
        is_one_image = len(batch.tokens) > 1 and prefixes.is_same(batch.images)
        placed = model.place(batch)
        with model.on_mesh():
            caches, last = _prefix(
                model.params,
                placed,
                jnp.int32(shared),
                config=model.config,
                sizes=sizes,
                is_one_image=is_one_image,
            )
            llm = model.params["llm"]
            parts = [_follow(llm, caches, last, tree, config=model.config) for tree in found.trees]
        whole = np.concatenate([np.asarray(part) for part in parts], axis=1)
        kept = np.concatenate([tree.valid.any(1) for tree in found.trees])
        return whole[:, kept]


def _tree(group, shape) -> Tree:
    num_nodes, count, length = shape
    paths = sorted({ids[:size] for ids in group for size in range(1, len(ids))})
    number = {path: index for index, path in enumerate(paths)}
    tokens, depth = np.zeros((2, num_nodes), np.int32)
    visible = np.eye(num_nodes, dtype=bool)
    for path, index in number.items():
        tokens[index], depth[index] = path[-1], len(path) - 1
        visible[index, [number[path[:size]] for size in range(1, len(path))]] = True
    where, targets = np.zeros((2, count, length), np.int32)
    valid = np.zeros((count, length), bool)
    for row, ids in enumerate(group):
        targets[row, : len(ids)] = ids
        where[row, 1 : len(ids)] = [1 + number[ids[:size]] for size in range(1, len(ids))]
        valid[row, : len(ids)] = True
    return Tree(tokens, depth, visible, where, targets, valid)


@functools.partial(jax.jit, static_argnames=("config", "sizes", "is_one_image"))
def _prefix(params, batch, shared, *, config: config_lib.ModelConfig, sizes, is_one_image):
    """Run the prompts; return the caches of their shared and own parts and the last state."""
    features = None
    if is_one_image:
        one = vlm.encode_images(params, config, batch.images[:1])
        features = jnp.broadcast_to(one, (len(batch.tokens), *one.shape[1:]))
    inputs, _ = vlm.embed(params, config, batch, features=features)
    llm, (front, back) = params["llm"], sizes
    _, cache = llama.prefill(llm, config, inputs[:1, :front], shared[None], front)
    first = _place(cache, None)
    positions = jnp.broadcast_to(shared + jnp.arange(back), (len(inputs), back))
    taken = jnp.minimum(positions, inputs.shape[1] - 1)
    rest = jnp.take_along_axis(inputs, taken[..., None], axis=1)
    visible = jnp.tril(jnp.ones((back, back), bool))
    hidden, (k, v) = llama.extend(llm, config, rest, positions, [first], visible)
    lengths = batch.lengths - shared
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return (first, _place(llama.Cache(k, v, lengths), "batch")), last


@functools.partial(jax.jit, static_argnames="config")
def _follow(llm, caches, last, tree: Tree, *, config: config_lib.ModelConfig):
    first, second = caches
    table, rows = llm["embed"]["embedding"], len(last)
    inputs = jnp.broadcast_to(table[tree.tokens], (rows, len(tree.tokens), table.shape[1]))
    positions = (first.lengths + second.lengths)[:, None] + tree.depth[None]
    inputs = inputs.astype(last.dtype)
    hidden, _ = llama.extend(llm, config, inputs, positions, caches, tree.visible)
    logits = llama.head(llm, config.llm, jnp.concatenate([last, hidden], axis=1))
    total = jax.nn.logsumexp(logits, axis=-1)
    picked = logits[:, tree.where, tree.targets] - total[:, tree.where]
    return jnp.where(tree.valid, picked, 0.0).sum(-1)


def _place(cache: llama.Cache, rows: str | None) -> llama.Cache:
    """Keep the keys and values of every row and head where they are used."""

    def place(x):
        return rules.shard(x, rows, "heads", None, None)

    return cache._replace(k=tuple(map(place, cache.k)), v=tuple(map(place, cache.v)))

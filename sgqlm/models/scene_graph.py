"""Scene-graph expression (SGE): entity masks to graph tokens (LLaVA-SG, arXiv 2408.16224).

What the paper leaves open is fixed as docs/concepts.md says: complete directed graph, attention
over incoming edges, prompt attention with a null token.
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from sgqlm import config, types
from sgqlm.models import functional, layers


class GraphTokens(NamedTuple):
    """Graph tokens and the attention behind them, for the LLM and for pictures."""

    tokens: jax.Array  # float[B, R, N, H]
    prompt_attention: jax.Array  # float32[B, R, N, Q + 1]; the last column is the null token
    edge_attention: jax.Array  # float32[B, rounds, N (receiver), N (sender)]


def align_prompt(params: types.Params) -> types.Params:
    """Let fresh prompt attention start in the space of the labels.

    Queries begin as the nodes themselves and keys as the projection of the labels, so that a word
    of the question finds the nodes that carry it before anything is learned.

    Args:
        params: the fresh parameters of a `SceneGraph`.

    Returns:
        The same tree; unchanged without labels or without prompt attention.
    """
    if "label" not in params or "prompt" not in params:
        return params
    prompt = dict(params["prompt"])
    prompt["q"] = {**prompt["q"], "kernel": jnp.eye(prompt["q"]["kernel"].shape[0])}
    prompt["k"] = {**prompt["k"], "kernel": params["label"]["kernel"]}
    return {**params, "prompt": prompt}


def pool_nodes(features, coverage):
    """Average patch features under each mask (LLaVA-SG, section 3.2).

    Args:
        features: float[B, P, D].
        coverage: uint8[B, N, P], 255 where the mask covers the whole patch.

    Returns:
        float32[B, N, D]; zero where a mask covers nothing.
    """
    weights = coverage.astype(jnp.float32)
    total = jnp.einsum("bnp,bpd->bnd", weights, features.astype(jnp.float32))
    return total / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


def box_features(boxes):
    """Return centre, size and area of boxes float[B, N, 4] as float[B, N, 5]."""
    x0, y0, x1, y1 = jnp.split(boxes, 4, axis=-1)
    w, h = x1 - x0, y1 - y0
    return jnp.concatenate([(x0 + x1) / 2, (y0 + y1) / 2, w, h, w * h], axis=-1)


def pair_geometry(boxes):
    """Return the relative geometry of box pairs, float[B, N, N, 6], receiver i before sender j.

    dx / w_i, dy / h_i, log w_j / w_i, log h_j / h_i, IoU, centre distance.
    """
    x0, y0, x1, y1 = (boxes[..., k] for k in range(4))
    w, h = jnp.maximum(x1 - x0, 1e-3), jnp.maximum(y1 - y0, 1e-3)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2

    def pair(a):
        return a[:, :, None], a[:, None, :]

    (xi, xj), (yi, yj), (wi, wj), (hi, hj) = pair(cx), pair(cy), pair(w), pair(h)
    inter_w = jnp.minimum(*pair(x1)) - jnp.maximum(*pair(x0))
    inter_h = jnp.minimum(*pair(y1)) - jnp.maximum(*pair(y0))
    inter = jnp.maximum(inter_w, 0.0) * jnp.maximum(inter_h, 0.0)
    iou = inter / jnp.maximum(wi * hi + wj * hj - inter, 1e-6)
    distance = jnp.sqrt(jnp.square(xj - xi) + jnp.square(yj - yi) + 1e-12)
    parts = [(xj - xi) / wi, (yj - yi) / hi, jnp.log(wj / wi), jnp.log(hj / hi), iou, distance]
    return jnp.stack([jnp.clip(part, -8.0, 8.0) for part in parts], axis=-1)


def union_weights(boxes, grid: int):
    """Return float[B, N, N, P]: the share of each patch inside the union box of a pair."""
    low = jnp.minimum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = jnp.maximum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    edges = jnp.arange(grid + 1) / grid
    start = jnp.maximum(low[..., None], edges[:-1])
    stop = jnp.minimum(high[..., None], edges[1:])
    share = jnp.maximum(stop - start, 0.0) * grid  # [B, N, N, 2, grid]
    weights = share[..., 1, :, None] * share[..., 0, None, :]
    return weights.reshape(*weights.shape[:3], grid * grid)


def message_round_dense(nodes, edges, mask, num_heads: int):
    """Attend over incoming edges by einsum.

    Args:
        nodes: dict of `receive`, `send` and `value`, each float[N, G], and `logit` float[G, heads].
        edges: float[N, N, G], receiver-major.
        mask: bool[N, N]; True where the edge exists.
        num_heads: heads that divide G.

    Returns:
        The aggregated messages float[N, G] and the attention float32[N, N, heads].
    """
    hidden = jax.nn.gelu(nodes["receive"][:, None] + nodes["send"][None] + edges)
    weights = functional.masked_softmax(hidden @ nodes["logit"], mask[..., None], axis=1)
    message = (nodes["value"][None] + hidden).reshape(*mask.shape, num_heads, -1)
    out = jnp.einsum("ijh,ijhf->ihf", weights.astype(message.dtype), message)
    return out.reshape(nodes["value"].shape), weights


def message_round_jraph(nodes, edges, mask, num_heads: int):
    """Do the same as `message_round_dense` with `jraph.GraphNetwork` over one GraphsTuple.

    The N * N edges are receiver-major, so aggregation is a reshape instead of a scatter.
    """
    num, width = nodes["value"].shape
    receivers, senders = np.repeat(np.arange(num), num), np.tile(np.arange(num), num)
    logit = nodes["logit"]

    def update_edge(edge, sent, received, _):
        hidden = jax.nn.gelu(received["receive"] + sent["send"] + edge["feature"])
        return {**edge, "hidden": hidden, "message": sent["value"] + hidden}

    def normalise(scores, segment_ids, num_segments):
        del segment_ids
        shape = (num_segments, num_segments, -1)
        exists = mask[..., None]
        return functional.masked_softmax(scores.reshape(shape), exists, axis=1).reshape(
            scores.shape
        )

    def reduce(edge, weights):
        message = edge["message"].reshape(num * num, num_heads, -1)
        weighted = message * weights[..., None].astype(message.dtype)
        return {"message": weighted.reshape(num * num, width), "weights": weights}

    def aggregate(edge, segment_ids, num_segments):
        axis = 1 if segment_ids is receivers else 0
        return edge.reshape(num_segments, num_segments, -1).sum(axis)

    def update_node(node, sent, received, _):
        del node, sent
        return {"out": received["message"]}

    def score(edge, *_):
        return edge["hidden"] @ logit

    network = jraph.GraphNetwork(
        update_edge_fn=update_edge,
        update_node_fn=update_node,
        aggregate_edges_for_nodes_fn=aggregate,
        attention_logit_fn=score,
        attention_normalize_fn=normalise,
        attention_reduce_fn=reduce,
    )
    # jraph declares jax arrays, but fixed indices as numpy's fold into the program
    parts: dict[str, Any] = {
        "nodes": {key: nodes[key] for key in ("receive", "send", "value")},
        "edges": {"feature": edges.reshape(num * num, width)},
        "receivers": receivers,
        "senders": senders,
        "globals": None,
        "n_node": np.array([num]),
        "n_edge": np.array([num * num]),
    }
    graph = cast(Any, network)(jraph.GraphsTuple(**parts))
    return graph.nodes["out"], graph.edges["weights"].reshape(num, num, num_heads)


class MessageRound(nn.Module):
    """One residual round: attention over incoming edges, then a node update."""

    config: config.GraphConfig

    @nn.compact
    def __call__(self, x, edges, mask):
        """Map nodes float[B, N, G], edges float[B, N, N, G] and mask bool[B, N, N].

        Returns:
            The nodes float[B, N, G] and the mean attention float32[B, N, N].
        """
        cfg, width = self.config, self.config.width
        h = layers.LayerNorm(name="norm1")(x)
        nodes = {
            name: layers.Dense(width, use_bias=name == "value", name=name)(h)
            for name in ("receive", "send", "value")
        }
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        logit = self.param("logit", init, (width, cfg.num_heads)).astype(x.dtype)
        nodes["logit"] = jnp.broadcast_to(logit, (x.shape[0], *logit.shape))
        body = message_round_jraph if cfg.impl == "jraph" else message_round_dense
        out, weights = jax.vmap(lambda n, e, m: body(n, e, m, cfg.num_heads))(nodes, edges, mask)
        x = x + layers.Dense(width, name="out")(out)
        h = layers.Dense(2 * width, name="fc1")(layers.LayerNorm(name="norm2")(x))
        return x + layers.Dense(width, name="fc2")(jax.nn.gelu(h)), weights.mean(-1)


class PromptAttention(nn.Module):
    """Nodes attend to the tokens of the asked question and to one learned null token."""

    config: config.GraphConfig

    @nn.compact
    def __call__(self, x, prompt, prompt_valid):
        """Map nodes float[B, R, N, G], prompt float[B, R, Q, H] and bool[B, R, Q].

        Returns:
            The nodes float[B, R, N, G] and the attention float32[B, R, N, Q + 1].
        """
        cfg, width = self.config, self.config.width
        null = self.param("null", nn.initializers.normal(0.02), (prompt.shape[-1],))
        shape = (*prompt.shape[:2], 1, prompt.shape[-1])
        prompt = jnp.concatenate([prompt, jnp.broadcast_to(null.astype(x.dtype), shape)], axis=2)
        valid = jnp.pad(prompt_valid, ((0, 0), (0, 0), (0, 1)), constant_values=True)
        prompt = layers.RmsNorm(name="prompt_norm")(prompt)

        def heads(name, y):
            y = layers.Dense(width, name=name)(y)
            return y.reshape(*y.shape[:-1], cfg.num_heads, -1)

        q = heads("q", layers.LayerNorm(name="norm")(x))
        k, v = heads("k", prompt), heads("v", prompt)
        logits = jnp.einsum("brnhf,brqhf->brhnq", q, k) * q.shape[-1] ** -0.5
        weights = functional.masked_softmax(logits, valid[:, :, None, None])
        out = jnp.einsum("brhnq,brqhf->brnhf", weights.astype(v.dtype), v).reshape(x.shape)
        return x + layers.Dense(width, name="out")(out), weights.mean(2)


class SceneGraph(nn.Module):
    """Entities, their edges and the prompt to graph tokens: nodes, rounds, prompt, W_g."""

    config: config.GraphConfig
    features: int
    grid: int

    @nn.compact
    def __call__(self, patches, graph: types.GraphBatch, text, edge_permutation=None):
        """Encode the graph of every image.

        Args:
            patches: float[B, P, D], the features that nodes and edges are pooled from.
            graph: the entities; `prompt_ids` is int32[B, R, Q].
            text: function from int32[...] ids to embedding rows float[..., H].
            edge_permutation: int32[B, N]; edges are computed as if node i were node
                permutation[i]. A control: nodes stay right, relations do not.

        Returns:
            `GraphTokens`.
        """
        cfg = self.config
        labels = self._labels(graph, text) if cfg.labels == "predicted" else None
        x = self._nodes(patches, graph, labels)
        x, edge_attention = self._rounds(x, patches, graph, text, edge_permutation)
        runs = graph.prompt_ids.shape[1]
        x = jnp.broadcast_to(x[:, None], (x.shape[0], runs, *x.shape[1:]))
        num_prompt = graph.prompt_ids.shape[2]
        attention = jnp.zeros((*x.shape[:3], num_prompt + 1), jnp.float32).at[..., -1].set(1.0)
        if cfg.prompt_attention:
            valid = self._drop_prompts(graph.prompt_valid)
            prompt = text(jnp.maximum(graph.prompt_ids, 0)).astype(x.dtype)
            prompt = prompt * valid[..., None].astype(x.dtype)
            x, attention = PromptAttention(cfg, name="prompt")(x, prompt, valid)
        h = layers.LayerNorm(name="out_norm")(x)
        h = layers.Dense(self.features, name="out_fc1")(h)
        out = layers.Dense(self.features, kernel_init=layers.TOKEN_INIT, name="out_fc2")
        tokens = out(jax.nn.gelu(h))
        if labels is not None and cfg.label_skip:
            tokens = tokens + labels[:, None].astype(tokens.dtype)
        return GraphTokens(tokens, attention, edge_attention)

    def _labels(self, graph, text):
        # divided by the root of the count, a label is about as long as one word's row
        known = graph.label_ids >= 0
        rows = text(jnp.maximum(graph.label_ids, 0)) * known[..., None]
        return rows.sum(-2) * jax.lax.rsqrt(jnp.maximum(known.sum(-1, keepdims=True), 1.0))

    def _nodes(self, patches, graph, labels):
        cfg, dtype = self.config, patches.dtype
        pooled = pool_nodes(patches, graph.coverage).astype(dtype)
        x = layers.Dense(cfg.width, name="node")(layers.LayerNorm(name="node_norm")(pooled))
        if cfg.use_boxes:
            h = layers.Dense(cfg.width, name="box_fc1")(box_features(graph.boxes).astype(dtype))
            x = x + layers.Dense(cfg.width, name="box_fc2")(jax.nn.gelu(h))
        if labels is not None:
            h = layers.RmsNorm(name="label_norm")(labels.astype(dtype))
            has_label = (graph.label_ids >= 0).any(-1, keepdims=True)
            x = x + layers.Dense(cfg.width, name="label")(h) * has_label.astype(dtype)
        return x

    def _rounds(self, x, patches, graph, text, edge_permutation):
        cfg = self.config
        batch, num = graph.valid.shape
        if not cfg.message_passing:
            return x, jnp.zeros((batch, 0, num, num), jnp.float32)
        edges = self._edges(patches, graph, text)
        if edge_permutation is not None:
            pick = jax.vmap(lambda e, p: e[p][:, p])
            edges = pick(edges, edge_permutation)
        mask = graph.valid[:, :, None] & graph.valid[:, None, :] & ~np.eye(num, dtype=bool)
        attention = []
        for i in range(cfg.num_rounds):
            x, weights = MessageRound(cfg, name=f"round_{i}")(x, edges, mask)
            attention.append(weights)
        return x, jnp.stack(attention, axis=1)

    def _edges(self, patches, graph, text):
        cfg, dtype = self.config, patches.dtype
        batch, num = graph.valid.shape
        edges = jnp.zeros((batch, num, num, cfg.width), dtype)
        if cfg.edge_geometry:
            h = layers.Dense(cfg.width, name="pair_fc1")(pair_geometry(graph.boxes).astype(dtype))
            edges = edges + layers.Dense(cfg.width, name="pair_fc2")(jax.nn.gelu(h))
        if cfg.edge_visual:
            seen = layers.Dense(cfg.width, name="evidence")(
                layers.LayerNorm(name="evidence_norm")(patches)
            )
            weights = union_weights(graph.boxes, self.grid).astype(dtype)
            total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
            edges = edges + jnp.einsum("bijp,bpg->bijg", weights / total, seen)
        if cfg.edge_oracle and graph.predicate_ids is not None:
            known = graph.predicate_ids >= 0
            rows = text(jnp.maximum(graph.predicate_ids, 0)) * known[..., None]
            mean = rows.sum(-2) / jnp.maximum(known.sum(-1, keepdims=True), 1)
            mean = layers.RmsNorm(name="predicate_norm")(mean.astype(dtype))
            # both ends are told: a subject what it does to whom, an object what is done to it
            back = layers.Dense(cfg.width, use_bias=False, name="predicate_back")(mean)
            edges = edges + layers.Dense(cfg.width, use_bias=False, name="predicate")(mean)
            edges = edges + back.swapaxes(1, 2)
        return edges

    def _drop_prompts(self, valid):
        rate = self.config.prompt_dropout
        if not rate or not self.has_rng("dropout"):
            return valid
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, valid.shape[:2])
        return valid & keep[..., None]

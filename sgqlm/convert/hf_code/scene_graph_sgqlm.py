"""Scene graph of the torch model: entity masks to graph tokens."""

import torch
from torch import nn
from torch.nn import functional

from .layers_sgqlm import Dense, LayerNorm, RmsNorm, masked_softmax


def _gelu(x):
    return functional.gelu(x, approximate="tanh")


def pool_nodes(features, coverage):
    """Average patch features [B, P, D] under masks uint8[B, N, P]: float32[B, N, D]."""
    weights = coverage.float()
    return weights @ features.float() / weights.sum(-1, keepdim=True).clamp(min=1.0)


def _box_features(boxes):
    (x0, y0), (x1, y1) = boxes[..., :2].unbind(-1), boxes[..., 2:].unbind(-1)
    w, h = x1 - x0, y1 - y0
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, w, h, w * h], dim=-1)


def _pair_geometry(boxes):
    """Return [B, N, N, 6], receiver i before sender j."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    w, h = (x1 - x0).clamp(min=1e-3), (y1 - y0).clamp(min=1e-3)
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2

    def pair(a):
        return a[:, :, None], a[:, None, :]

    (xi, xj), (yi, yj), (wi, wj), (hi, hj) = map(pair, (center_x, center_y, w, h))
    inter_w = torch.minimum(*pair(x1)) - torch.maximum(*pair(x0))
    inter_h = torch.minimum(*pair(y1)) - torch.maximum(*pair(y0))
    inter = inter_w.clamp(min=0.0) * inter_h.clamp(min=0.0)
    iou = inter / (wi * hi + wj * hj - inter).clamp(min=1e-6)
    distance = torch.sqrt((xj - xi).square() + (yj - yi).square() + 1e-12)
    parts = [(xj - xi) / wi, (yj - yi) / hi, (wj / wi).log(), (hj / hi).log(), iou, distance]
    return torch.stack([part.clamp(-8.0, 8.0) for part in parts], dim=-1)


def _union_weights(boxes, grid):
    """Return [B, N, N, P]: the share of each patch inside the union box of a pair."""
    low = torch.minimum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.maximum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    edges = torch.arange(grid + 1, device=boxes.device, dtype=boxes.dtype) / grid
    start = torch.maximum(low[..., None], edges[:-1])
    stop = torch.minimum(high[..., None], edges[1:])
    share = (stop - start).clamp(min=0.0) * grid
    return (share[..., 1, :, None] * share[..., 0, None, :]).flatten(-2)


class MessageRound(nn.Module):
    """One residual round: attention over incoming edges, then a node update."""

    def __init__(self, config):
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.receive = Dense(width, width, bias=False)
        self.send = Dense(width, width, bias=False)
        self.value = Dense(width, width)
        self.logit = nn.Parameter(torch.zeros(width, config.num_heads))
        self.out = Dense(width, width)
        self.fc1, self.fc2 = Dense(width, 2 * width), Dense(2 * width, width)

    def forward(self, x, edges, mask):
        """Map nodes [B, N, G] and edges [B, N, N, G] with a mask bool[B, N, N] to nodes."""
        h = self.norm1(x)
        hidden = _gelu(self.receive(h)[:, :, None] + self.send(h)[:, None] + edges)
        weights = masked_softmax(hidden @ self.logit.to(x.dtype), mask[..., None], dim=2)
        message = (self.value(h)[:, None] + hidden).unflatten(-1, (self.num_heads, -1))
        out = torch.einsum("bijh,bijhf->bihf", weights.to(x.dtype), message)
        x = x + self.out(out.flatten(2))
        return x + self.fc2(_gelu(self.fc1(self.norm2(x))))


class PromptAttention(nn.Module):
    """Nodes attend to the tokens of the question and to one learned null token."""

    def __init__(self, config, features):
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.null = nn.Parameter(torch.zeros(features))
        self.prompt_norm, self.norm = RmsNorm(features), LayerNorm(width)
        self.q, self.out = Dense(width, width), Dense(width, width)
        self.k, self.v = Dense(features, width), Dense(features, width)

    def forward(self, x, prompt, valid):
        """Map nodes [B, R, N, G] under prompts [B, R, Q, H], bool[B, R, Q], to nodes."""
        null = self.null.to(x.dtype).expand(*prompt.shape[:2], 1, -1)
        prompt = self.prompt_norm(torch.cat([prompt, null], dim=2))
        valid = functional.pad(valid, (0, 1), value=True)

        def heads(y):
            return y.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)

        q, k, v = heads(self.q(self.norm(x))), heads(self.k(prompt)), heads(self.v(prompt))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = masked_softmax(logits, valid[:, :, None, None], dim=-1)
        return x + self.out((weights.to(x.dtype) @ v).transpose(2, 3).flatten(3))


class SceneGraph(nn.Module):
    """Entities, their edges and the prompt to graph tokens."""

    def __init__(self, config, vision, features):
        super().__init__()
        self.config, self.grid = config, vision.image_size // vision.patch_size
        width, depth = config.width, vision.width
        self.node_norm, self.node = LayerNorm(depth), Dense(depth, width)
        if config.use_boxes:
            self.box_fc1, self.box_fc2 = Dense(5, width), Dense(width, width)
        if config.labels == "predicted":
            self.label_norm, self.label = RmsNorm(features), Dense(features, width)
        if config.message_passing and config.edge_geometry:
            self.pair_fc1, self.pair_fc2 = Dense(6, width), Dense(width, width)
        if config.message_passing and config.edge_visual:
            self.evidence_norm, self.evidence = LayerNorm(depth), Dense(depth, width)
        for i in range(config.num_rounds if config.message_passing else 0):
            setattr(self, f"round_{i}", MessageRound(config))
        if config.prompt_attention:
            self.prompt = PromptAttention(config, features)
        self.out_norm = LayerNorm(width)
        self.out_fc1, self.out_fc2 = Dense(width, features), Dense(features, features)

    def forward(self, patches, coverage, boxes, label_ids, valid, prompt_ids, prompt_valid, text):
        """Encode the graph of every image.

        Args:
            patches: [B, P, D], what nodes and edges are pooled from.
            coverage: uint8[B, N, P].
            boxes: float32[B, N, 4] in the model's square.
            label_ids: int64[B, N, L], -1 padding.
            valid: bool[B, N].
            prompt_ids: int64[B, R, Q].
            prompt_valid: bool[B, R, Q].
            text: the embedding table of the language model.

        Returns:
            Tokens [B, R, N, H] in slot order; invalid slots hold rubbish.
        """
        cfg = self.config
        labels = self._labels(label_ids, text) if cfg.labels == "predicted" else None
        x = self._nodes(patches, coverage, boxes, labels, label_ids)
        if cfg.message_passing:
            itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
            mask = valid[:, :, None] & valid[:, None, :] & ~itself
            edges = self._edges(patches, boxes)
            for i in range(cfg.num_rounds):
                x = getattr(self, f"round_{i}")(x, edges, mask)
        x = x[:, None].expand(-1, prompt_ids.shape[1], -1, -1)
        if cfg.prompt_attention:
            prompt = text(prompt_ids.clamp(min=0)).to(x.dtype) * prompt_valid[..., None]
            x = self.prompt(x, prompt, prompt_valid)
        tokens = self.out_fc2(_gelu(self.out_fc1(self.out_norm(x))))
        if labels is not None and cfg.label_skip:
            tokens = tokens + labels[:, None].to(tokens.dtype)
        return tokens

    def _labels(self, label_ids, text):
        known = label_ids >= 0
        rows = text(label_ids.clamp(min=0)).float() * known[..., None]
        return rows.sum(-2) * torch.rsqrt(known.sum(-1, keepdim=True).float().clamp(min=1.0))

    def _nodes(self, patches, coverage, boxes, labels, label_ids):
        dtype = patches.dtype
        x = self.node(self.node_norm(pool_nodes(patches, coverage).to(dtype)))
        if self.config.use_boxes:
            x = x + self.box_fc2(_gelu(self.box_fc1(_box_features(boxes).to(dtype))))
        if labels is not None:
            has_label = (label_ids >= 0).any(-1, keepdim=True)
            x = x + self.label(self.label_norm(labels.to(dtype))) * has_label
        return x

    def _edges(self, patches, boxes):
        cfg, dtype, (batch, num) = self.config, patches.dtype, boxes.shape[:2]
        edges = patches.new_zeros(batch, num, num, cfg.width)
        if cfg.edge_geometry:
            edges = edges + self.pair_fc2(_gelu(self.pair_fc1(_pair_geometry(boxes).to(dtype))))
        if cfg.edge_visual:
            seen = self.evidence(self.evidence_norm(patches))
            weights = _union_weights(boxes, self.grid).to(dtype)
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
            edges = edges + (weights.flatten(1, 2) @ seen).unflatten(1, (num, num))
        return edges

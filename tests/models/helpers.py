"""A very small model and random inputs for it."""

import dataclasses

import numpy as np

from sgqlm import config, types

VOCAB = 64


def small_config(**changes) -> config.ModelConfig:
    """Return a model that compiles in seconds, all parts and adapters on."""
    base = config.ModelConfig(
        vision=config.VisionConfig(
            image_size=28, patch_size=7, width=16, num_layers=3, num_heads=2, mlp_dim=32
        ),
        llm=config.LlmConfig(
            vocab_size=VOCAB,
            width=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=6,
            mlp_dim=40,
        ),
        projector=config.ProjectorConfig(merge=2),
        prototypes=config.PrototypeConfig(mode="paper", num_prototypes=4),
        graph=config.GraphConfig(width=16, num_nodes=5, num_heads=2, prompt_tokens=6),
        llm_lora=config.LoraConfig(rank=2, alpha=4.0),
        vision_lora=config.LoraConfig(rank=2, alpha=4.0),
        compute_dtype="float32",
    )
    return dataclasses.replace(base, **changes)


def graph_batch(cfg: config.ModelConfig, valid: np.ndarray, seed: int = 0) -> types.GraphBatch:
    """Return random entities for bool[B, N] `valid`."""
    rng = np.random.default_rng(seed)
    batch, nodes = valid.shape
    low = rng.uniform(0, 0.5, (batch, nodes, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], -1)
    coverage = rng.integers(0, 256, (batch, nodes, cfg.vision.num_patches))
    return types.GraphBatch(
        coverage=coverage.astype(np.uint8),
        boxes=boxes.astype(np.float32),
        label_ids=rng.integers(-1, VOCAB, (batch, nodes, 3)).astype(np.int32),
        valid=valid,
        prompt_ids=rng.integers(0, VOCAB, (batch, 1, 6)).astype(np.int32),
        prompt_valid=np.arange(6)[None, None] < rng.integers(1, 7, (batch, 1, 1)),
    )


def batch(cfg: config.ModelConfig, num_nodes=(5, 3), length: int = 24, seed: int = 0):
    """Return a batch of one image, its graph and random text a row."""
    rng = np.random.default_rng(seed)
    rows, size = len(num_nodes), cfg.vision.image_size
    tokens = np.zeros((rows, length), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, count in enumerate(num_nodes):
        head = [1, 5] + [types.IMAGE_TOKEN_ID] * cfg.num_image_tokens
        head += [types.GRAPH_TOKEN_ID] * count
        text = rng.integers(3, VOCAB, 9 - row).tolist()
        tokens[row, : len(head) + len(text)] = head + text
        lengths[row] = len(head) + len(text)
    position = np.arange(length)[None]
    trained = (tokens > 2) & (position >= lengths[:, None] - 5) & (position < lengths[:, None])
    valid = np.arange(cfg.graph.num_nodes)[None] < np.array(num_nodes)[:, None]
    return types.Batch(
        images=rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8),
        image_valid=np.ones(rows, bool),
        tokens=tokens,
        lengths=lengths,
        labels=np.where(trained, tokens, types.IGNORE).astype(np.int32),
        weights=trained.astype(np.float32),
        target_kind=trained.astype(np.int8),
        graph=graph_batch(cfg, valid, seed),
        row=np.arange(rows, dtype=np.int32),
    )

"""Model sizes by name."""

import dataclasses

from sgqlm import config, errors

_TINY_VISION = config.VisionConfig(image_size=112, width=96, num_layers=3, num_heads=4, mlp_dim=384)
_TINY_LLM = config.LlmConfig(
    vocab_size=512,
    width=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=352,
    rope_theta=1e6,  # short heads: most of their pairs must match content at any distance
    max_positions=512,
    tie_embeddings=True,
)
_TINY_GRAPH = config.GraphConfig(
    width=128, num_nodes=12, num_heads=8, prompt_tokens=24, label_tokens=4, label_skip=True
)
_LLM_LORA = config.LoraConfig(rank=128, alpha=256.0, dropout=0.05)
_VISION_LORA = config.LoraConfig(rank=32, alpha=64.0, dropout=0.2)
_VICUNA_13B = config.LlmConfig(
    width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_dim=13824
)


def names() -> tuple[str, ...]:
    """Return the names `get` knows."""
    return ("tiny", "vicuna_7b", "vicuna_13b")


def get(name: str) -> config.ModelConfig:
    """Return the model called `name`, all parts of sgqlm on.

    `tiny` runs on a laptop; `vicuna_7b` and `vicuna_13b` are CLIP ViT-L/14 at 336 pixels with
    Vicuna v1.5 and the adapter sizes of SQ-LLaVA.

    Raises:
        SgqlmError: there is no such preset.
    """
    if name == "tiny":
        return config.ModelConfig(
            vision=_TINY_VISION,
            llm=_TINY_LLM,
            projector=config.ProjectorConfig(merge=2),
            prototypes=config.PrototypeConfig(mode="paper", num_prototypes=16),
            graph=_TINY_GRAPH,
            llm_lora=config.LoraConfig(rank=16, alpha=32.0),
            vision_lora=config.LoraConfig(rank=8, alpha=16.0),
            compute_dtype="float32",
            region_words=4,
        )
    large = config.ModelConfig(
        prototypes=config.PrototypeConfig(mode="paper"),
        llm_lora=_LLM_LORA,
        vision_lora=_VISION_LORA,
    )
    if name == "vicuna_7b":
        return large
    if name == "vicuna_13b":
        return dataclasses.replace(large, llm=_VICUNA_13B)
    raise errors.SgqlmError(
        f"there is no model preset {name!r}", fix="use one of " + ", ".join(names())
    )

"""The smallest real model with every part, and a run on a few scenes."""

import dataclasses

import numpy as np

from sgqlm import config
from sgqlm.models import lora, vlm

SCENES = config.SceneConfig(image_size=56, num_train=12, num_val=4, num_test=1)


def model(**changes) -> config.ModelConfig:
    base = config.ModelConfig(
        vision=config.VisionConfig(
            image_size=28, patch_size=14, width=16, num_layers=2, num_heads=2, mlp_dim=16
        ),
        llm=config.LlmConfig(
            vocab_size=320,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            head_dim=8,
            mlp_dim=16,
            tie_embeddings=True,
        ),
        projector=config.ProjectorConfig(kind="linear", merge=2),
        prototypes=config.PrototypeConfig(mode="paper", num_prototypes=2, iterations=1),
        graph=config.GraphConfig(
            width=16, num_nodes=9, num_rounds=1, num_heads=2, prompt_tokens=8, label_tokens=2
        ),
        llm_lora=config.LoraConfig(rank=2, alpha=4.0, dropout=0.1),
        vision_lora=config.LoraConfig(rank=2, alpha=4.0, dropout=0.1),
        compute_dtype="float32",
    )
    return dataclasses.replace(base, **changes)


def plain(whole: config.ModelConfig) -> config.ModelConfig:
    """Return it without graph, prototypes and adapters: its programs compile in a second or two."""
    return dataclasses.replace(
        whole,
        graph=config.GraphConfig(enabled=False),
        prototypes=config.PrototypeConfig(),
        llm_lora=config.LoraConfig(),
        vision_lora=config.LoraConfig(),
    )


def draw_params(cfg: config.ModelConfig):
    """Return values under which every parameter, adapters included, has a gradient."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return rng.normal(path.endswith("scale"), 0.15, leaf.shape).astype(np.float32)

    return lora.map_with_path(draw, vlm.param_shapes(cfg))


def stage(name: str, steps: int, *parts: str, **changes) -> config.StageConfig:
    row = config.StageConfig(
        name=name,
        steps=steps,
        batch_size=4,
        learning_rates=dict.fromkeys(parts, 1e-2),
        sources=(config.SourceConfig(tasks=("caption",)),),
        self_questioning=0.5,
    )
    return dataclasses.replace(row, **changes)


def settings(*rows: config.StageConfig, **train) -> config.Config:
    fields = {"mesh": {}, "log_every": 1, "tensorboard": False} | train
    return config.Config(
        model=model(),
        text=config.TextConfig(system="", vocab_size=360),
        data=config.DataConfig(buckets=(96,)),
        scenes=SCENES,
        train=config.TrainConfig(stages=rows, **fields),
    )

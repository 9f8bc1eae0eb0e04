"""A small model through every stage on drawn scenes, from nothing, on two CPU cores.

The tower first learns to name regions (it then plays CLIP, and labels what the noisy detector
finds); `pretrain` gives the language model its words and its look-ups in pictures; `align`, `graph`
and `instruct` are the published stages. Everything is drawn from the seed.
"""

import dataclasses

import ml_collections

from sgqlm import config as config_lib
from sgqlm.models import presets


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of `sgqlm quickstart`."""
    model = presets.get("tiny")
    rate = 2e-3
    modules = {"projector": rate, "prototypes": rate, "graph": rate}

    def scenes(task: str, weight: float = 1.0) -> config_lib.SourceConfig:
        return config_lib.SourceConfig(name="scenes", tasks=(task,), weight=weight)

    common = {"b2": 0.98, "warmup": 0.05, "final_lr": 0.02}
    stages = (
        config_lib.StageConfig(
            name="regions",
            objective="region_text",
            sources=(scenes("caption"),),
            steps=1500,
            batch_size=32,
            learning_rates={"vision": rate, "regions": rate},
            buckets=(256,),
            self_questioning=0.0,
            **common,
        ),
        config_lib.StageConfig(
            name="pretrain",
            sources=(scenes("lookup", 0.7), scenes("caption", 0.3)),
            steps=1000,
            batch_size=32,
            learning_rates={"llm": rate, **modules},
            cache_features=True,
            self_questioning=0.0,
            **common,
        ),
        config_lib.StageConfig(
            name="align",
            sources=(scenes("caption"),),
            steps=60,
            batch_size=32,
            learning_rates={"projector": 1e-3, "prototypes": 1e-3},
            cache_features=True,
            self_questioning=0.0,
            **common,
        ),
        config_lib.StageConfig(
            name="graph",
            sources=(scenes("relations"),),
            steps=100,
            batch_size=32,
            learning_rates={"graph": 1e-3},
            cache_features=True,
            self_questioning=0.0,
            **common,
        ),
        config_lib.StageConfig(
            name="instruct",
            sources=(scenes("chat"),),
            steps=400,
            batch_size=32,
            learning_rates={"llm_lora": rate, "vision_lora": 2e-4, **modules},
            self_questioning=0.5,
            question_weight=0.3,
            **common,
        ),
    )
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(tokenizer="train", vocab_size=768, system=""),
        data=config_lib.DataConfig(
            buckets=(160,), graph_dropout=0.05, image_dropout=0.05, cache_images=True
        ),
        train=config_lib.TrainConfig(
            workdir="runs/quickstart",
            stages=stages,
            mesh={"data": 2, "fsdp": 1, "tensor": 1},
            log_every=25,
        ),
    )
    config = dataclasses.replace(config, scenes=config_lib.SceneConfig())
    return ml_collections.ConfigDict(config_lib.to_dict(config))

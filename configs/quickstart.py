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
    # The two layers of the language model are tuned in full: they hold nothing that an adapter
    # would have to protect.
    model = dataclasses.replace(presets.get("tiny"), llm_lora=config_lib.LoraConfig())

    def scenes(task: str, weight: float = 1.0) -> config_lib.SourceConfig:
        return config_lib.SourceConfig(name="scenes", tasks=(task,), weight=weight)

    # What stands in front of the language model trains more slowly than a tiny language model:
    # else visual tokens grow into constants before anybody reads them.
    modules = {"projector": 4e-4, "prototypes": 4e-4, "graph": 4e-4}
    common = {"b2": 0.98, "warmup": 0.05, "final_lr": 0.02, "batch_size": 8}
    cached = {**common, "cache_features": True, "self_questioning": 0.0}
    stages = (
        config_lib.StageConfig(
            name="regions",
            objective="region_text",
            sources=(scenes("caption"),),
            steps=2200,
            buckets=(144,),
            learning_rates={"vision": 4e-3, "regions": 4e-3},
            self_questioning=0.0,
            **{**common, "batch_size": 16},
        ),
        config_lib.StageConfig(
            name="pretrain",
            sources=(scenes("lookup", 0.8), scenes("chat", 0.15), scenes("caption", 0.05)),
            steps=1400,
            learning_rates={"llm": 1.3e-3},
            **cached,
        ),
        config_lib.StageConfig(
            name="align",
            sources=(scenes("caption"),),
            steps=80,
            buckets=(144,),
            learning_rates={"projector": 1e-3, "prototypes": 1e-3},
            **cached,
        ),
        config_lib.StageConfig(
            name="graph",
            sources=(scenes("lookup"),),
            steps=160,
            learning_rates={"graph": 5e-4},
            **cached,
        ),
        config_lib.StageConfig(
            name="instruct",
            sources=(scenes("chat", 0.65), scenes("lookup", 0.35)),
            steps=1400,
            learning_rates={"llm": 1e-3, "vision_lora": 2e-4, **modules},
            self_questioning=0.4,
            question_weight=0.3,
            **common,
        ),
    )
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(tokenizer="train", vocab_size=768, system=""),
        data=config_lib.DataConfig(
            buckets=(176,), graph_dropout=0.05, image_dropout=0.05, cache_images=True
        ),
        train=config_lib.TrainConfig(
            workdir="runs/quickstart",
            stages=stages,
            mesh={"data": 2, "fsdp": 1, "tensor": 1},
            log_every=50,
            sample_every=700,
        ),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

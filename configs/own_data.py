"""A tiny model trained end to end on a folder of your own photographs.

`sgqlm train --config=configs/own_data.py:FOLDER`, where FOLDER is what `sgqlm data build` wrote, or
a folder of photographs with their LLaVA json.
"""

import ml_collections

from sgqlm import config as config_lib
from sgqlm.models import presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the data set."""
    config = ml_collections.ConfigDict(config_lib.to_dict(config_lib.Config()))
    config.model = ml_collections.ConfigDict(config_lib.to_dict(presets.get("tiny")))
    config.model.vision_lora = config_lib.to_dict(config_lib.LoraConfig())
    config.model.llm_lora = config_lib.to_dict(config_lib.LoraConfig())
    config.model.graph.labels = "none"  # regions have no labels
    config.text.tokenizer = "train"
    config.text.system = ""  # the system text is seven times as long as a short conversation
    config.data.buckets = [128, 256, 512]
    stage = config_lib.StageConfig(
        name="end_to_end",
        sources=(config_lib.SourceConfig(name="own_photos", path=arg),),
        steps=600,
        batch_size=14,
        learning_rates={
            "vision": 1e-3, "prototypes": 1e-3, "projector": 1e-3, "graph": 1e-3, "llm": 1e-3
        },
    )  # fmt: skip
    config.train.stages = [ml_collections.ConfigDict(config_lib.to_dict(stage))]
    config.train.workdir = "runs/own_data"
    return config

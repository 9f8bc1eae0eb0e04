"""A tiny model trained end to end on a folder of your own photographs.

`sgqlm train --config=configs/own_data.py:FOLDER`, where FOLDER is what `sgqlm data build` wrote, or
a folder of photographs with their LLaVA json.
"""

import dataclasses
import pathlib

import ml_collections

from sgqlm import config as config_lib
from sgqlm.models import presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the data set."""
    tiny = presets.get("tiny")
    model = dataclasses.replace(
        tiny,
        graph=dataclasses.replace(tiny.graph, labels="none"),  # regions have no labels
        vision_lora=config_lib.LoraConfig(),
        llm_lora=config_lib.LoraConfig(),
        region_words=0,
    )
    # The parts in front of the language model learn slowly: at its own rate their tokens grow
    # until they are long and all alike, and the model answers without looking.
    modules = 3e-4
    stage = config_lib.StageConfig(
        name="end_to_end",
        sources=(config_lib.SourceConfig(name="own_photos", path=arg),),
        epochs=150.0,
        min_steps=150,
        batch_size=16,
        learning_rates={
            "vision": modules,
            "prototypes": modules,
            "projector": modules,
            "graph": modules,
            "llm": 2e-3,
        },
        warmup=0.05,
        b2=0.98,
    )
    workdir = pathlib.Path("runs/own_data", pathlib.Path(arg).name)
    config = config_lib.Config(
        model=model,
        # the system text is several times as long as a short conversation
        text=config_lib.TextConfig(tokenizer="train", system=""),
        data=config_lib.DataConfig(buckets=(64, 128, 256, 512), cache_images=True),
        train=config_lib.TrainConfig(workdir=str(workdir), stages=(stage,)),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

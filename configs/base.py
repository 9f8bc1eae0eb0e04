"""Every setting with its default, and the stages of a model: where other configurations start.

`sgqlm train --config=configs/base.py:PRESET[,RECIPE]`, for example `tiny,sgqlm` or
`vicuna_7b,llava_sg`. It trains on drawn scenes; give other data with
`--config.train.stages.<stage>.sources`.
"""

import dataclasses

import ml_collections

from sgqlm import config as config_lib
from sgqlm.models import presets
from sgqlm.train import stages

_SCENE_TASKS = {"align": ("caption",), "graph": ("relations",)}


def get_config(arg: str = "tiny") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is a model preset and, after a comma, a recipe."""
    preset, _, recipe = arg.partition(",")
    recipe = recipe or "sgqlm"
    rows = []
    for name in stages.STAGES[1:4]:
        if name == "graph" and recipe == "sq_llava":
            continue
        source = config_lib.SourceConfig(tasks=_SCENE_TASKS.get(name, ()))
        rows.append(stages.with_sources(stages.preset(recipe, name), source))
    model = presets.get(preset)
    if recipe == "llava_sg":
        off = config_lib.PrototypeConfig(mode="none")
        model = dataclasses.replace(model, prototypes=off)
    if recipe == "sq_llava":
        model = dataclasses.replace(model, graph=config_lib.GraphConfig(enabled=False))
    train = config_lib.TrainConfig(stages=tuple(rows))
    settings = config_lib.Config(model=model, train=train)
    return ml_collections.ConfigDict(config_lib.to_dict(settings))

"""SQ-LLaVA with Vicuna-7B as its paper has it: prototypes, two adapters, self-questioning.

`sgqlm train --config=configs/sq_llava_7b.py:DATA`. DATA is the folder of the base and of the data
sets that `configs/data/sq_llava.py` names; docs/laptop_to_slice.md says what lies in it, and where
the released scripts differ from the paper. `DATA,sharegpt4v` takes the data of the released
weights, `configs/data/sq_llava_sharegpt4v.py`, and its second alignment.
"""

import dataclasses
import pathlib

import ml_collections

from configs.data import sq_llava, sq_llava_sharegpt4v
from sgqlm import config as config_lib
from sgqlm import errors
from sgqlm.models import presets
from sgqlm.train import stages

MIXTURES = {"": sq_llava, "sharegpt4v": sq_llava_sharegpt4v}


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the base and of the data sets, as above."""
    name, _, mixture = arg.partition(",")
    if mixture not in MIXTURES:
        fix = "leave it out, or give sharegpt4v"
        raise errors.SgqlmError(f"there is no mixture {mixture!r}", where="--config", fix=fix)
    folder, sources = pathlib.Path(name), MIXTURES[mixture].sources(name)

    def stage(name: str) -> config_lib.StageConfig:
        # batch sizes, learning rates and what trains are those of the stage table
        row = stages.preset("sq_llava", "align" if name == "align_captions" else name)
        if name == "align_captions":  # as the released scripts once had it
            rates = dict.fromkeys(row.learning_rates, 2e-4)
            row = dataclasses.replace(row, name=name, learning_rates=rates)
        # `accumulation` and `remat` do not change the result: 16 chips of 16 GB hold the step
        return dataclasses.replace(row, sources=sources[name], accumulation=4)

    # prototypes (K 256, 2 rounds) and adapters (LLM r128, ViT r32) come with the preset
    no_graph = config_lib.GraphConfig(enabled=False)
    model = dataclasses.replace(presets.get("vicuna_7b"), graph=no_graph)
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(template="v1_sq"),
        # image and graph tokens count; longer conversations are cut, as at LLaVA's 2048
        data=config_lib.DataConfig(buckets=(640, 768, 1024, 1536, 2048), num_threads=8),
        train=config_lib.TrainConfig(
            workdir="_".join(["runs/sq_llava_7b", *filter(None, [mixture])]),
            # written by `sgqlm import llama VICUNA --clip CLIP --out DATA/vicuna_7b`
            init=str(folder / "vicuna_7b"),
            stages=tuple(map(stage, sources)),
            remat="full",
            save_every=500,
            spike_factor=10.0,  # of sgqlm, not of the papers
        ),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

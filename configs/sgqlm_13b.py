"""sgqlm with Vicuna-13B: prototypes, scene graph and self-questioning in one model.

`sgqlm train --config=configs/sgqlm_13b.py:DATA`. DATA is the folder of the base and of the data
sets that `configs/data/sgqlm.py` names; docs/laptop_to_slice.md says what lies in it.
"""

import dataclasses
import pathlib

import ml_collections

from configs.data import sgqlm as mixture
from sgqlm import config as config_lib
from sgqlm.models import presets
from sgqlm.train import stages


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the base and of the data sets."""
    folder, sources = pathlib.Path(arg), mixture.sources(arg)

    def stage(name: str) -> config_lib.StageConfig:
        # batch sizes, learning rates and what trains are those of the stage table
        row = stages.preset("sgqlm", name)
        # `accumulation` and `remat` do not change the result: 4 chips of 32 GB hold the step
        return dataclasses.replace(row, sources=sources[name], accumulation=row.batch_size // 32)

    model = presets.get("vicuna_13b")
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(template="v1_sq"),
        # image and graph tokens count; longer conversations are cut, as at LLaVA's 2048
        data=config_lib.DataConfig(buckets=(640, 768, 1024, 1536, 2048), num_threads=8),
        train=config_lib.TrainConfig(
            workdir="runs/sgqlm_13b",
            # written by `sgqlm import llama VICUNA --clip CLIP --out DATA/vicuna_13b`
            init=str(folder / "vicuna_13b"),
            stages=tuple(map(stage, sources)),
            remat="full",
            save_every=500,
            spike_factor=10.0,  # of sgqlm, not of the papers
        ),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

"""SQ-LLaVA with Vicuna-7B as its paper has it: prototypes, two adapters, self-questioning.

`sgqlm train --config=configs/sq_llava_7b.py:DATA`. DATA is the folder of the base and of the data
sets named below; docs/laptop_to_slice.md says what lies in it, and where the
released scripts differ from the paper.
"""

import dataclasses
import pathlib

import ml_collections

from sgqlm import config as config_lib
from sgqlm.models import presets
from sgqlm.train import stages


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the base and of the data sets."""
    folder = pathlib.Path(arg)

    def stage(name: str, *sets: str, entities: str = "") -> config_lib.StageConfig:
        sources = tuple(
            config_lib.SourceConfig(name=s, path=str(folder / s), entities=entities) for s in sets
        )
        # batch sizes, learning rates and what trains are those of the stage table
        row = stages.preset("sq_llava", name)
        # `accumulation` and `remat` do not change the result: 16 chips of 16 GB hold the step
        return dataclasses.replace(row, sources=sources, accumulation=4)

    # prototypes (K 256, 2 rounds) and adapters (LLM r128, ViT r32) come with the preset
    no_graph = config_lib.GraphConfig(enabled=False)
    model = dataclasses.replace(presets.get("vicuna_7b"), graph=no_graph)
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(template="v1_sq"),
        # image and graph tokens count; longer conversations are cut, as at LLaVA's 2048
        data=config_lib.DataConfig(buckets=(640, 768, 1024, 1536, 2048), num_threads=8),
        train=config_lib.TrainConfig(
            workdir="runs/sq_llava_7b",
            # written by `sgqlm import llama VICUNA --clip CLIP --out DATA/vicuna_7b`
            init=str(folder / "vicuna_7b"),
            stages=(
                stage("align", "llava_pretrain_558k"),
                stage("instruct", "llava_v1_5_mix665k"),
            ),
            remat="full",
            save_every=500,
            spike_factor=10.0,  # of sgqlm, not of the papers
        ),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

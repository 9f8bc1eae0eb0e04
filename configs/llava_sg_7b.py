"""LLaVA-SG with Vicuna-7B: a scene graph beside the patches, tuned in full.

`sgqlm train --config=configs/llava_sg_7b.py:DATA`. DATA is the folder of the base and of the data
sets that `configs/data/llava_sg.py` names; docs/laptop_to_slice.md says what lies in it. The paper
gives stages and data; batch sizes and learning rates are those of LLaVA-1.5, on which it builds.
"""

import dataclasses
import pathlib

import ml_collections

from configs.data import llava_sg as mixture
from sgqlm import config as config_lib
from sgqlm.models import presets
from sgqlm.train import stages


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the base and of the data sets."""
    folder, sources = pathlib.Path(arg), mixture.sources(arg)

    def stage(name: str) -> config_lib.StageConfig:
        # batch sizes, learning rates and what trains are those of the stage table
        row = stages.preset("llava_sg", name)
        # `accumulation` and `remat` do not change the result: 16 chips of 16 GB hold the step
        return dataclasses.replace(row, sources=sources[name], accumulation=4)

    # What the paper does not mention is off: boxes, labels and edge features of the graph.
    graph = config_lib.GraphConfig(
        use_boxes=False, labels="none", edge_geometry=False, edge_visual=False
    )
    none = config_lib.LoraConfig()
    model = dataclasses.replace(
        presets.get("vicuna_7b"),
        graph=graph,
        prototypes=config_lib.PrototypeConfig(mode="none"),
        llm_lora=none,
        vision_lora=none,
    )
    config = config_lib.Config(
        model=model,
        text=config_lib.TextConfig(template="vicuna_v1", self_questioning=0.0),
        # image and graph tokens count; longer conversations are cut, as at LLaVA's 2048
        data=config_lib.DataConfig(buckets=(640, 768, 1024, 1536, 2048), num_threads=8),
        train=config_lib.TrainConfig(
            workdir="runs/llava_sg_7b",
            # written by `sgqlm import llama VICUNA --clip CLIP --out DATA/vicuna_7b`
            init=str(folder / "vicuna_7b"),
            stages=tuple(map(stage, sources)),
            remat="full",
            save_every=500,
            spike_factor=10.0,  # of sgqlm, not of the papers
        ),
    )
    return ml_collections.ConfigDict(config_lib.to_dict(config))

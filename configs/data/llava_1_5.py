"""Data of LLaVA-1.5: 558K captions, then the mix of 665K; no graph, so no entities.

haotian-liu/LLaVA, scripts/v1_5: one pass over each.
"""

import ml_collections

from sgqlm import config as config_lib
from sgqlm.train import stages

STAGES = {
    "align": (config_lib.SourceConfig(name="llava_pretrain_558k", entities="none"),),
    "instruct": (config_lib.SourceConfig(name="llava_v1_5_mix665k", entities="none"),),
}


def sources(folder: str) -> dict[str, tuple[config_lib.SourceConfig, ...]]:
    """Return the sources of each stage; `folder` holds one folder for each data set."""
    return stages.in_folder(STAGES, folder)


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return a configuration with these stages and their sources alone."""
    return ml_collections.ConfigDict(config_lib.to_dict(stages.with_data(sources(arg))))

"""Data of sgqlm: that of LLaVA-SG, which has that of SQ-LLaVA in it."""

import ml_collections

from sgqlm import config as config_lib
from sgqlm.train import stages

STAGES = {
    # no graph is trained yet, so entities stay out
    "align": (config_lib.SourceConfig(name="llava_pretrain_558k", entities="none"),),
    "graph": (
        config_lib.SourceConfig(name="visual_genome"),
        config_lib.SourceConfig(name="open_images_vrd"),
        config_lib.SourceConfig(name="grit"),
    ),
    "instruct": (config_lib.SourceConfig(name="llava_v1_5_mix665k"),),
}


def sources(folder: str) -> dict[str, tuple[config_lib.SourceConfig, ...]]:
    """Return the sources of each stage; `folder` holds one folder for each data set."""
    return stages.in_folder(STAGES, folder)


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return a configuration with these stages and their sources alone."""
    return ml_collections.ConfigDict(config_lib.to_dict(stages.with_data(sources(arg))))

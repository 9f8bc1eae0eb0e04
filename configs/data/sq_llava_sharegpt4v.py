"""Data of the released SQ-LLaVA weights: LLaVA-Pretrain, then two files of ShareGPT4V.

The projector is aligned once more, on 1.246M captions (`align_captions`), and the last stage takes
the mix of ShareGPT4V instead of that of LLaVA-1.5. A part of the 100K file is in that mix.
"""

import ml_collections

from sgqlm import config as config_lib
from sgqlm.train import stages

STAGES = {
    "align": (config_lib.SourceConfig(name="llava_pretrain_558k", entities="none"),),
    "align_captions": (config_lib.SourceConfig(name="sharegpt4v_pretrain_1246k", entities="none"),),
    "instruct": (config_lib.SourceConfig(name="sharegpt4v_mix665k", entities="none"),),
}


def sources(folder: str) -> dict[str, tuple[config_lib.SourceConfig, ...]]:
    """Return the sources of each stage; `folder` holds one folder for each data set."""
    return stages.in_folder(STAGES, folder)


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return a configuration with these stages and their sources alone."""
    return ml_collections.ConfigDict(config_lib.to_dict(stages.with_data(sources(arg))))

"""sgqlm with Vicuna-13B: the recipe of sgqlm_7b.py with the larger language model.

`sgqlm train --config=configs/sgqlm_13b.py:DATA`. DATA is the folder of the base and of the data
sets named there; docs/laptop_to_slice.md says what lies in it.
"""

import ml_collections
import sgqlm_7b


def get_config(arg: str = "datasets") -> ml_collections.ConfigDict:
    """Return the configuration; `arg` is the folder of the base and of the data sets."""
    # 4 chips of 32 GB hold a step in micro-batches of 32
    return sgqlm_7b.recipe("13b", arg, accumulation=lambda batch_size: batch_size // 32)

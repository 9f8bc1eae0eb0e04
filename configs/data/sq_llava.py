"""Data of SQ-LLaVA as its paper has it: that of LLaVA-1.5; no graph, so no entities.

`sq_llava_sharegpt4v.py` has the data of the released weights.
"""

from configs.data import llava_1_5

STAGES = llava_1_5.STAGES
sources = llava_1_5.sources
get_config = llava_1_5.get_config

"""Data of sgqlm: that of LLaVA-SG, which has that of SQ-LLaVA in it."""

from configs.data import llava_sg

STAGES = llava_sg.STAGES
sources = llava_sg.sources
get_config = llava_sg.get_config

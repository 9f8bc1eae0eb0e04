"""A real model with random weights, small enough to compile in seconds."""

import dataclasses
import functools

import numpy as np

from sgqlm import config
from sgqlm import model as model_lib
from sgqlm.models import lora, presets, vlm
from sgqlm.scenes import questions, world
from sgqlm.text import tokenizer

SCENES = config.SceneConfig(image_size=56, num_train=8)


@functools.cache
def words() -> tokenizer.Tokenizer:
    """Return a tokenizer of the scenes' language."""
    texts = [
        turn["value"].removeprefix("<image>\n")
        for index in range(SCENES.num_train)
        for task in ("caption", "chat")
        for turn in questions.conversation(world.make_scene(SCENES, "train", index), task, seed=0)
    ]
    return tokenizer.load(tokenizer.train(texts, 400))


@functools.cache
def make(image_size: int = 56) -> model_lib.VisionLanguageModel:
    """Return a model of small images with every part of the architecture."""
    tiny = presets.get("tiny")
    settings = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(
            tiny.vision, image_size=image_size, width=32, num_layers=2, mlp_dim=64
        ),
        llm=dataclasses.replace(
            tiny.llm, vocab_size=words().vocab_size, width=48, num_layers=2, mlp_dim=64, head_dim=12
        ),
        prototypes=dataclasses.replace(tiny.prototypes, num_prototypes=4, iterations=1),
        graph=dataclasses.replace(tiny.graph, width=32, num_heads=4, num_rounds=1, impl="dense"),
        llm_lora=config.LoraConfig(rank=2, alpha=4.0),
        vision_lora=config.LoraConfig(rank=2, alpha=4.0),
        region_words=2,
    )
    text = config.TextConfig(system="", template="v1_sq")
    whole = config.Config(model=settings, text=text, scenes=SCENES)
    rng = np.random.default_rng(1)
    params = lora.map_with_path(
        lambda path, leaf: rng.normal(path.endswith("scale"), 0.15, leaf.shape).astype(np.float32),
        vlm.param_shapes(settings),
    )
    return model_lib.VisionLanguageModel.from_parts(whole, params, words())

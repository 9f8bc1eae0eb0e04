"""Configuration of a sgqlm folder for transformers."""

import json
import types
from typing import ClassVar

from transformers import LlamaConfig, PretrainedConfig


class SgqlmConfig(PretrainedConfig):
    """Settings of a vision-language model that reads patches, prototypes and a scene graph.

    Args:
        text_config: the language model, as `LlamaConfig` takes it.
        sgqlm: `model` and `text`, the settings the model was trained with, and `tokenizer`, the
            rules of its tokenizer.
    """

    model_type = "sgqlm"
    sub_configs: ClassVar = {"text_config": LlamaConfig}  # pyright: ignore

    def __init__(self, text_config=None, sgqlm=None, **kwargs):
        self.sgqlm = sgqlm or {}
        if isinstance(text_config, dict):
            if self.sgqlm:
                # transformers 4 and 5 name the base differently and each drops the other's name
                theta = self.sgqlm["model"]["llm"]["rope_theta"]
                rope = {"rope_type": "default", "rope_theta": theta}
                text_config = {**text_config, "rope_theta": theta, "rope_parameters": rope}
            text_config = LlamaConfig(**text_config)
        self.text_config = LlamaConfig() if text_config is None else text_config
        super().__init__(**kwargs)

    @property
    def settings(self) -> types.SimpleNamespace:
        """The settings of the model, such as `settings.graph.num_nodes`."""
        return as_namespace(self.sgqlm["model"])


def as_namespace(tree: dict) -> types.SimpleNamespace:
    """Return nested settings with their keys as attributes."""
    return json.loads(json.dumps(tree), object_hook=lambda node: types.SimpleNamespace(**node))

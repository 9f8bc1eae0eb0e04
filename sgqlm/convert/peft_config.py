"""adapter_config.json of a PEFT adapter on a LLaVA model of transformers.

Transformers 4 and 5 disagree on one thing here: modules of the vision tower are
`vision_tower.vision_model.encoder...` in 4 and `vision_tower.encoder...` in 5. The pattern takes
both; in the file the tensors have the longer name, which PEFT finds in both.
"""

from typing import Any

from sgqlm import config as config_lib
from sgqlm import errors

_LANGUAGE = (
    r".*language_model\.(model\.)?layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
)
_VISION = (
    r".*vision_tower\.(vision_model\.)?encoder\.layers\.{layers}\."
    r"(self_attn\.([qkv]|out)_proj|mlp\.fc[12])"
)
_IN_VISION = r".*vision_tower\..*"
PROJECTOR = "multi_modal_projector"


def adapter_config(
    model: config_lib.ModelConfig, *, base: str, save_projector: bool = False
) -> dict[str, Any]:
    """Return adapter_config.json, in the few keys that every release of PEFT knows.

    Args:
        model: with adapters on the language model, the vision tower or both.
        base: hub name or folder of the model the adapter belongs to, a
            `LlavaForConditionalGeneration`.
        save_projector: the file holds the projector as well (`saved_name`).

    Returns:
        The tree; adapters of the two towers have their own rank and alpha.

    Raises:
        SgqlmError: the model has no adapters.
    """
    llm, vision = model.llm_lora, model.vision_lora
    if not llm.rank and not vision.rank:
        raise errors.SgqlmError(
            "this model has no low-rank adapters",
            where="model.llm_lora, model.vision_lora",
            fix="use --format=llava",
            code=errors.CHECKPOINT,
        )
    main = llm if llm.rank else vision
    patterns = ([_LANGUAGE] if llm.rank else []) + ([_vision_pattern(model)] if vision.rank else [])
    has_both = bool(llm.rank and vision.rank)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": main.rank,
        "lora_alpha": main.alpha,
        "lora_dropout": main.dropout,
        "rank_pattern": {_IN_VISION: vision.rank} if has_both else {},
        "alpha_pattern": {_IN_VISION: vision.alpha} if has_both else {},
        # not a list of names: those would also wrap the other tower's q_proj, k_proj and v_proj
        "target_modules": "|".join(patterns),
        "modules_to_save": [PROJECTOR] if save_projector else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def saved_name(name: str) -> str:
    """Return the name of a whole tensor of the projector in adapter_model.safetensors."""
    return f"base_model.model.model.{name}"


def _vision_pattern(model: config_lib.ModelConfig) -> str:
    """Return the pattern of the tower's layers, without those behind the feature layer."""
    unused = range(model.vision.num_used_layers, model.vision.num_layers)
    others = "|".join(map(str, unused))
    return _VISION.replace("{layers}", rf"(?!({others})\.)\d+" if others else r"\d+")

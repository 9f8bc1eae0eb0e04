"""Released SQ-LLaVA: the connector (`mm_projector` of type `cluster`), and the whole release."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sgqlm import config, errors, types
from sgqlm.convert import hf, hf_config, names, peft, source, tensors
from sgqlm.convert import leaves as leaves_lib

_TOWER = "vision_tower."

_TABLE = {
    "sim_alpha": ("prototypes", "sim_alpha"),
    "sim_beta": ("prototypes", "sim_beta"),
    "c": ("prototypes", "c"),
    "v": ("prototypes", "v"),
    "f": ("prototypes", "f"),
    "ln_1": ("prototypes", "ln_1"),
    "mlp.0": ("projector", "fc1"),
    "mlp.2": ("projector", "fc2"),
}


def connector_from_state_dict(tensors: Mapping[str, np.ndarray]) -> types.Params:
    """Turn the 14 released tensors into `{"prototypes": {...}, "projector": {...}}`.

    Args:
        tensors: torch names (`c.weight`, `mlp.0.bias`, ...), with or without what precedes
            `mm_projector.`; linear weights are [out, in].

    Returns:
        Parameters for `models.prototypes.released_connector`.

    Raises:
        SgqlmError: a tensor is missing or unknown.
    """
    params: types.Params = {"prototypes": {}, "projector": {}}
    short = {name.rsplit("mm_projector.", 1)[-1]: np.asarray(v) for name, v in tensors.items()}
    expected = {
        key if key.startswith("sim_") else f"{key}.{kind}"
        for key in _TABLE
        for kind in ("weight", "bias")
    }
    if set(short) != expected:
        missing, extra = sorted(expected - set(short)), sorted(set(short) - expected)
        raise errors.SgqlmError(
            "these are not the tensors of a released connector",
            why=f"missing: {missing}; unexpected: {extra}",
            fix="give the 14 `mm_projector` tensors of a SQ-LLaVA release",
            code=errors.CHECKPOINT,
        )
    for key, (part, name) in _TABLE.items():
        if key.startswith("sim_"):
            params[part][name] = short[key]
            continue
        weight, bias = short[f"{key}.weight"], short[f"{key}.bias"]
        if weight.ndim == 1:
            params[part][name] = {"scale": weight, "bias": bias}
        else:
            params[part][name] = {"kernel": np.ascontiguousarray(weight.T), "bias": bias}
    return params


def open_release(
    folder: str | pathlib.Path,
    *,
    base: str | pathlib.Path | None = None,
    clip: str | pathlib.Path | None = None,
    merge: bool = False,
) -> source.Source:
    """Open a released SQ-LLaVA: base language model, CLIP tower, connector and both adapters.

    Args:
        folder: of the release: config.json, adapter_config.json, adapter_model,
            non_lora_trainables and Vit-lora.
        base: folder of the language model; by default where the release says, if that is a folder.
        clip: folder of the vision tower; by default where the release says, if that is a folder.
        merge: fold the adapters into the kernels.

    Raises:
        SgqlmError: a folder is missing or of another kind, or its tensors do not match the table.
    """
    folder = pathlib.Path(folder)
    tree = hf_config.read_json(folder, kind="SQ-LLaVA")
    if tree.get("mm_projector_type") != "cluster":
        what = f"not a SQ-LLaVA: its mm_projector_type is {tree.get('mm_projector_type')!r}"
        raise hf_config.error(what, folder / "config.json", "give the folder of a release")
    settings = peft.read_settings(folder)
    base_name = settings.get("base_model_name_or_path") or tree.get("_name_or_path")
    base = _folder(base, folder, base_name, "--base", "language model")
    clip = _folder(clip, folder, tree.get("mm_vision_tower"), "--clip", "vision tower")
    found = hf.plan_towers(clip, base, dtype=str(tree.get("torch_dtype")))
    try:
        layer = int(tree.get("mm_vision_select_layer", -2))
        found.config = dataclasses.replace(
            found.config,
            vision=dataclasses.replace(found.config.vision, feature_layer=layer),
            projector=config.ProjectorConfig(activation="quick_gelu"),
            prototypes=config.PrototypeConfig(mode="released"),
            image_fit="pad",
        )
        found.text = dataclasses.replace(found.text, template="v1_sq")
        found.about = {"kind": "sq-llava", "base": base.resolve().name}
        found.folders = {"base": base, "clip": clip}
        hf.add_towers(found, clip, base, may_leave=_is_replaced)
        _connector(found, folder)
        _adapters(found, folder, settings)
        if merge:
            found.leaves, found.config = leaves_lib.merge_lora(found.leaves, found.config)
        leaves_lib.check_shapes(found.leaves, found.config, where=str(folder))
    except BaseException:
        found.files.close()
        raise
    return found


def _is_replaced(name: str) -> bool:
    """Tell whether a tensor of the base belongs to parts that the release renews."""
    return name.startswith((_TOWER, "multi_modal_projector.", "model.mm_projector."))


def _folder(given, release: pathlib.Path, named, flag: str, what: str) -> pathlib.Path:
    if given is not None:
        return pathlib.Path(given)
    for place in (
        pathlib.Path(named or ""),
        release / (named or ""),
        release.parent / (named or ""),
    ):
        if named and place.is_dir():
            return place
    raise hf_config.error(
        f"the {what} of this release is not here",
        release,
        f"fetch it and give its folder with {flag}",
        f"the release names {named!r}",
    )


def _connector(found: source.Source, folder: pathlib.Path) -> None:
    given = found.files.enter_context(tensors.open_folder(folder, "non_lora_trainables"))
    arrays = {name: given.read(name) for name in given.names}
    for part, tree in connector_from_state_dict(arrays).items():
        flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
        for path, array in flat.items():
            found.leaves[f"{part}/{path}"] = leaves_lib.of_array(array)


def _adapters(found: source.Source, folder: pathlib.Path, settings) -> None:
    """Attach both; the language side's file repeats the tower's under its own settings."""
    words = found.files.enter_context(tensors.open_folder(folder, "adapter_model"))
    repeated = {
        n: names.of_adapter(n) for n in words.names if names.of_adapter(n).startswith(_TOWER)
    }
    peft.attach(found, words, settings, sides=("llm",), where=folder, skip=repeated)
    tower = folder / "Vit-lora"
    if not tower.is_dir():
        if repeated:
            why = f"adapter_model repeats {len(repeated)} of its tensors, but not rank and alpha"
            raise hf_config.error("the release has no Vit-lora", folder, "fetch it whole", why)
        found.notes.append("this release has no adapter of the vision tower")
        return
    seen = found.files.enter_context(tensors.open_folder(tower, "adapter_model"))
    peft.attach(found, seen, peft.read_settings(tower), sides=("vision",), where=tower)
    _compare(found, words, repeated, seen)
    strengths = [np.abs(seen.read(n).astype(np.float32)).max() for n in seen.names if "lora_B" in n]
    strength = max(strengths, default=np.float32(0))
    note = f"max |lora_B| of the vision tower's adapter: {strength:.3g}"
    if not strength:
        note += " (it was never trained: the released program stops its gradient)"
    found.notes.append(note)


def _compare(found, words, repeated: Mapping[str, str], seen) -> None:
    mine = {names.of_adapter(name): name for name in seen.names}
    other = [
        name
        for name, short in repeated.items()
        if short not in mine or (words.read(name) != seen.read(mine[short])).any()
    ]
    if other:
        found.notes.append(
            f"{len(other)} tensors of the tower's adapter differ between adapter_model and "
            f"Vit-lora, such as {other[0]}; Vit-lora was taken, as the released program does"
        )

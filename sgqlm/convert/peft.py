"""Low-rank adapters as peft stores them: onto an opened model."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from sgqlm import config
from sgqlm.convert import hf, hf_config, names, source, tensors
from sgqlm.convert import leaves as leaves_lib

Side = Literal["llm", "vision"]
SIDES: tuple[Side, ...] = ("llm", "vision")
_SAVED = "multi_modal_projector"
_REFUSED = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, [], [_SAVED]),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
}
_PREFIX = {"llm": "language_model.model.", "vision": "vision_tower.vision_model."}
_PART = {"llm": "llm_lora", "vision": "vision_lora"}


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        SgqlmError: the file is missing, or asks for something that is not W + scale * B A.
    """
    folder = pathlib.Path(folder)
    tree = hf_config.read_json(folder, "adapter_config.json", kind="peft")
    file = folder / "adapter_config.json"
    if tree.get("peft_type") != "LORA":
        what = f"the adapter is of the kind {tree.get('peft_type')!r}"
        raise hf_config.error(what, file, "give a LORA adapter")
    for key, allowed in _REFUSED.items():
        if tree.get(key, allowed[0]) not in allowed:
            what = f"the adapter's setting {key} = {tree[key]!r} is not supported"
            raise hf_config.error(what, file, "merge it in the program that made it")
    return tree


def attach(
    found: source.Source,
    given: tensors.TensorFiles,
    settings: Mapping[str, Any],
    *,
    sides: Iterable[Side] = SIDES,
    skip: Collection[str] = (),
    where: str | pathlib.Path,
) -> None:
    """Put the adapters of some files beside the kernels of an opened model.

    Args:
        found: takes the leaves; its configuration gets rank and alpha of each side.
        given: the files of the adapter.
        settings: of `read_settings`.
        sides: of the model that may have adapters; tensors of the other one are refused.
        skip: names in the files that another adapter answers for.
        where: the folder, for messages.

    Raises:
        SgqlmError: a tensor is unexpected, incomplete or of another shape, or the modules of a
            side differ in rank or alpha.
    """
    known: dict[str, str] = {}
    for name in sorted(set(given.names) - set(skip)):
        short = names.of_adapter(name)
        if short in known:
            what = f"two tensors are both {short}"
            raise hf_config.error(what, where, "one must go", f"{known[short]}, {name}")
        known[short] = name
    used = {short for short in known if short.startswith(_SAVED)}
    if used:
        rows = names.projector_entries(found.config.projector)
        part = {short: known[short] for short in used}
        hf.add(found, given, rows, canonical=names.of_adapter, where=where, only=part.values())
    for side in sides:
        mine = {short for short in known if short.startswith(_PREFIX[side])}
        if mine and getattr(found.config, _PART[side]).rank:
            fix = "merge them first: import or export with --merge"
            raise hf_config.error("this model has adapters already", where, fix)
        if mine:
            _attach_side(found, given, settings, side, {s: known[s] for s in mine}, where)
            used |= mine
    if table := [f"unexpected  {known[short]}" for short in sorted(set(known) - used)]:
        raise leaves_lib.mismatch(table, str(where), "give an adapter of this very model")
    if not used:
        raise hf_config.error("the adapter is empty", where, "give a trained adapter")


def _attach_side(found, given, settings, side: Side, known: dict[str, str], where) -> None:
    lora = _lora(given, settings, known, where)
    model = dataclasses.replace(found.config, **{_PART[side]: lora})
    shapes = names.param_shapes(model)
    entries = names.adapter_entries(model)
    rows = [entry for entry in entries if entry.path.startswith(side + "/")]
    wanted: set[str] = set()
    table, absent = [], set()
    for entry in rows:
        layers = [entry.name.format(i=i) for i in range(names.num_layers(entry, model) or 1)]
        wanted |= set(layers)
        single = names.shape_to_torch(shapes[entry.path][1:], entry.layout)
        for name in layers:
            if name not in known:
                absent.add(name)
            elif given.info(known[name])[1] != single:
                table.append(
                    f"shape       {known[name]}: {given.info(known[name])[1]}, not {single}"
                )
    carried = {name for name in set(known) - wanted if names.is_carried(name, model)}
    table += [f"unexpected  {known[name]}" for name in sorted(set(known) - wanted - carried)]
    for name in sorted(absent):
        twin = (
            name.replace("lora_A", "lora_B")
            if "lora_A" in name
            else name.replace("lora_B", "lora_A")
        )
        if twin not in absent:
            table.append(f"missing     {name}, whose other half is there")
    if table:
        raise leaves_lib.mismatch(table, str(where), "give an adapter of this very model")
    for entry in rows:
        found.leaves[entry.path] = _leaf(given, entry, shapes[entry.path], known)
    for name in sorted(carried):
        dtype, shape = given.info(known[name])

        found.carried[name] = leaves_lib.Leaf(
            dtype, shape, functools.partial(given.read, known[name])
        )
    if absent:
        modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in absent})
        found.notes.append(f"the adapter has nothing for {', '.join(modules)}: these begin at zero")
    found.config = model


def _lora(given, settings, known: dict[str, str], where) -> config.LoraConfig:
    ranks = {given.info(name)[1][0] for short, name in known.items() if ".lora_A." in short}
    alphas = set()
    for short, name in known.items():
        if ".lora_A." in short:
            module = name.split(".lora_A.")[0]
            alphas.add(_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha")))
    if len(ranks) != 1 or len(alphas) != 1:
        why = f"ranks {sorted(ranks)}, alphas {sorted(alphas, key=str)}"
        what = "the modules of an adapter differ in rank or alpha"
        raise hf_config.error(what, where, "merge it in the program that made it", why)
    (rank,), (alpha,) = ranks, alphas
    if not isinstance(alpha, (int, float)) or rank < 1:
        raise hf_config.error("the adapter has no lora_alpha", where, "fetch it again")
    if settings.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # scale alpha / sqrt(rank) = alpha' / rank
    dropout = float(settings.get("lora_dropout") or 0.0)
    return config.LoraConfig(rank=rank, alpha=float(alpha), dropout=dropout)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return what peft takes for a module: the first pattern that its name ends with."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _leaf(given, entry, shape, known: dict[str, str]) -> leaves_lib.Leaf:
    layers = [entry.name.format(i=i) for i in range(shape[0])]
    dtypes = {given.info(known[name])[0] for name in layers if name in known}
    dtype = np.result_type(*dtypes) if dtypes else np.dtype(np.float32)

    def load() -> np.ndarray:
        out = np.zeros(shape, dtype)
        for index, name in enumerate(layers):
            if name in known:
                out[index] = names.from_torch(given.read(known[name]), entry.layout)
            elif entry.path.endswith("lora_a"):  # as peft begins, so that it can be trained
                bound = 1.0 / math.sqrt(shape[1])
                rng = np.random.Generator(np.random.Philox(index))
                out[index] = rng.uniform(-bound, bound, shape[1:]).astype(dtype)
        return out

    return leaves_lib.Leaf(dtype, tuple(shape), load)

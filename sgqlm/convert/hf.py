"""Open Hugging Face models: LLaVA folders in any known key layout, CLIP and LLaMA apart."""

import functools
import json
import pathlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from sgqlm import config, types
from sgqlm.convert import hf_config, names, source, tensors
from sgqlm.convert import leaves as leaves_lib


class Imported(NamedTuple):
    """A model read from a folder."""

    config: config.ModelConfig
    params: types.Params
    carried: dict[str, np.ndarray]  # tensors behind the feature layer, by hub name
    tokenizer: pathlib.Path | None  # `tokenizer.model`, where the folder has one


def is_llava_folder(folder: pathlib.Path) -> bool:
    """Tell whether `folder` holds a config.json of a LLaVA model."""
    file = pathlib.Path(folder) / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("model_type") == "llava"


def load_llava(folder: str | pathlib.Path) -> Imported:
    """Read a LLaVA folder (`LlavaForConditionalGeneration`), every tensor used exactly once.

    Args:
        folder: config.json beside model.safetensors, or shards with their index.

    Returns:
        The model without prototypes and graph, parameters in the dtype of the file.

    Raises:
        SgqlmError: config or weights are missing, or the tensors do not match the table.
    """
    with open_llava(folder) as found:
        carried = {name: leaf.load() for name, leaf in found.carried.items()}
        tokenizer = pathlib.Path(folder) / "tokenizer.model" if found.tokenizer else None
        return Imported(found.config, found.params(), carried, tokenizer)


def read_config(folder: pathlib.Path) -> config.ModelConfig:
    """Translate config.json of a LLaVA folder; see `hf_config.llava`."""
    return hf_config.llava(folder)


def open_llava(
    folder: str | pathlib.Path, *, clip: str | pathlib.Path | None = None
) -> source.Source:
    """Open a LLaVA in any of its five key layouts, without reading a tensor.

    Args:
        folder: of the model.
        clip: folder of the vision tower, where the model does not hold its own (liuhaotian's).

    Raises:
        SgqlmError: config or weights are missing, or the tensors do not match the table; nothing
            stays open.
    """
    folder = pathlib.Path(folder)
    cfg = hf_config.llava(folder, vision=None if clip is None else pathlib.Path(clip))
    text, words = hf_config.text(folder)
    tree = hf_config.read_json(folder)
    token = tree.get("image_token_index", tree.get("image_token_id"))
    about = {"kind": "llava", "base": folder.resolve().name, "image_token_id": token}
    found = source.Source(cfg, text, {}, tokenizer=words, about=about)
    try:
        given = found.files.enter_context(tensors.open_folder(folder))
        entries = names.llava_entries(cfg)
        if clip is None:
            add(found, given, entries, canonical=names.canonical, where=folder)
        else:
            rows = [e for e in entries if not e.path.startswith("vision/")]
            add(found, given, rows, canonical=names.canonical, where=folder)
            tower = found.files.enter_context(tensors.open_folder(clip))
            add(
                found,
                tower,
                names.vision_entries(),
                canonical=names.of_clip,
                where=clip,
                may_leave=names.is_clip_text,
            )
        leaves_lib.check_shapes(found.leaves, cfg, where=str(folder))
    except BaseException:
        found.files.close()
        raise
    return found


def open_towers(
    clip: str | pathlib.Path, llama: str | pathlib.Path, *, dtype: str = "bfloat16"
) -> source.Source:
    """Open a CLIP tower and a LLaMA for a fresh run; the projector is yet to be made.

    Args:
        clip: folder of a CLIP model, or of its vision tower.
        llama: folder of the language model, such as Vicuna's.
        dtype: the model computes in.

    Raises:
        SgqlmError: a folder is of another kind, or its tensors do not match the table.
    """
    found = plan_towers(clip, llama, dtype=dtype)
    try:
        add_towers(found, clip, llama)
    except BaseException:
        found.files.close()
        raise
    return found


def plan_towers(
    clip: str | pathlib.Path, llama: str | pathlib.Path, *, dtype: str = "bfloat16"
) -> source.Source:
    """Return what `open_towers` does, before its tensors are looked for."""
    clip, llama = pathlib.Path(clip), pathlib.Path(llama)
    cfg = config.ModelConfig(
        vision=hf_config.clip(clip),
        llm=hf_config.llama(llama),
        graph=config.GraphConfig(enabled=False),
        compute_dtype="float32" if dtype == "float32" else "bfloat16",
    )
    text, words = hf_config.text(llama)
    return source.Source(
        cfg, text, {}, tokenizer=words, about={"kind": "towers", "base": llama.resolve().name}
    )


def add_towers(
    found: source.Source,
    clip: str | pathlib.Path,
    llama: str | pathlib.Path,
    *,
    may_leave: Callable[[str], bool] = lambda name: False,
) -> None:
    """Bring a CLIP tower and a LLaMA under the table.

    Args:
        found: takes the leaves.
        clip: folder of the tower.
        llama: folder of the language model.
        may_leave: canonical names of the latter that another folder answers for.
    """
    tower = found.files.enter_context(tensors.open_folder(clip))
    rows, skip = names.vision_entries(), names.is_clip_text
    add(found, tower, rows, canonical=names.of_clip, where=clip, may_leave=skip)
    given = found.files.enter_context(tensors.open_folder(llama))
    rows = names.llm_entries(found.config.llm)
    add(found, given, rows, canonical=names.canonical, where=llama, may_leave=may_leave)


def add(
    found: source.Source,
    given: tensors.TensorFiles,
    entries: Collection[names.Entry],
    *,
    canonical: Callable[[str], str],
    where: str | pathlib.Path,
    may_leave: Callable[[str], bool] = lambda name: False,
    only: Collection[str] | None = None,
) -> None:
    """Bring the tensors of some files under a name table, every one of them exactly once.

    Args:
        found: takes the leaves, and what is carried.
        given: the files.
        entries: the table; all of its tensors have to be there.
        canonical: turns a name of the files into one of the table.
        where: the folder, for messages.
        may_leave: canonical names that another table answers for.
        only: names in the files to look at; None: all.

    Raises:
        SgqlmError: tensors are missing or unexpected, or two are the same one.
    """
    cfg = found.config
    known: dict[str, str] = {}
    for name in given.names if only is None else sorted(only):
        short = canonical(name)
        if names.is_ignored(short) or may_leave(short):
            continue
        if short in known:
            fix = "one of them must go"
            raise hf_config.error(
                f"two tensors are both {short}", where, fix, f"{known[short]}, {name}"
            )
        known[short] = name
    wanted = {
        entry.name.format(i=i): None
        for entry in entries
        for i in range(names.num_layers(entry, cfg) or 1)
    }
    if cfg.llm.tie_embeddings and names.EMBEDDING in wanted and names.HEAD in known:
        _check_tied(given, known, where)
        known.pop(names.HEAD)
    carried = {name for name in known if name not in wanted and names.is_carried(name, cfg)}
    table = [f"missing     {name}" for name in sorted(set(wanted) - set(known))]
    table += [f"unexpected  {name}" for name in sorted(set(known) - set(wanted) - carried)]
    if table:
        raise leaves_lib.mismatch(table, str(where), "the weights must match config.json exactly")

    def info(name):
        return given.info(known[name])

    def read(name):
        return given.read(known[name])

    found.leaves.update(leaves_lib.from_table(list(entries), cfg, info, read))
    for name in sorted(carried):
        dtype, shape = info(name)
        found.carried[name] = leaves_lib.Leaf(dtype, shape, functools.partial(read, name))


def _check_tied(given, known, where) -> None:
    head, rows = (known[name] for name in (names.HEAD, names.EMBEDDING))
    if given.info(head) != given.info(rows) or (given.read(head) != given.read(rows)).any():
        raise hf_config.error(
            "the output head differs from the embeddings that it is said to be tied to",
            where,
            "set tie_word_embeddings to false in config.json",
            f"{head} is another tensor than {rows}",
        )

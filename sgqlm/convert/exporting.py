"""Write a model for other programs: a standard LLaVA, adapters for peft, or the whole of it."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from sgqlm import config as config_lib
from sgqlm import errors
from sgqlm.convert import (
    card,
    chat_template,
    llava_folder,
    names,
    own,
    peft_config,
    probe,
    sgqlm_folder,
    source,
    stream,
)
from sgqlm.convert import leaves as leaves_lib
from sgqlm.text import tokenizer as tokenizer_lib

Format = Literal["llava", "peft", "sgqlm"]
FORMATS: tuple[Format, ...] = ("llava", "peft", "sgqlm")
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
MANIFEST_FORMAT = 1
# what peft calls the modules of a LLaVA in both majors of transformers, see `peft_config`
_ADAPTED_TEXT = "base_model.model.model.language_model."
_ADAPTED_VISION = "base_model.model.model.vision_tower.vision_model."


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user chooses about an export.

    Attributes:
        dtype: of the weights; empty keeps that of each parameter.
        merge: fold the adapters of a `sgqlm` export into the kernels (`llava` always does).
        drop_extras: leave out parts that the format cannot hold.
        overwrite: replace an earlier export.
        max_shard_size: bytes of one file of weights.
        base: what a `peft` export says it was trained on.
        check_text: compare the token ids of the folder's own processor with ours.
    """

    dtype: str = ""
    merge: bool = False
    drop_extras: bool = False
    overwrite: bool = False
    max_shard_size: int = 5_000_000_000
    base: str = ""
    check_text: bool = True


class Report(NamedTuple):
    """What was exported: the folder, its manifest, and what the user should know."""

    folder: pathlib.Path
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]
    probe: probe.ProbeReport | None


class _Tensor(NamedTuple):
    """The tensors of one parameter: a row of the table, its leaf and layers."""

    entry: names.Entry
    leaf: leaves_lib.Leaf
    count: int | None


def write(
    model: source.Source,
    format: Format,
    out: str | os.PathLike,
    *,
    facts: Mapping[str, Any],
    options: Options = Options(),
) -> Report:
    """Export an opened model; the folder appears under its name when it is complete.

    Args:
        model: opened; one of its parameters is in memory at a time.
        format: `llava` (LlavaForConditionalGeneration, adapters merged), `peft` (adapters only) or
            `sgqlm` (everything, with code for transformers).
        out: the folder; it does not exist yet, unless `options.overwrite`.
        facts: for the manifest and the card: source, step, config_digest, versions, base.
        options: see `Options`.

    Returns:
        The report.

    Raises:
        SgqlmError: the format cannot hold a part of the model (naming it), the folder exists, or
            the disk is full; nothing is left under the name.
    """
    dropped = _dropped(model, format, out, options)
    with_projector = "projector" in facts.get("trained", ())
    leaves, cfg = _parts(model, format, options, with_projector=with_projector)
    tokenizer = open_tokenizer(model)
    # of a file the name is enough: it lies in the folder
    text = dataclasses.replace(model.text, tokenizer=pathlib.Path(model.text.tokenizer).name)
    whole = config_lib.Config(model=cfg, text=text)
    if format == "peft":
        rows, side, notes = cfg.llm.vocab_size, _adapter_files(whole, facts, options), []
    else:
        rows, side, notes = _side_files(model, format, whole, tokenizer, options)
    weights = _tensors(leaves, cfg, format, model, rows)
    report = _probe(side, whole, tokenizer) if format != "peft" and options.check_text else None
    dtype = options.dtype or _dtype_name(leaves)
    manifest = {
        **facts,
        **_about(whole, model),
        "format": format,
        "dropped": dropped,
        "dtype": dtype,
    }
    notes = [*model.notes, *notes]
    readme = card.model_card(manifest, kind=format, notes=notes, probe=report)
    side["README.md"] = readme.encode()
    if notice := card.notice(str(manifest.get("base") or "")):
        side["NOTICE"] = notice.encode()
    jobs = {"adapter_model" if format == "peft" else "model": weights}
    if format == "sgqlm" and model.carried:  # transformers does not look at them
        jobs[own.CARRIED] = _as_they_are(model.carried)
    done = _write(out, jobs, side, manifest, options)
    return Report(done, manifest, tuple(notes), report)


def _about(whole: config_lib.Config, model: source.Source) -> dict[str, Any]:
    """Return what `own.open_export` needs to give the very model back."""
    told = {"model": config_lib.to_dict(whole.model), "text": config_lib.to_dict(whole.text)}
    return {"version": MANIFEST_FORMAT, "sgqlm": {**told, "about": dict(model.about)}}


def _write(out, jobs, files: Mapping[str, bytes], manifest, options: Options) -> pathlib.Path:
    plans = {stem: _plan(tensors, stem, options) for stem, tensors in jobs.items()}
    needed = sum(p.num_bytes for p in plans.values()) + sum(map(len, files.values()))
    with stream.Folder(out, overwrite=options.overwrite, needed_bytes=needed) as folder:
        for name, content in files.items():
            folder.write_bytes(name, content)
        for stem, tensors in jobs.items():
            writer = folder.weights(plans[stem])
            for entry, leaf, count in tensors:
                for name, part in leaves_lib.layers(entry, leaf.load(), count):
                    writer.put(name, part)
        return folder.finish(manifest)


def open_tokenizer(model: source.Source) -> tokenizer_lib.Tokenizer | None:
    """Return the tokenizer of an opened model, if it has one."""
    if not model.tokenizer:
        return None
    opened = tokenizer_lib.load(model.tokenizer, legacy=model.text.legacy)
    return opened.with_token("[vusr]") if model.text.vusr_marker == "token" else opened


def config_digest(tree: Any) -> str:
    """Identify a configuration."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _dropped(model: source.Source, format: Format, out, options: Options) -> list[str]:
    """Return the parts that a format cannot hold, if the user has given them up."""
    cfg, found = model.config, []
    if format == "sgqlm":
        return found
    if cfg.prototypes.mode != "none":
        found.append(f"prototypes ({cfg.prototypes.mode})")
    if cfg.graph.enabled:
        found.append("scene graph")
    if cfg.region_words:
        found.append("region classifier")
    if found and not options.drop_extras:
        raise errors.SgqlmError(
            f"this model has {len(found)} parts that {format!r} cannot hold: " + ", ".join(found),
            where=str(out),
            fix='export as `sgqlm` (format="sgqlm" in Python), or leave them out with '
            "--drop-extras (options=exporting.Options(drop_extras=True)): it is another model then",
            code=errors.CHECKPOINT,
        )
    return found


def _parts(model: source.Source, format: Format, options: Options, *, with_projector: bool):
    leaves, cfg = dict(model.leaves), model.config
    if format == "peft":
        if not (cfg.llm_lora.rank or cfg.vision_lora.rank):
            raise errors.SgqlmError(
                "this model has no adapters",
                fix="export it as `llava` or `sgqlm`",
                code=errors.CHECKPOINT,
            )
        leaves = {
            path: leaf for path, leaf in leaves.items() if path.endswith(("lora_a", "lora_b"))
        }
    elif format == "llava":
        gone = ("prototypes/", "graph/", "regions/")
        leaves = {path: leaf for path, leaf in leaves.items() if not path.startswith(gone)}
        cfg = dataclasses.replace(
            cfg,
            prototypes=config_lib.PrototypeConfig(),
            graph=config_lib.GraphConfig(enabled=False),
            region_words=0,
        )
    if format == "llava" or (format == "sgqlm" and options.merge):
        if cfg.region_words and cfg.vision_lora.rank:
            raise errors.SgqlmError(
                "the adapters of this tower cannot be merged",
                why="its region classifier reads the tower without them",
                fix="export without --merge",
                code=errors.CHECKPOINT,
            )
        leaves, cfg = leaves_lib.merge_lora(leaves, cfg)
    if options.dtype:
        dtype = DTYPES[options.dtype]
        leaves = {path: leaf.astype(dtype) for path, leaf in leaves.items()}
    return leaves, cfg


def _adapter_files(whole: config_lib.Config, facts, options: Options) -> dict[str, bytes]:
    base = options.base or str(facts.get("base") or "")
    if not base:
        raise errors.SgqlmError(
            "nothing says what the adapters belong to",
            why="the checkpoint was not trained from a LLaVA",
            fix="name the base with --base-model, a hub id or a folder",
            code=errors.CHECKPOINT,
        )
    with_projector = "projector" in facts.get("trained", ())
    tree = peft_config.adapter_config(whole.model, base=base, save_projector=with_projector)
    return {
        "adapter_config.json": json.dumps(tree, indent=2).encode(),
        "chat_template.jinja": chat_template.build(whole.text).encode(),
    }


def _side_files(model: source.Source, format: Format, whole, tokenizer, options: Options):
    """Return the rows of the embedding, the files beside the weights, and notes for the card."""
    rows = whole.model.llm.vocab_size
    if format == "sgqlm":
        files = sgqlm_folder.side_files(whole, tokenizer)
        if options.dtype:
            files["config.json"] = _with_dtype(files["config.json"], options.dtype)
        return rows, files, []
    token = model.about.get("image_token_id")
    rows = llava_folder.embedding_rows(whole, tokenizer, image_token_id=token)
    dtype = options.dtype or _dtype_name(model.leaves)
    found = llava_folder.side_files(
        whole, tokenizer, vocab_size=rows, dtype=dtype, image_token_id=token
    )
    return rows, dict(found.files), list(found.notes)


def _with_dtype(config_json: bytes, dtype: str) -> bytes:
    tree = json.loads(config_json)
    for part in (tree, tree["text_config"]):
        part |= {"dtype": dtype, "torch_dtype": dtype}
    return json.dumps(tree, indent=2).encode()


def _tensors(leaves, cfg, format: Format, model: source.Source, rows: int) -> list[_Tensor]:
    if format == "peft":
        entries = names.adapter_entries(cfg, text=_ADAPTED_TEXT, vision=_ADAPTED_VISION)
        saved = [e for e in names.projector_entries(cfg.projector) if e.path in leaves]
        entries += [e._replace(name=peft_config.saved_name(e.name)) for e in saved]
    elif format == "sgqlm":
        entries = names.own_entries(cfg)
    else:
        entries = names.llava_entries(cfg)
    found = [_Tensor(e, leaves[e.path], names.num_layers(e, cfg)) for e in entries]
    if unused := sorted(set(leaves) - {entry.path for entry in entries}):
        raise leaves_lib.mismatch(
            [f"unexpected  {path}" for path in unused], format, "this is a fault of the name table"
        )
    if format != "llava":
        return found
    found = [
        t._replace(leaf=_with_rows(t.leaf, rows, -1 if t.entry.path.endswith("kernel") else 0))
        if t.entry.path in ("llm/embed/embedding", "llm/head/kernel")
        else t
        for t in found
    ]
    kept = {name: leaf for name, leaf in model.carried.items() if ".lora_" not in name}
    return [*found, *_as_they_are(kept or _behind(leaves, cfg))]


def _as_they_are(tensors: Mapping[str, leaves_lib.Leaf]) -> list[_Tensor]:
    return [_Tensor(names.Entry(name, name), leaf, None) for name, leaf in sorted(tensors.items())]


def _with_rows(leaf: leaves_lib.Leaf, rows: int, axis: int) -> leaves_lib.Leaf:
    """Add rows for tokens that are never said: their mean, which is never the best answer."""
    missing = rows - leaf.shape[axis]
    if not missing:
        return leaf
    shape = (rows, leaf.shape[1]) if axis == 0 else (leaf.shape[0], rows)

    def load() -> np.ndarray:
        array = leaf.load()
        mean = array.astype(np.float32).mean(axis, keepdims=True).astype(array.dtype)
        return np.concatenate([array, np.repeat(mean, missing, axis)], axis)

    return leaves_lib.Leaf(leaf.dtype, shape, load)


def _behind(leaves, cfg: config_lib.ModelConfig) -> dict[str, leaves_lib.Leaf]:
    """Return the layers that transformers wants behind the feature layer; nothing reads them.

    They let everything pass: kernels and biases of zero, norms of one.
    """
    found = {}
    dtype = leaves["vision/cls"].dtype
    for entry in names.vision_entries():
        if "{i}" not in entry.name:
            continue
        shape = names.shape_to_torch(leaves[entry.path].shape[1:], entry.layout)
        fill = np.ones if entry.path.endswith("scale") else np.zeros
        for i in range(cfg.vision.num_used_layers, cfg.vision.num_layers):
            found[entry.name.format(i=i)] = leaves_lib.of_array(fill(shape, dtype))
    for kind, fill in (("weight", np.ones), ("bias", np.zeros)):
        name = names.POST_NORM + kind
        found[name] = leaves_lib.of_array(fill(cfg.vision.width, dtype))
    return found


def _plan(weights: Sequence[_Tensor], stem: str, options: Options) -> stream.Plan:
    specs = []
    for entry, leaf, count in weights:
        shape = leaf.shape if count is None else leaf.shape[1:]
        for i in range(count or 1):
            shaped = names.shape_to_torch(shape, entry.layout)
            specs.append(stream.TensorSpec(entry.name.format(i=i), leaf.dtype, shaped))
    return stream.plan(specs, max_shard_size=options.max_shard_size, stem=stem)


def _probe(side, whole, tokenizer) -> probe.ProbeReport | None:
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory(prefix="sgqlm-") as folder:
        for name, content in side.items():
            (pathlib.Path(folder) / name).write_bytes(content)
        return probe.count_differences(folder, whole, tokenizer)


def _dtype_name(leaves: Mapping[str, leaves_lib.Leaf]) -> str:
    """Return the dtype that most of the weights have."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.size
    return max(sizes, key=lambda name: sizes[name])

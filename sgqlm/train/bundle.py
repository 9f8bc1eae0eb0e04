"""A whole model to and from a checkpoint, one parameter in memory at a time."""

import dataclasses
import os
import pathlib
import shutil

import sgqlm
from sgqlm import config, errors
from sgqlm.convert import exporting, importing, source
from sgqlm.train import checkpoint, stored, writing


def write(folder: str | os.PathLike, meta: checkpoint.Meta, model: source.Source) -> pathlib.Path:
    """Write an opened model as a checkpoint, one parameter in memory at a time.

    Args:
        folder: becomes the checkpoint; it does not exist yet.
        meta: what it is; what the model tells is filled in here.
        model: opened, with all parameters of its configuration.

    Returns:
        The folder.

    Raises:
        SgqlmError: the folder exists, or the disk is full or cannot be written; nothing is left.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise errors.SgqlmError(
            "the checkpoint exists already",
            where=str(folder),
            fix="give another folder, or remove it first",
            code=errors.CHECKPOINT,
        )

    def listed(leaves):
        return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}

    meta = dataclasses.replace(
        meta,
        leaves=listed(model.leaves),
        saved=tuple(sorted(model.leaves)),
        carried=listed(model.carried),
        about=dict(model.about),
        versions=checkpoint.versions(),
    )
    aside = folder.with_name(f"{writing.ASIDE}{folder.name}-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        stored.write(aside / "params", model.leaves)
        if model.carried:
            stored.write(aside / "carried", model.carried)
        checkpoint.finish(aside, folder, meta, model.tokenizer)
    except OSError as error:
        raise errors.SgqlmError(
            "the checkpoint could not be written",
            where=str(folder),
            why=str(error),
            fix="free some room, or give another folder",
            code=errors.RESOURCES,
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def open_model(
    path: str | os.PathLike, *, base: str | os.PathLike | None = None
) -> tuple[checkpoint.Meta, source.Source]:
    """Open the newest intact checkpoint at `path` without reading a parameter.

    Args:
        path: a checkpoint, or a work directory.
        base: where the base lies now, if not where it was.

    Raises:
        SgqlmError: there is no intact checkpoint, it does not fit its configuration, or its base
            is not there.
    """
    folder, meta = checkpoint.newest(path)
    cfg = config.from_config_dict(meta.config)
    checkpoint.check_shapes(meta, cfg.model, where=str(folder))
    own = stored.read(folder / "params", {name: meta.leaves[name] for name in meta.saved})
    words = (folder / "tokenizer.model").read_bytes()
    model = source.Source(cfg.model, cfg.text, own, tokenizer=words, about=dict(meta.about))
    model.carried = stored.read(folder / "carried", meta.carried)
    if meta.base:
        below = model.files.enter_context(_open_base(meta.base, base))
        model.leaves = below.leaves | own
        model.carried, model.about = below.carried | model.carried, {**below.about, **meta.about}
    if missing := sorted(set(meta.leaves) - set(model.leaves)):
        raise checkpoint.incomplete(folder, missing)
    model.leaves = {name: model.leaves[name] for name in meta.leaves}
    return meta, model


def open_any(path: str | os.PathLike) -> source.Source:
    """Open what a run may start from: a checkpoint, a Hugging Face LLaVA folder or an export.

    Raises:
        SgqlmError: it is none of them, or damaged.
    """
    path = pathlib.Path(path)
    is_model = not checkpoint.find(path) and importing.is_model(path)
    return importing.open_any(path) if is_model else open_model(path)[1]


def facts(path: str | os.PathLike, meta: checkpoint.Meta) -> dict[str, object]:
    """Return what an export says about the checkpoint it was made of."""
    return {
        "source": checkpoint.newest(path)[0].name,
        "step": meta.step,
        "stage": meta.stage,
        "trained": list(meta.trained),
        "config_digest": exporting.config_digest(meta.config),
        "versions": meta.versions,
        "base": pathlib.Path(meta.base["path"]).name if meta.base else meta.about.get("base", ""),
        "created_by": f"sgqlm {sgqlm.__version__}",
    }


def _open_base(saved: dict[str, str], base: str | os.PathLike | None) -> source.Source:
    path = checkpoint.base_folder(saved, base)
    return open_model(path)[1] if checkpoint.find(path) else importing.open_any(path)

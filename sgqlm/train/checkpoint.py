"""Checkpoints: written aside and renamed, with a checksum of every file.

A checkpoint is a folder `<stage index>-<stage>-<step>` holding `params/` and `opt/` (orbax),
`meta.json`, `tokenizer.model` and `manifest.json`. With a base, `params/` holds only what differs
from it. Inference reads `params/` and never the optimizer.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from sgqlm import config, errors, types
from sgqlm.convert import importing, manifest
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.text import tokenizer as tokenizer_lib
from sgqlm.train import writing

FORMAT = 1
FOLDER = "checkpoints"  # inside a work directory
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Meta:
    """What `meta.json` holds.

    Attributes:
        config: the whole resolved configuration, as `config.to_dict` gives it.
        stage: name of the stage.
        stage_index: its row in the stage table.
        step: steps of the stage that are done.
        is_final: the stage is finished.
        trained: parts that this stage or an earlier one of the run trained.
        base: `{"path", "digest"}` of what the run started from; None: `params/` is whole.
        leaves: path -> [dtype, shape] of every parameter of the model, the base's included.
        saved: paths of the parameters that lie in `params/`.
        data: digest of everything that decides the order of the data.
        carried: tensors of an imported model that take no part in it, as `leaves`.
        about: facts of an imported model that an export gives back.
        mesh: `{"axes", "processes", "platform"}` of the run that wrote it.
        versions: of the libraries that wrote it.
    """

    config: dict[str, Any]
    stage: str
    stage_index: int
    step: int
    is_final: bool
    trained: tuple[str, ...] = ()
    base: dict[str, str] | None = None
    leaves: dict[str, Any] = dataclasses.field(default_factory=dict)
    saved: tuple[str, ...] = ()
    data: str = ""
    carried: dict[str, Any] = dataclasses.field(default_factory=dict)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    mesh: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @property
    def name(self) -> str:
        """Folder name; names sort from old to new."""
        return f"{self.stage_index:02d}-{self.stage}-{self.step:07d}"


def save(
    root: str | os.PathLike,
    meta: Meta,
    params: types.Params,
    *,
    opt: Any = None,
    tokenizer: bytes = b"",
    from_base: frozenset[str] = frozenset(),
    keep: int = 2,
    writer: writing.Writer | None = None,
) -> pathlib.Path:
    """Write a checkpoint; it appears under its name only when it is complete.

    Args:
        root: folder of the run's checkpoints.
        meta: what it is; `leaves`, `saved` and `versions` are filled in here.
        params: the whole parameter tree.
        opt: any tree of arrays to resume from.
        tokenizer: the SentencePiece model.
        from_base: paths of parameters that are unchanged from `meta.base`, and left out.
        keep: how many checkpoints stay.
        writer: of the run, which may write in the background; None: wait for the disk.

    Returns:
        The folder; with a writer it is there after `writer.wait()`.

    Raises:
        SgqlmError: the disk is full or cannot be written.
    """
    root = pathlib.Path(root).absolute()
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    saved = {path: leaf for path, leaf in flat.items() if path not in from_base}
    leaves = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in flat.items()}
    meta = dataclasses.replace(meta, leaves=leaves, saved=tuple(sorted(saved)), versions=versions())
    trees = {"params": traverse_util.unflatten_dict(saved, sep="/")}
    trees |= {} if opt is None else {"opt": opt}

    def commit(aside: pathlib.Path):
        finish(aside, root / meta.name, meta, tokenizer)
        _retain(root, keep)

    with contextlib.nullcontext(writer) if writer else writing.Writer() as used:
        used.start(root / meta.name, trees, commit)
    return root / meta.name


def find(path: str | os.PathLike) -> list[pathlib.Path]:
    """Return the complete checkpoints at `path`, oldest first.

    Args:
        path: a checkpoint, a folder of checkpoints, or a work directory.
    """
    path = pathlib.Path(path)
    if (path / "meta.json").is_file():
        return [path]
    if (path / FOLDER).is_dir():
        path = path / FOLDER
    if not path.is_dir():
        return []
    return sorted(p.parent for p in path.glob("[0-9]*/manifest.json"))


def resolved(path: str | os.PathLike) -> pathlib.Path:
    """Return the absolute path of a checkpoint or export; a work directory's newest checkpoint."""
    found = find(path)
    return (found[-1] if found else pathlib.Path(path)).resolve()


def latest(path: str | os.PathLike) -> tuple[pathlib.Path, Meta] | None:
    """Return the newest checkpoint whose files are intact, or None if there is none at all.

    A damaged one is named on stderr and the one before it is taken.

    Raises:
        SgqlmError: there are checkpoints and all are damaged.
    """
    folders = find(path)
    for folder in reversed(folders):
        faults = verify(folder)
        if not faults:
            return folder, read_meta(folder)
        message = f"DAMAGED CHECKPOINT {folder}: {'; '.join(faults[:3])}"
        print(f"{message} - falling back to the one before it", file=sys.stderr, flush=True)
    if folders:
        raise errors.SgqlmError(
            "no intact checkpoint is left",
            where=str(path),
            why=verify(folders[-1])[0],
            fix="restore the folder from a copy, or train again in another work directory",
            code=errors.CHECKPOINT,
        )
    return None


def verify(folder: pathlib.Path) -> list[str]:
    """Return what is wrong with the files of a checkpoint: missing, extra, changed."""
    return manifest.faults(folder, manifest=_MANIFEST)


def read_meta(folder: pathlib.Path) -> Meta:
    """Read `meta.json`.

    Raises:
        SgqlmError: it was written by a newer format or is not readable.
    """
    try:
        tree = json.loads((folder / "meta.json").read_text())
        names = {field.name for field in dataclasses.fields(Meta)}
        known = {key: tree[key] for key in tree if key in names}
        known |= {key: tuple(known.get(key, ())) for key in ("trained", "saved")}
        meta = Meta(**known)
    except (OSError, ValueError, TypeError) as error:
        raise errors.SgqlmError(
            "this is not a checkpoint",
            where=str(folder / "meta.json"),
            why=str(error),
            fix="give a folder that `sgqlm train` wrote",
            code=errors.CHECKPOINT,
        ) from error
    if meta.format > FORMAT:
        raise errors.SgqlmError(
            f"the checkpoint has format {meta.format}, this program reads up to {FORMAT}",
            where=str(folder),
            fix="update sgqlm",
            code=errors.CHECKPOINT,
        )
    return meta


def load_params(
    folder: pathlib.Path,
    *,
    shardings: Mapping[str, Any] | None = None,
    base: str | os.PathLike | None = None,
) -> types.Params:
    """Load the whole parameter tree, joined with its base.

    Args:
        folder: a checkpoint.
        shardings: nested dict of placements; None: the first local device.
        base: where the base lies now, if not where it was.

    Returns:
        Parameters in the dtypes they were saved in.

    Raises:
        SgqlmError: the base has changed, or parameters are missing.
    """
    meta = read_meta(folder)
    places: dict[str, Any] = traverse_util.flatten_dict(dict(shardings or {}), sep="/")
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(path):
        dtype, shape = meta.leaves[path]
        place = places.get(path, one)
        return jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype), sharding=place)

    targets = {path: target(path) for path in meta.saved}
    tree = _restore(folder / "params", traverse_util.unflatten_dict(targets, sep="/"))
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    if meta.base:
        below = base_folder(meta.base, base)
        if inner := latest(below):
            tree = load_params(inner[0], shardings=shardings)
            flat = traverse_util.flatten_dict(tree, sep="/") | flat
        else:
            with importing.open_any(below) as found:
                for path in sorted(set(found.leaves) - set(flat)):
                    leaf = found.leaves[path].load()
                    flat[path] = mesh_lib.put(leaf, places.get(path, one))
    if missing := sorted(set(meta.leaves) - set(flat)):
        raise incomplete(folder, missing)
    return traverse_util.unflatten_dict({p: flat[p] for p in meta.leaves}, sep="/")


def load_opt(folder: pathlib.Path, target: Any) -> Any:
    """Load what was saved as `opt`, into the structure, dtypes and placements of `target`."""
    return _restore(folder / "opt", target)


def load_model(
    path: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[config.Config, types.Params, tokenizer_lib.Tokenizer | None]:
    """Load a model for inference; the optimizer is not read.

    Args:
        path: a checkpoint, or a work directory, whose newest intact checkpoint is taken.
        base: where the base lies now, if not where it was.
        mesh: where the parameters go; None: the first local device.

    Returns:
        Its configuration, parameters and tokenizer; None if it was imported without one.

    Raises:
        SgqlmError: there is no intact checkpoint, or it does not fit its configuration.
    """
    folder, meta = newest(path)
    cfg = config.from_config_dict(meta.config)
    check_shapes(meta, cfg.model, where=str(folder))
    words = (folder / "tokenizer.model").read_bytes()
    tokenizer = open_tokenizer(words, cfg.text) if words else None
    places = mesh and rules.param_shardings(vlm.param_shapes(cfg.model), mesh)
    return cfg, load_params(folder, shardings=places, base=base), tokenizer


def open_tokenizer(model: bytes, text: config.TextConfig) -> tokenizer_lib.Tokenizer:
    """Open a SentencePiece model under the rules of `text`."""
    opened = tokenizer_lib.load(model, legacy=text.legacy)
    return opened.with_token("[vusr]") if text.vusr_marker == "token" else opened


def check_shapes(meta: Meta, model: config.ModelConfig, *, where: str) -> None:
    """Compare the parameters of a checkpoint with those a configuration describes.

    Raises:
        SgqlmError: names or shapes differ; the first three differences are told.
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(vlm.param_shapes(model), sep="/")
    shapes = {path: tuple(shape) for path, (_, shape) in meta.leaves.items()}
    faults = [f"{p} is missing" for p in sorted(set(wanted) - set(shapes))]
    faults += [f"{p} is unknown to the model" for p in sorted(set(shapes) - set(wanted))]
    for path in sorted(set(wanted) & set(shapes)):
        if wanted[path].shape != shapes[path]:
            faults.append(f"{path} has {shapes[path]}, the model {wanted[path].shape}")
    if faults:
        raise errors.SgqlmError(
            f"the checkpoint does not fit the model in {len(faults)} parameters",
            where=where,
            why="; ".join(faults[:3]),
            fix="use the model configuration it was trained with",
            code=errors.CHECKPOINT,
        )


def digest(folder: str | os.PathLike) -> str:
    """Identify a checkpoint by its manifest, or a folder of weights by names, sizes and heads."""
    folder = pathlib.Path(folder)
    if (listed := folder / _MANIFEST).is_file():
        return manifest.sha256(listed)
    total = hashlib.sha256()
    for name, file in sorted(manifest.files(folder, manifest=_MANIFEST).items()):
        with file.open("rb") as stream:
            total.update(f"{name}\0{file.stat().st_size}\0".encode() + stream.read(2**20))
    return total.hexdigest()


def remove_unfinished(root: str | os.PathLike) -> list[str]:
    """Remove what a killed process left half written and return the names."""
    left = sorted(pathlib.Path(root).glob(writing.ASIDE + "*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name.removeprefix(writing.ASIDE) for folder in left]


def newest(path: str | os.PathLike) -> tuple[pathlib.Path, Meta]:
    """Return what `latest` does.

    Raises:
        SgqlmError: there is no checkpoint, or all are damaged.
    """
    if found := latest(path):
        return found
    raise errors.SgqlmError(
        "no checkpoint was found",
        where=str(path),
        fix="give a checkpoint folder or the work directory of a training run",
        code=errors.CHECKPOINT,
    )


def incomplete(folder: pathlib.Path, missing: list[str]) -> errors.SgqlmError:
    """Return the error of a checkpoint that lacks parameters."""
    return errors.SgqlmError(
        f"{len(missing)} parameters are missing, the first is {missing[0]}",
        where=str(folder),
        fix="give the base this checkpoint was trained from",
        code=errors.CHECKPOINT,
    )


def base_folder(saved: dict[str, str], base: str | os.PathLike | None) -> pathlib.Path:
    """Return where the base of a checkpoint lies.

    Raises:
        SgqlmError: it is not there, or is another one.
    """
    path = pathlib.Path(base or saved["path"])
    if not path.is_dir() or digest(path) != saved["digest"]:
        raise errors.SgqlmError(
            "the base of this checkpoint is not there"
            if not path.is_dir()
            else "the base of this checkpoint has changed",
            where=str(path),
            why="only what differs from the base was saved",
            fix="say where the same base lies (base=...)",
            code=errors.CHECKPOINT,
        )
    return path


def _restore(folder: pathlib.Path, target: Any) -> Any:
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(folder.absolute()).item_metadata
            _refuse_casts(folder, _dtypes(stored.tree if stored else {}), _dtypes(target))
            return reader.restore(folder.absolute(), target)
    except (ValueError, OSError, KeyError) as error:
        raise errors.SgqlmError(
            "the checkpoint could not be restored",
            where=str(folder),
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="use the configuration it was trained with",
            code=errors.CHECKPOINT,
        ) from error


def _dtypes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="/"): str(leaf.dtype) for path, leaf in leaves}


def _refuse_casts(folder: pathlib.Path, stored: dict[str, str], wanted: dict[str, str]):
    """Refuse what orbax would cast without a word."""
    both = sorted(set(stored) & set(wanted))
    if changed := [path for path in both if stored[path] != wanted[path]]:
        path = changed[0]
        raise errors.SgqlmError(
            f"{len(changed)} arrays of the checkpoint have another dtype than the run",
            where=f"{folder}: {path}",
            why=f"{stored[path]} is stored, {wanted[path]} is wanted",
            fix="use the configuration it was trained with; a cast would change the result",
            code=errors.CHECKPOINT,
        )


def finish(aside, final, meta: Meta, tokenizer: bytes):
    """Write settings, tokenizer and checksums into `aside`, and give it its name."""
    (aside / "meta.json").write_text(json.dumps(dataclasses.asdict(meta), indent=1))
    (aside / "tokenizer.model").write_bytes(tokenizer)
    listed = manifest.listing(aside, manifest=_MANIFEST)
    with (aside / _MANIFEST).open("w") as stream:
        json.dump({"files": listed}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


def _retain(root: pathlib.Path, keep: int):
    for folder in find(root)[: -max(keep, 1)]:
        shutil.rmtree(folder)


def versions() -> dict[str, str]:
    """Return the versions of what writes checkpoints."""
    return {
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "orbax": ocp.__version__,
        "numpy": np.__version__,
    }

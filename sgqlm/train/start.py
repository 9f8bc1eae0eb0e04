"""What a run starts from: tokenizer, first parameters, and what an earlier run left."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.convert import leaves
from sgqlm.models import lora, vlm
from sgqlm.parallel import distributed, rules
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.text import tokenizer as tokenizer_lib
from sgqlm.train import bundle, checkpoint

# settings of `train` that may differ from those of the checkpoint a run goes on from
_FREE = ("workdir", "only", "init", "resume", "mesh", "remat", "log_every", "eval_every")
_FREE += ("eval_batches", "save_every", "async_save", "keep", "sample_every", "tensorboard")
_FREE += ("stages",)


class Start(NamedTuple):
    """What the stages are given.

    Attributes:
        config: resolved; the vocabulary size is that of the tokenizer.
        params: the whole tree on the mesh.
        tokenizer: the text side.
        base: `{"path", "digest"}` of `train.init`, or None.
        from_base: paths of the parameters that came from the base.
        resumed: the checkpoint to go on from, or None.
    """

    config: config.Config
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    base: dict[str, str] | None
    from_base: frozenset[str]
    resumed: tuple[pathlib.Path, checkpoint.Meta] | None


def begin(
    settings: config.Config,
    workdir: pathlib.Path,
    mesh: Mesh,
    texts: Callable[[config.Config], Iterable[str]],
) -> Start:
    """Find or make the tokenizer and the parameters.

    Args:
        settings: the configuration as given.
        workdir: the folder of the run.
        mesh: where the parameters go.
        texts: gives the corpus, should a tokenizer have to be trained.

    Returns:
        The start.

    Raises:
        SgqlmError: `resume=must` finds nothing, `resume=never` finds something, or the checkpoint
            belongs to another configuration.
    """
    found = _find(settings.train.resume, workdir)
    if found:
        return _resume(settings, found, mesh)
    where = settings.train.init
    if not where:
        tokenizer = _tokenizer(settings, b"", texts)
        settings = _with_vocabulary(settings, tokenizer, mesh, None)
        params = init_params(settings.model, settings.train.seed, mesh)
        return Start(settings, params, tokenizer, None, frozenset(), None)
    with bundle.open_any(where) as found:
        tokenizer = _tokenizer(settings, found.tokenizer, texts)
        settings = _with_vocabulary(settings, tokenizer, mesh, found.config)
        params = graft(found.leaves, settings, mesh)
    base = {"path": str(_base_folder(where)), "digest": checkpoint.digest(_base_folder(where))}
    return Start(settings, params, tokenizer, base, frozenset(found.leaves), None)


def init_params(
    model: config.ModelConfig, seed: int, mesh: Mesh, *, without: Collection[str] = ()
) -> types.Params:
    """Return fresh parameters, made where they lie.

    Args:
        model: the model.
        seed: of the draws.
        mesh: where the parameters go.
        without: paths that are left out; neither they nor what only they need is computed.
    """
    make, places = init_program(model, mesh, without=without)
    if not places:
        return {}
    return traverse_util.unflatten_dict(make(jax.random.key(seed)), sep="/")


def init_program(model: config.ModelConfig, mesh: Mesh, *, without: Collection[str] = ()):
    """Return the jitted function from a key to fresh parameters by path, and their shardings.

    Args:
        model: the model.
        mesh: where the parameters go.
        without: paths that are left out.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(
        rules.param_shardings(vlm.param_shapes(model), mesh), sep="/"
    )
    places = {path: place for path, place in flat.items() if path not in without}

    def make(key):
        made: dict[str, Any] = traverse_util.flatten_dict(vlm.init_params(model, key), sep="/")
        return {path: made[path] for path in places}

    return jax.jit(make, out_shardings=places), places


def graft(base: Mapping[str, leaves.Leaf], settings: config.Config, mesh: Mesh) -> types.Params:
    """Return the base's values, in its dtypes, and fresh ones where it has none.

    Only whole parts may be new, such as a graph or adapters that the base does not have. The base
    is put into place one parameter after the other.

    Args:
        base: parameters of the base, by path.
        settings: the run; `train.init` is the base.
        mesh: where the parameters go.

    Raises:
        SgqlmError: parameters are missing, unknown or of another shape.
    """
    shapes: dict[str, Any] = traverse_util.flatten_dict(vlm.param_shapes(settings.model), sep="/")
    check_base(base, shapes, where=settings.train.init)
    tree = traverse_util.unflatten_dict(shapes, sep="/")
    placed = rules.param_shardings(tree, mesh)
    places: dict[str, Any] = traverse_util.flatten_dict(placed, sep="/")
    fresh = init_params(settings.model, settings.train.seed, mesh, without=frozenset(base))
    found: dict[str, Any] = traverse_util.flatten_dict(fresh, sep="/")
    for path in shapes:
        if path in base:
            found[path] = mesh_lib.put(base[path].load(), places[path])
    return traverse_util.unflatten_dict({path: found[path] for path in shapes}, sep="/")


def check_base(base: Mapping[str, Any], shapes: Mapping[str, Any], *, where: str) -> None:
    """Refuse a base that does not fit a model.

    Args:
        base: leaves of the base, by path.
        shapes: those of the model.
        where: the base, for messages.

    Raises:
        SgqlmError: parameters of a part that the base has are missing, unknown or of another shape.
    """
    parts = {lora.part_of(path) for path in base}
    faults = [f"{p} is unknown to the model" for p in sorted(set(base) - set(shapes))]
    for path, leaf in shapes.items():
        if path not in base:
            if lora.part_of(path) in parts:
                faults.append(f"{path} is missing")
        elif base[path].shape != leaf.shape:
            faults.append(f"{path} has {base[path].shape}, the model {leaf.shape}")
    if faults:
        raise errors.SgqlmError(
            f"the base does not fit the model in {len(faults)} parameters",
            where=where,
            why="; ".join(faults[:3]),
            fix="set config.model as the base has it",
            code=errors.CHECKPOINT,
        )


def differences(saved: Any, wanted: Any, where: str = "config") -> list[str]:
    """Return the settings in which two nested dicts differ, as `path: old -> new`."""
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return [] if saved == wanted else [f"{where}: {saved!r} -> {wanted!r}"]
    found = []
    for key in sorted(set(saved) | set(wanted)):
        found += differences(saved.get(key), wanted.get(key), f"{where}.{key}")
    return found


def _find(mode: str, workdir: pathlib.Path):
    found = checkpoint.latest(workdir)
    if mode == "must" and not found:
        raise errors.SgqlmError(
            "there is no checkpoint to resume from",
            where=str(workdir),
            fix="give the work directory of the run, or config.train.resume=auto",
            code=errors.CHECKPOINT,
        )
    if mode == "never" and found:
        raise errors.SgqlmError(
            "the work directory holds checkpoints of another run",
            where=str(found[0]),
            fix="give another config.train.workdir, or config.train.resume=auto to go on",
        )
    return found


def _resume(settings: config.Config, found, mesh: Mesh) -> Start:
    folder, meta = found
    tokenizer_file = (folder / "tokenizer.model").read_bytes()
    tokenizer = checkpoint.open_tokenizer(tokenizer_file, settings.text)
    saved = config.from_config_dict(meta.config)
    if settings.text.tokenizer == "train" or settings.train.init:  # the run before found the size
        llm = dataclasses.replace(settings.model.llm, vocab_size=saved.model.llm.vocab_size)
        model = dataclasses.replace(settings.model, llm=llm)
        settings = dataclasses.replace(settings, model=model)
    _refuse_changes(saved, settings, meta, folder)
    checkpoint.check_shapes(meta, settings.model, where=str(folder))
    shapes = vlm.param_shapes(settings.model)
    params = checkpoint.load_params(folder, shardings=rules.param_shardings(shapes, mesh))
    from_base = frozenset(set(meta.leaves) - set(meta.saved))
    return Start(settings, params, tokenizer, meta.base, from_base, found)


def _refuse_changes(saved: config.Config, settings: config.Config, meta, folder):
    """Refuse a resume that would not be the same run; other stages may change."""

    def relevant(whole: config.Config):
        tree = config.to_dict(whole)
        train = {k: v for k, v in tree["train"].items() if k not in _FREE}
        rows = {row["name"]: row for row in tree["train"]["stages"]}
        stage = {} if meta.is_final else {"stage": rows.get(meta.stage)}
        for source in [s for row in rows.values() for s in row["sources"]] + [tree["scenes"]]:
            source.pop("path")  # data may move; their content is compared by its digest
        loading = ("num_workers", "num_threads", "cache_images")
        data = {k: v for k, v in tree["data"].items() if k not in loading}
        same = {name: tree[name] for name in ("model", "text", "scenes")}
        same["model"] = {k: v for k, v in tree["model"].items() if k != "attention"}
        return {**same, "data": data, "train": train, **stage}

    if changes := differences(relevant(saved), relevant(settings)):
        raise errors.SgqlmError(
            f"{len(changes)} settings differ from those of the checkpoint",
            where=str(folder),
            why="; ".join(changes[:5]),
            fix="put them back, or train in another config.train.workdir"
            + _as_base(meta, settings),
            code=errors.CHECKPOINT,
        )


def _as_base(meta, settings: config.Config) -> str:
    """Offer the weights of a checkpoint to a new run whose model they fit."""
    shapes: dict[str, Any] = traverse_util.flatten_dict(vlm.param_shapes(settings.model), sep="/")
    base = {
        path: jax.ShapeDtypeStruct(tuple(shape), dtype)
        for path, (dtype, shape) in meta.leaves.items()
    }
    try:
        check_base(base, shapes, where="")
    except errors.SgqlmError:
        return " from the start: the weights do not fit the changed model"
    return "; --config.train.init=<this checkpoint> starts it from these weights"


def _tokenizer(settings: config.Config, from_base: bytes, texts) -> tokenizer_lib.Tokenizer:
    name = settings.text.tokenizer
    if name == "train" and not from_base:
        size = settings.text.vocab_size
        train = lambda: tokenizer_lib.train(texts(settings), size)  # noqa: E731
        model = distributed.from_main(train, "train the tokenizer")
    elif name == "train":
        model = from_base
    else:
        model = tokenizer_lib.load(name).model_bytes
    return checkpoint.open_tokenizer(model, settings.text)


def _with_vocabulary(settings: config.Config, tokenizer, mesh: Mesh, base) -> config.Config:
    llm, size = settings.model.llm, tokenizer.vocab_size
    if base is None and settings.text.tokenizer == "train":
        parts = mesh.shape["tensor"]
        llm = dataclasses.replace(llm, vocab_size=-(-size // parts) * parts)
    elif base is not None:
        llm = dataclasses.replace(llm, vocab_size=base.llm.vocab_size)
    if size > llm.vocab_size:
        raise errors.SgqlmError(
            f"the tokenizer has {size} tokens, the model's table {llm.vocab_size}",
            where="config.model.llm.vocab_size",
            fix=f"set it to {size}",
        )
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, llm=llm))


def _base_folder(path: str) -> pathlib.Path:
    found = checkpoint.latest(path)
    return (found[0] if found else pathlib.Path(path)).absolute()

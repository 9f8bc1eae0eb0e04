"""Parameters that are read one at a time, so that no model ever lies in memory twice."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from sgqlm import config, errors
from sgqlm.convert import names

Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter, not read yet.

    Attributes:
        dtype: as `load` returns it.
        shape: as `load` returns it; stacked layers lie on the first axis.
        load: reads it.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.size * self.dtype.itemsize

    def astype(self, dtype: np.dtype) -> "Leaf":
        """Return the same parameter in another dtype."""
        if dtype == self.dtype:
            return self
        return Leaf(dtype, self.shape, lambda: self.load().astype(dtype))


def of_array(array: np.ndarray) -> Leaf:
    """Return a leaf that is in memory already."""
    array = np.asarray(array)
    return Leaf(array.dtype, array.shape, lambda: array)


def from_table(
    entries: Sequence[names.Entry],
    cfg: config.ModelConfig,
    info: Callable[[str], tuple[np.dtype, tuple[int, ...]]],
    read: Read,
) -> dict[str, Leaf]:
    """Return a leaf for every row of a name table.

    Args:
        entries: the rows; every tensor they name exists.
        cfg: gives the number of layers.
        info: dtype and shape of a tensor, by its canonical name.
        read: the tensor.

    Raises:
        SgqlmError: the layers of one parameter differ in dtype or shape.
    """
    found = {}
    for entry in entries:
        count = names.num_layers(entry, cfg)
        sources = [entry.name.format(i=i) for i in range(count or 1)]
        kinds = {info(name) for name in sources}
        if len(kinds) > 1:
            first = next(name for name in sources if info(name) != info(sources[0]))
            raise errors.SgqlmError(
                f"the layers of {entry.path} differ",
                where=first,
                why=f"{info(first)} against {info(sources[0])} in {sources[0]}",
                fix="fetch the weights again",
                code=errors.CHECKPOINT,
            )
        ((dtype, shape),) = kinds
        shape = names.shape_from_torch(shape, entry.layout)
        whole = shape if count is None else (count, *shape)
        load = _loader(
            sources, entry.layout, np.dtype(dtype), whole, read, is_stacked=count is not None
        )
        found[entry.path] = Leaf(np.dtype(dtype), whole, load)
    return found


def _loader(sources, layout, dtype, shape, read: Read, *, is_stacked: bool):
    def load() -> np.ndarray:
        out = np.empty(shape, dtype)
        for index, name in enumerate(sources):
            out[index if is_stacked else ...] = names.from_torch(read(name), layout)
        return out

    return load


def layers(
    entry: names.Entry, array: np.ndarray, count: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors that a parameter is stored as, by name, in torch's layout.

    Args:
        entry: the row of the parameter.
        array: its value.
        count: its layers; None for a single tensor.
    """
    for index in range(count or 1):
        part = array if count is None else array[index]
        yield entry.name.format(i=index), names.to_torch(part, entry.layout)


def check_shapes(leaves: Mapping[str, Leaf], cfg: config.ModelConfig, *, where: str) -> None:
    """Compare leaves with the parameters that a configuration describes.

    Raises:
        SgqlmError: parameters are missing, unexpected or of another shape; the message is a table.
    """
    wanted = names.param_shapes(cfg)
    table = [f"missing     {path}" for path in sorted(set(wanted) - set(leaves))]
    table += [f"unexpected  {path}" for path in sorted(set(leaves) - set(wanted))]
    for path in sorted(set(wanted) & set(leaves)):
        if tuple(wanted[path]) != leaves[path].shape:
            table.append(f"shape       {path}: {leaves[path].shape}, wanted {tuple(wanted[path])}")
    if table:
        raise mismatch(table, where, "the weights must match their configuration exactly")


def mismatch(table: Sequence[str], where: str, fix: str) -> errors.SgqlmError:
    """Return the error for tensors that do not fit, with a table of the first twenty."""
    shown = [*table[:20], *([f"... {len(table) - 20} more"] if len(table) > 20 else [])]
    return errors.SgqlmError(
        f"{len(table)} tensors do not fit",
        where=where,
        why="\n    " + "\n    ".join(shown),
        fix=fix,
        code=errors.CHECKPOINT,
    )


def merge_lora(
    leaves: Mapping[str, Leaf], cfg: config.ModelConfig
) -> tuple[dict[str, Leaf], config.ModelConfig]:
    """Fold every adapter into its kernel, W + alpha / rank * A B, in float32, layer by layer.

    Args:
        leaves: the parameters of a model.
        cfg: its configuration.

    Returns:
        The leaves without adapters, kernels in their own dtype, and the configuration to match.
    """
    scales = {"llm": cfg.llm_lora.scale, "vision": cfg.vision_lora.scale}
    merged = {}
    for path, leaf in leaves.items():
        folder, name = path.rsplit("/", 1) if "/" in path else ("", path)
        if name in ("lora_a", "lora_b"):
            continue
        pair = leaves.get(f"{folder}/lora_a"), leaves.get(f"{folder}/lora_b")
        if name == "kernel" and pair[0] is not None and pair[1] is not None:
            leaf = _merged(leaf, pair[0], pair[1], scales[path.split("/", 1)[0]])
        merged[path] = leaf
    none = config.LoraConfig()
    return merged, dataclasses.replace(cfg, llm_lora=none, vision_lora=none)


def _merged(kernel: Leaf, a: Leaf, b: Leaf, scale: float) -> Leaf:
    def load() -> np.ndarray:
        out, left, right = np.array(kernel.load()), a.load(), b.load()
        for index in np.ndindex(out.shape[:-2]):
            product = left[index].astype(np.float32) @ right[index].astype(np.float32)
            whole = out[index].astype(np.float32) + np.float32(scale) * product
            out[index] = whole.astype(out.dtype)
        return out

    return Leaf(kernel.dtype, kernel.shape, load)

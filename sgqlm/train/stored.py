"""Parameters in orbax, written and read one at a time."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from sgqlm.convert import leaves as leaves_lib


def write(folder: pathlib.Path, leaves: Mapping[str, leaves_lib.Leaf]) -> None:
    """Save leaves as one tree; only one of them is in memory at a time.

    Args:
        folder: does not exist yet.
        leaves: by path.
    """
    # a copy for asynchronous writing would be of no use: every write is waited for
    handler = _OneByOne(deepcopy_host_arrays=False)
    types = ocp.type_handlers.create_type_handler_registry(
        (leaves_lib.Leaf, handler),
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # never used; orbax warns without it
    )
    handlers = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    with ocp.Checkpointer(handlers) as writer:
        tree = traverse_util.unflatten_dict(dict(leaves), sep="/")
        writer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


def read(folder: pathlib.Path, known: Mapping[str, Any]) -> dict[str, leaves_lib.Leaf]:
    """Return the leaves of a saved tree, none of them read yet.

    Args:
        folder: of the tree.
        known: path -> (dtype, shape) of what is wanted.
    """

    def loader(path: str):
        def load() -> np.ndarray:
            item = traverse_util.unflatten_dict({path: 0}, sep="/")
            kind = ocp.RestoreArgs(restore_type=np.ndarray)
            args = traverse_util.unflatten_dict({path: kind}, sep="/")
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                wanted = ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
                tree = reader.restore(folder.absolute(), args=wanted)
            return np.asarray(traverse_util.flatten_dict(tree, sep="/")[path])

        return load

    return {
        path: leaves_lib.Leaf(np.dtype(dtype), tuple(shape), loader(path))
        for path, (dtype, shape) in known.items()
    }


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Loads a leaf, writes it, and forgets it before the next."""

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        found: Any = values  # leaves, though numpy arrays are declared
        for leaf, info, arg in zip(found, infos, args, strict=True):
            for written in await super().serialize([leaf.load()], [info], [arg]):
                written.result()
        return []

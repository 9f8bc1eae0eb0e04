"""Bytes of one device and elements on the wire, by arithmetic on shapes.

Nothing here knows models: rows of parameters come in (`parallel.shardings`), numbers go out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sgqlm.parallel import chips, shardings

MASTER_BYTES = 4  # float32: master weights, gradients, and each of Adam's two moments
# share of the memory that a program may plan with: the rest is for the runtime, the compiler's
# own buffers and gaps between arrays
USABLE = 0.92


class Memory(NamedTuple):
    """Bytes on one device at the worst moment of a step."""

    frozen: int  # weights that do not train
    trainable: int  # float32 master weights
    gradients: int
    optimizer: int
    batch: int
    activations: int  # what the forward pass keeps for the backward pass
    working: int  # gathered weights, one layer computed again, logits, gradients of activations

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    @property
    def arguments(self) -> int:
        """What a step is given: weights, optimizer and one batch."""
        return self.frozen + self.trainable + self.optimizer + self.batch


def state(
    rows: Sequence[shardings.Row], is_trained: Callable[[str], bool], *, accumulation: int = 1
) -> Memory:
    """Count what a step holds of the parameters, exactly.

    Args:
        rows: every parameter; frozen ones count in their own dtype, those that train in float32.
        is_trained: whether the parameter at a path trains.
        accumulation: micro-batches a step; with several a second sum of gradients is alive.

    Returns:
        The memory with batch, activations and working set 0. Two more scalars a run are left out.
    """
    frozen = sum(row.device_bytes for row in rows if not is_trained(row.path))
    master = sum(float32_bytes(row) for row in rows if is_trained(row.path))
    copies = 1 if accumulation == 1 else 2
    return Memory(frozen, master, copies * master, 2 * master, 0, 0, 0)


def float32_bytes(row: shardings.Row) -> int:
    """Return the bytes that one device holds of a parameter in float32."""
    size = 1
    for side in row.shape:
        size *= side
    return row.device_bytes * size * MASTER_BYTES // max(row.bytes, 1)


def fits(memory: Memory, chip: chips.Chip) -> bool:
    """Return whether a step fits the usable part of the chip's memory."""
    return memory.total <= USABLE * chip.memory


def fsdp_minimum(
    rows: Sequence[shardings.Row],
    *,
    forward: Callable[[str], bool],
    backward: Callable[[str], bool],
    trained: Callable[[str], bool],
) -> int:
    """Return the elements that fully sharded data parallelism has to move in one pass.

    Every weight that is divided over fsdp is gathered once for the forward pass, and once more for
    the backward pass if a gradient flows through it; the backward pass uses the same gathered
    weight to compute a layer again, so rematerialisation adds nothing. Every gradient of a weight
    that trains is reduced once.

    Args:
        rows: every parameter.
        forward: whether the forward pass uses the parameter at a path.
        backward: whether a gradient flows through it.
        trained: whether it trains.
    """
    total = 0
    for row in rows:
        size = 1
        for side in row.shape:
            size *= side
        is_divided = any(
            axis == "fsdp" or (isinstance(axis, tuple) and "fsdp" in axis) for axis in row.spec
        )
        total += size * is_divided * (forward(row.path) + backward(row.path))
        total += size * trained(row.path)
    return total

"""Two tables place every array: parameter path -> logical axes, logical axis -> mesh axes.

A mesh need not have all axes: one that a mesh lacks divides nothing. Training meshes have all
three. A decode mesh has no `fsdp`, so the same tables leave every weight divided over `tensor`
only and whole otherwise: no weight is gathered for a token (see `mesh.for_decode`).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from sgqlm import errors

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# logical axis -> mesh axes. `embed` is the width of activations, `width` that of parameters.
LOGICAL: Mapping[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": (),
    "width": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "adapter": ("tensor", "fsdp"),
}


class Rule(NamedTuple):
    """One row of the parameter table.

    Attributes:
        pattern: regular expression that the whole path matches; it begins with its part.
        axes: logical axes of the trailing dimensions; leading ones (stacked layers) are whole.
        is_optional: the parameter is missing from some configurations whose part is on. Any other
            row must match a parameter wherever its part is there.
    """

    pattern: str
    axes: tuple[str | None, ...]
    is_optional: bool = False


# No row takes whatever is left of a part: a parameter that is new or renamed stops the run.
PARAMETERS: tuple[Rule, ...] = (
    Rule(r"llm/embed/embedding", ("vocab", "width")),
    Rule(r"llm/blocks/attn/[qkv]/kernel", ("width", "heads")),
    Rule(r"llm/blocks/attn/o/kernel", ("heads", "width")),
    Rule(r"llm/blocks/mlp/(gate|up)/kernel", ("width", "mlp")),
    Rule(r"llm/blocks/mlp/down/kernel", ("mlp", "width")),
    Rule(r"llm/(blocks/(attn|mlp)_norm|norm)/scale", (None,)),
    Rule(r"llm/head/kernel", ("width", "vocab"), is_optional=True),  # tied embeddings have none
    Rule(r"vision/patch/kernel", (None, None, None, "width")),
    Rule(r"vision/cls", (None,)),
    Rule(r"vision/pos/embedding", (None, "width")),
    Rule(r"vision/blocks/attn/[qkv]/kernel", ("width", "heads")),
    Rule(r"vision/blocks/attn/[qkv]/bias", ("heads",)),
    Rule(r"vision/blocks/attn/out/kernel", ("heads", "width")),
    Rule(r"vision/blocks/mlp/fc1/kernel", ("width", "mlp")),
    Rule(r"vision/blocks/mlp/fc1/bias", ("mlp",)),
    Rule(r"vision/blocks/mlp/fc2/kernel", ("mlp", "width")),
    Rule(r"vision/(blocks/(attn/out|mlp/fc2|norm\d)|pre_norm)/(scale|bias)", (None,)),
    Rule(r"projector/fc1/kernel", ("width", "mlp")),
    Rule(r"projector/fc1/bias", ("mlp",)),
    Rule(r"projector/fc2/kernel", ("mlp", "width"), is_optional=True),  # a linear one has one layer
    Rule(r"projector/fc2/bias", (None,), is_optional=True),
    # the new modules are small: one dimension of a kernel is divided, nothing over `tensor`; in
    # the graph it is the output, since boxes and pairs enter with 5 and 6 numbers
    Rule(r"(prototypes|regions)/.*kernel", ("width", None)),
    Rule(r"graph/.*kernel", (None, "width")),
    Rule(r"(prototypes|regions|graph)/.*(bias|scale)", (None,), is_optional=True),
    Rule(r"prototypes/centers", (None, "width"), is_optional=True),  # mode `paper`
    Rule(r"prototypes/sim_(alpha|beta)", (None,), is_optional=True),  # mode `released`
    Rule(r"graph/round_\d+/logit", (None, None), is_optional=True),  # with message passing
    Rule(r"graph/prompt/null", (None,), is_optional=True),  # with prompt attention
)


def shard(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrain an activation to the current mesh; without a mesh return it as it is.

    Args:
        x: the activation.
        *logical: one logical axis name, or None, for each dimension of `x`.

    Returns:
        `x`, placed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, spec(logical, mesh=mesh.axis_names))


def spec(
    logical: tuple[str | None, ...],
    name: str = "an activation",
    *,
    mesh: Collection[str] = MESH_AXES,
) -> PartitionSpec:
    """Translate logical axes to a partition spec.

    Args:
        logical: one name, or None, a dimension.
        name: what is placed, for the message.
        mesh: the axes that the mesh has.

    Returns:
        The spec, one entry a dimension.

    Raises:
        SgqlmError: a name is unknown or one mesh axis would be used twice.
    """
    unknown = [axis for axis in logical if axis is not None and axis not in LOGICAL]
    if unknown:
        known = ", ".join(LOGICAL)
        raise errors.SgqlmError(f"unknown logical axis {unknown[0]!r} of {name}", fix=known)
    entries = [present(LOGICAL[axis], mesh) if axis else () for axis in logical]
    used = [axis for entry in entries for axis in entry]
    if len(set(used)) != len(used):
        why = f"logical axes {logical} map to mesh axes {entries}"
        raise errors.SgqlmError(f"a mesh axis is used twice for {name}", where=name, why=why)
    return PartitionSpec(*(_entry(axes) for axes in entries))


def present(axes: tuple[str, ...], mesh: Collection[str]) -> tuple[str, ...]:
    """Return those of `axes` that the mesh has."""
    return tuple(axis for axis in axes if axis in mesh)


def logical_axes(path: str, table: tuple[Rule, ...] = PARAMETERS) -> tuple[str | None, ...]:
    """Return the logical axes of the trailing dimensions of the parameter `path`.

    An adapter follows its base kernel: `lora_a` shares the kernel's input axis, `lora_b` its
    output axis, and the rank is whole. Where that axis is divided over tensor only, the adapter's
    is divided over fsdp too, else every device would hold a copy with its two moments.

    Raises:
        SgqlmError: no rule matches.
    """
    return _match(path, table)[1]


def param_specs(
    shapes: Mapping[str, Any], mesh: Mapping[str, int], table: tuple[Rule, ...] = PARAMETERS
) -> dict[str, Any]:
    """Place every parameter.

    Args:
        shapes: nested dict of anything with `.shape`.
        mesh: mesh axis name -> size; an axis that is not there divides nothing.
        table: the parameter rules, first match wins.

    Returns:
        The same nested dict of partition specs.

    Raises:
        SgqlmError: a parameter has no rule, a rule has no parameter, a mesh axis is used twice,
            or a dimension is not divisible by its mesh axes.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(shapes), sep="/")
    used, specs = set(), {}
    for path, leaf in flat.items():
        index, axes = _match(path, table)
        used.add(index)
        whole = _pad(axes, leaf.shape, path)
        specs[path] = spec(whole, path, mesh=mesh)
        _check_divisible(path, leaf.shape, whole, mesh)
    _check_used(flat, table, used)
    return traverse_util.unflatten_dict(specs, sep="/")


def param_shardings(shapes: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Return the nested dict of `NamedSharding` of the parameters on `mesh`."""
    specs = param_specs(shapes, dict(mesh.shape))
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_spec)


def _match(path: str, table: tuple[Rule, ...]) -> tuple[int, tuple[str | None, ...]]:
    base, _, leaf = path.rpartition("/")
    lookup = f"{base}/kernel" if leaf in ("lora_a", "lora_b") else path
    for index, rule in enumerate(table):
        if re.fullmatch(rule.pattern, lookup):
            return index, _adapter_axes(leaf, rule.axes)
    raise errors.SgqlmError(
        f"no sharding rule matches the parameter {path}",
        where="sgqlm/parallel/rules.py",
        fix="add a row to PARAMETERS",
    )


def _adapter_axes(leaf: str, axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    if leaf not in ("lora_a", "lora_b"):
        return axes
    own = axes[0] if leaf == "lora_a" else axes[-1]
    own = "adapter" if own and LOGICAL[own] == ("tensor",) else own
    return (own, None) if leaf == "lora_a" else (None, own)


def _pad(axes, shape, path):
    if len(axes) > len(shape):
        why = f"the rule names {len(axes)} dimensions {axes}"
        raise errors.SgqlmError(f"{path} has the shape {tuple(shape)}", where=path, why=why)
    return (None,) * (len(shape) - len(axes)) + axes


def _check_divisible(path, shape, axes, mesh: Mapping[str, int]):
    for position, (size, axis) in enumerate(zip(shape, axes, strict=True)):
        parts = 1
        for name in LOGICAL[axis] if axis else ():
            parts *= mesh.get(name, 1)
        if size % parts:
            raise errors.SgqlmError(
                f"the parameter {path} of shape {tuple(shape)} does not divide over the mesh",
                where=f"dimension {position} ({axis}, {size}) over {parts} devices",
                fix="change the mesh (--mesh, in training config.train.mesh) so that the size is a "
                "multiple of its axes",
            )


def _check_used(flat, table: tuple[Rule, ...], used: set[int]):
    parts = {path.partition("/")[0] for path in flat}
    for index, rule in enumerate(table):
        own = rule.pattern.partition("/")[0]
        is_expected = not rule.is_optional and any(re.fullmatch(own, part) for part in parts)
        if is_expected and index not in used:
            raise errors.SgqlmError(
                f"the sharding rule {rule.pattern!r} matches no parameter",
                where="sgqlm/parallel/rules.py",
                fix="remove the row, or rename it as the parameter is named",
            )


def _entry(axes: tuple[str, ...]):
    if not axes:
        return None
    return axes[0] if len(axes) == 1 else axes

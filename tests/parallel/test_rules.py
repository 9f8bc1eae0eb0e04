import re

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from sgqlm import config, errors
from sgqlm.models import presets, vlm
from sgqlm.parallel import rules
from tests.models import helpers

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def tiny_shapes(**changes):
    return vlm.param_shapes(helpers.small_config(**changes))


def flat_specs(shapes, mesh_sizes):
    specs = rules.param_specs(shapes, mesh_sizes)
    return traverse_util.flatten_dict(specs, sep="/")


@pytest.mark.parametrize("name", presets.names())
def test_presets_place_every_parameter(name):
    shapes = vlm.param_shapes(presets.get(name))
    sizes = MESH if name == "tiny" else {"data": 1, "fsdp": 8, "tensor": 2}
    specs = flat_specs(shapes, sizes)
    assert specs["llm/blocks/attn/q/kernel"] == P(None, "fsdp", "tensor")
    assert specs["llm/blocks/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert set(specs) == set(traverse_util.flatten_dict(shapes, sep="/"))


VARIANTS = (
    {"prototypes": config.PrototypeConfig(mode="released", num_prototypes=4)},
    {"prototypes": config.PrototypeConfig(mode="none")},
    {"graph": config.GraphConfig(enabled=False)},
    {"graph": config.GraphConfig(message_passing=False, prompt_attention=False)},
    {"projector": config.ProjectorConfig(kind="linear")},
    {"region_words": 2},
)


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_of_the_model_place_every_parameter(changes):
    flat_specs(tiny_shapes(**changes), MESH)


def test_every_row_places_a_parameter_of_some_model():
    models = [tiny_shapes(**changes) for changes in VARIANTS]
    models += [vlm.param_shapes(presets.get("vicuna_7b"))]
    paths = {path for tree in models for path in traverse_util.flatten_dict(tree, sep="/")}
    unused = [
        r.pattern for r in rules.PARAMETERS if not any(re.fullmatch(r.pattern, p) for p in paths)
    ]
    assert not unused
    patterns = [rule.pattern for rule in rules.PARAMETERS]
    assert len(set(patterns)) == len(patterns)


def test_adapters_follow_their_kernel():
    specs = flat_specs(tiny_shapes(), MESH)
    assert specs["llm/blocks/attn/o/kernel"] == P(None, "tensor", "fsdp")
    assert specs["llm/blocks/attn/o/lora_b"] == P(None, None, "fsdp")
    # the other half is divided over fsdp as well: no device keeps a whole copy
    assert specs["llm/blocks/attn/o/lora_a"] == P(None, ("tensor", "fsdp"), None)
    assert specs["llm/blocks/attn/q/lora_b"] == P(None, None, ("tensor", "fsdp"))


def test_new_modules_are_divided_too():
    specs = flat_specs(tiny_shapes(region_words=2), MESH)
    assert specs["regions/fc2/kernel"] == P("fsdp", None)
    assert specs["prototypes/q/kernel"] == P("fsdp", None)
    assert specs["graph/out_fc1/kernel"] == P(None, "fsdp")


def test_a_decode_mesh_leaves_weights_whole_but_for_tensor():
    specs = flat_specs(tiny_shapes(), {"data": 4, "tensor": 2})
    assert specs["llm/blocks/attn/q/kernel"] == P(None, None, "tensor")
    assert specs["llm/blocks/mlp/down/kernel"] == P(None, "tensor", None)
    assert specs["graph/out_fc1/kernel"] == P(None, None)
    axes = {axis for spec in specs.values() for axis in jax.tree.leaves(tuple(spec))}
    assert axes == {"tensor"}


def test_a_parameter_without_a_rule_is_named():
    shapes = tiny_shapes() | {"extra": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
    with pytest.raises(errors.SgqlmError, match="extra/kernel"):
        rules.param_specs(shapes, MESH)


@pytest.mark.parametrize("part", ["graph", "prototypes", "regions", "llm"])
def test_no_part_takes_what_it_does_not_know(part):
    shapes = tiny_shapes(region_words=2)
    shapes[part] = {**shapes[part], "table": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
    with pytest.raises(errors.SgqlmError, match=f"{part}/table"):
        rules.param_specs(shapes, MESH)


def test_an_unused_rule_of_several_parts_is_named():
    table = (rules.Rule(r"(graph|regions)/old", ()), *rules.PARAMETERS)
    with pytest.raises(errors.SgqlmError, match="old"):
        rules.param_specs(tiny_shapes(), MESH, table)
    off = config.GraphConfig(enabled=False)
    rules.param_specs(tiny_shapes(graph=off), MESH, table)  # neither part is there


def test_an_unused_rule_is_named():
    table = (*rules.PARAMETERS, rules.Rule(r"llm/blocks/old/kernel", ("width", None)))
    with pytest.raises(errors.SgqlmError, match="llm/blocks/old/kernel"):
        rules.param_specs(tiny_shapes(), MESH, table)


def test_a_mesh_axis_used_twice_is_refused():
    table = (rules.Rule(r".*", ("heads", "mlp")),)
    leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    with pytest.raises(errors.SgqlmError, match="used twice for graph/kernel"):
        rules.param_specs({"graph": {"kernel": leaf}}, MESH, table)


def test_an_indivisible_dimension_is_named():
    kernel = jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)
    with pytest.raises(errors.SgqlmError, match="prototypes/q/kernel") as caught:
        rules.param_specs({"prototypes": {"q": {"kernel": kernel}}}, {"fsdp": 4})
    assert caught.value.where == "dimension 1 (width, 6) over 4 devices"


def test_shard_without_a_mesh_changes_nothing():
    x = jnp.ones((2, 3))
    assert rules.shard(x, "batch", None) is x


def test_unknown_logical_axis():
    with pytest.raises(errors.SgqlmError, match="'rows'"):
        rules.spec(("rows",))

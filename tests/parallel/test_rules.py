import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from sgqlm import config, errors
from sgqlm.models import presets, vlm
from sgqlm.parallel import mesh, rules
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


@pytest.mark.parametrize(
    "changes",
    [
        {"prototypes": config.PrototypeConfig(mode="released", num_prototypes=4)},
        {"prototypes": config.PrototypeConfig(mode="none")},
        {"graph": config.GraphConfig(enabled=False)},
        {"projector": config.ProjectorConfig(kind="linear")},
    ],
)
def test_variants_of_the_model_place_every_parameter(changes):
    flat_specs(tiny_shapes(**changes), MESH)


def test_adapters_follow_their_kernel():
    specs = flat_specs(tiny_shapes(), MESH)
    assert specs["llm/blocks/attn/o/kernel"] == P(None, "tensor", "fsdp")
    assert specs["llm/blocks/attn/o/lora_a"] == P(None, "tensor", None)
    assert specs["llm/blocks/attn/o/lora_b"] == P(None, None, "fsdp")


def test_a_parameter_without_a_rule_is_named():
    shapes = tiny_shapes() | {"extra": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
    with pytest.raises(errors.SgqlmError, match="extra/kernel"):
        rules.param_specs(shapes, MESH)


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


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [({}, (1, 1, 1)), ({"data": -1}, (1, 1, 1)), ({"data": 1, "fsdp": -1, "tensor": 1}, (1, 1, 1))],
)
def test_mesh_of_one_device(sizes, shape):
    made = mesh.make(sizes, jax.devices()[:1])
    assert tuple(made.shape.values()) == shape
    assert mesh.num_batch_shards(made) == 1


@pytest.mark.parametrize("sizes", [{"date": 1}, {"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}])
def test_meshes_that_do_not_fit(sizes):
    with pytest.raises(errors.SgqlmError) as caught:
        mesh.make(sizes, jax.devices()[:1])
    assert caught.value.code == errors.USAGE

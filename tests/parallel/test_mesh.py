import jax
import numpy as np
import pytest

from sgqlm import errors
from sgqlm.parallel import mesh


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


def test_one_device_holds_every_row():
    one = mesh.make({}, jax.devices()[:1])
    np.testing.assert_array_equal(mesh.local_rows(one, 6), np.arange(6))
    batch = {"x": np.arange(6.0).reshape(6, 1)}
    placed = mesh.put_batch(batch, one)["x"]
    np.testing.assert_array_equal(mesh.fetch(placed), batch["x"])


def test_a_decode_mesh_has_no_fsdp():
    one = mesh.make({}, jax.devices()[:1])
    decode = mesh.for_decode(one)
    assert dict(decode.shape) == {"data": 1, "tensor": 1}
    assert dict(mesh.for_decode(decode).shape) == {"data": 1, "tensor": 1}
    assert mesh.num_batch_shards(decode) == 1
    assert mesh.batch_sharding(decode).spec == jax.sharding.PartitionSpec("data")
    other = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    with pytest.raises(errors.SgqlmError, match="rows"):
        mesh.for_decode(other)

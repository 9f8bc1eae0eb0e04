"""What one of several processes sees; run as a script in each of them. Prints JSON.

The argument is a folder that all processes share.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import errors
from sgqlm.parallel import distributed, rules
from sgqlm.parallel import mesh as mesh_lib

ROWS = 16
MESHES = ((8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8))


def rows_of(mesh) -> list[int]:
    """Place a batch and check every device's part and the whole; return this process's rows."""
    whole = np.arange(ROWS * 3.0).reshape(ROWS, 3)
    rows = mesh_lib.local_rows(mesh, ROWS)
    placed = mesh_lib.put_batch({"x": whole[rows]}, mesh)["x"]
    assert placed.shape == whole.shape
    for part in placed.addressable_shards:
        np.testing.assert_array_equal(part.data, whole[part.index])
    np.testing.assert_array_equal(mesh_lib.fetch(placed), whole)
    with jax.set_mesh(mesh):
        total = jax.jit(lambda x: (x * jnp.arange(ROWS)[:, None]).sum())(placed)
    np.testing.assert_allclose(float(total), (whole * np.arange(ROWS)[:, None]).sum(), rtol=1e-6)
    return rows.tolist()


def told(action) -> list:
    try:
        action()
    except errors.SgqlmError as error:
        return [error.code, error.what, error.why]
    return []


def fail():
    raise errors.SgqlmError("the disk is full", code=errors.RESOURCES)


def main(shared: pathlib.Path):
    distributed.initialize(timeout=60)
    index = jax.process_index()
    found = {}
    for sizes in MESHES:
        mesh = mesh_lib.make(dict(zip(rules.MESH_AXES, sizes, strict=True)))
        found[str(sizes)] = rows_of(mesh)
    mixed = [jax.devices()[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    found["mixed"] = rows_of(mesh_lib.make({"data": 8}, mixed))
    own = shared / f"only-{index}"
    own.mkdir()
    report = {
        "rows": found,
        "bytes": distributed.from_main(lambda: b"same", "make bytes").decode(),
        "failed": told(lambda: distributed.on_main(fail, "do this")),
        "shared": told(lambda: distributed.check_shared(shared)),
        "not shared": told(lambda: distributed.check_shared(own, patience=1)),
        "about": distributed.describe(),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

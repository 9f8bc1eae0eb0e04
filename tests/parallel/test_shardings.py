import jax
import jax.numpy as jnp
import pytest

from scripts import golden_shardings
from sgqlm import errors
from sgqlm.models import presets, vlm
from sgqlm.parallel import shardings

MESH = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    "name", [f"{m}_{kind}.txt" for m in golden_shardings.MODELS for kind in golden_shardings.MESHES]
)
def test_large_models_lie_where_the_golden_files_say(name):
    found = golden_shardings.text(*name.removesuffix(".txt").rsplit("_", 1))
    same = found == (golden_shardings.FOLDER / name).read_text()
    assert same, "if this is meant: python scripts/golden_shardings.py, then read git diff"


def test_the_golden_files_are_all_there_are():
    names = {path.name for path in golden_shardings.FOLDER.iterdir()}
    assert names == {
        f"{m}_{k}.txt" for m in golden_shardings.MODELS for k in golden_shardings.MESHES
    }


def test_bytes_are_divided_as_the_spec_says():
    rows = {row.path: row for row in shardings.table(vlm.param_shapes(presets.get("tiny")), MESH)}
    q = rows["llm/blocks/attn/q/kernel"]
    assert (q.shape, q.bytes, q.device_bytes) == ((2, 128, 128), 2 * 128 * 128 * 4, q.bytes // 8)
    b = rows["llm/blocks/attn/q/lora_b"]  # over one axis of two mesh axes
    assert b.device_bytes == b.bytes // 8
    assert rows["llm/norm/scale"].device_bytes == 128 * 4


def test_the_table_adds_up():
    shapes = vlm.param_shapes(presets.get("tiny"))
    rows = shardings.table(shapes, MESH)
    own = shardings.bytes_per_device(shapes, MESH)
    assert own == sum(row.device_bytes for row in rows)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    assert whole / 8 < own < whole / 4
    head, *lines, total = shardings.format_table(rows).splitlines()
    assert len(lines) == len(rows)
    assert "bytes/device" in head
    assert f"{whole:,d} bytes, of which a device holds {own:,d}" in total
    assert shardings.bytes_per_device(shapes, {}) == whole


def test_what_does_not_divide_stops_with_its_name():
    odd = {"graph": {"out": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}}}
    with pytest.raises(errors.SgqlmError, match="graph/out/kernel"):
        shardings.table(odd, MESH)

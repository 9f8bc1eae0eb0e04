"""Write tests/golden/sharding/: where every parameter of the large models lies on a mesh.

Run it after a change of sgqlm/parallel/rules.py or of a model, and read the difference before it is
committed: python scripts/golden_shardings.py
"""

import pathlib
import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sgqlm import types  # noqa: E402
from sgqlm.models import lora, presets, vlm  # noqa: E402
from sgqlm.parallel import shardings  # noqa: E402

FOLDER = ROOT / "tests" / "golden" / "sharding"
MODELS = ("vicuna_7b", "vicuna_13b")
# a decode mesh has no fsdp: the first two are those of the training meshes, see mesh.for_decode
MESHES = {
    "train": ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 4, "tensor": 2}),
    "decode": ({"data": 8, "tensor": 1}, {"data": 4, "tensor": 2}, {"data": 1, "tensor": 8}),
}


def texts() -> dict[str, str]:
    """Return file name -> content of every golden file."""
    return {f"{m}_{kind}.txt": text(m, kind) for m in MODELS for kind in MESHES}


def text(model: str, kind: str) -> str:
    """Return the tables of one model, one after the other."""
    shapes, parts = make_shapes(model, kind), []
    for mesh in MESHES[kind]:
        sizes = " ".join(f"{axis}={size}" for axis, size in mesh.items())
        parts.append(f"{model}, {kind}, mesh {sizes}")
        parts.append(shardings.format_table(shardings.table(shapes, mesh)) + "\n")
    return "\n".join(parts)


def make_shapes(model: str, kind: str) -> Mapping:
    """Return the parameters: towers in bfloat16 as released bases are, all else in float32.

    To decode, adapters are merged; the layers are shown stacked, which changes no placement.
    """
    config = presets.get(model)
    shapes = vlm.param_shapes(config)
    if kind == "decode":
        shapes = jax.eval_shape(lambda tree: lora.merge(tree, config)[0], shapes)
    return lora.map_with_path(_typed, shapes)


def _typed(path: str, leaf) -> types.Array:
    is_base = lora.part_of(path) in ("llm", "vision", "projector")
    return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if is_base else jnp.float32)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in texts().items():
        (FOLDER / name).write_text(content)
        print(FOLDER.relative_to(ROOT) / name)


if __name__ == "__main__":
    main()

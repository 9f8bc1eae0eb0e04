"""Leaves in orbax one at a time: the same bits, and never more than a leaf or two in memory."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from sgqlm.convert import leaves
from sgqlm.train import stored
from tests import paths

# memory of a whole import: a LLaVA of at least 1 GB from safetensors to a checkpoint
_IMPORT = """
import json, pathlib, re, sys
from sgqlm.cli import import_
from sgqlm.convert import hf
folder, out = map(pathlib.Path, sys.argv[1:])
with hf.open_llava(folder) as found:
    sizes = sorted(leaf.nbytes for leaf in found.leaves.values())
def high():  # unlike ru_maxrss, it does not begin with the peak of the parent
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1])
base = high()
assert import_.run(["llava", str(folder), "--out", str(out)]) == 0
print(json.dumps({"largest": sizes[-1], "total": sum(sizes), "over": high() - base}))
"""


def test_leaves_come_back_bit_for_bit_with_their_dtype(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8)
    arrays = {f"a/b{i}": rng.normal(size=(3, 4, 5)).astype(d) for i, d in enumerate(dtypes)}
    arrays["top.with.dots"] = rng.normal(size=(2,)).astype(np.float32)
    stored.write(tmp_path / "x", {path: leaves.of_array(x) for path, x in arrays.items()})
    found = stored.read(tmp_path / "x", {path: (x.dtype, x.shape) for path, x in arrays.items()})
    for path, array in arrays.items():
        loaded = found[path].load()
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        assert loaded.tobytes() == array.tobytes()


def test_a_leaf_is_loaded_only_when_the_one_before_is_written(tmp_path):
    held = []

    def leaf(index):
        def load():
            held.append(index)
            assert held == sorted(held)
            return np.full((2, 3), index, np.float32)

        return leaves.Leaf(np.dtype(np.float32), (2, 3), load)

    stored.write(tmp_path / "x", {f"p{i}": leaf(i) for i in range(5)})
    assert held == list(range(5))
    found = stored.read(tmp_path / "x", {"p3": ("float32", (2, 3))})
    assert found["p3"].load().tolist() == [[3.0] * 3] * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_import_of_a_gigabyte_holds_two_leaves_at_most(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = transformers.LlamaConfig(
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    cfg = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=7999)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(cfg)
    model.save_pretrained(tmp_path / "hf", max_shard_size="300MB")
    del model
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(tmp_path / "hf"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=paths.ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(found)
    assert found["total"] > 1e9
    assert found["over"] < 2 * found["largest"] + 500e6

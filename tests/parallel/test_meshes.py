"""Training gives the same on every mesh; the programs are those that are wanted."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import paths, xla

MESHES = ("8,1,1", "1,8,1", "1,4,2", "2,2,2")
MODELS = ("llava_sg", "sq_llava", "sgqlm")
PLAIN = [(m, s, "lora") for m in MODELS for s in ("pretrain", "align", "graph")]
TUNED = [(m, s, t) for m in MODELS for s in ("instruct", "end_to_end") for t in ("lora", "full")]
STAGES = [row for row in PLAIN + TUNED if row[:2] != ("sq_llava", "graph")]
STAGES.append(("sgqlm", "regions", "lora"))
# the default run; the others are slow tests
SHORT = ["sgqlm:instruct:lora:2,2,2"]
# float32 sums in another order over 20 steps; the loss is about 6, so this is two parts in 10^6
TOLERANCE = 1e-5


def run(cases) -> dict[str, dict]:
    env = os.environ | {
        "XLA_FLAGS": xla.flags(8),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # a third of the time, the same partitioning
    }
    command = [sys.executable, "-m", "tests.parallel.meshes", *cases]
    done = subprocess.run(
        command, env=env, cwd=paths.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("case"): line for line in found}


def check(found: dict):
    (one, one_norm, one_compiled), (many, many_norm, compiled) = found["one"], found["many"]
    assert len(one) == 20
    np.testing.assert_allclose(many, one, rtol=0, atol=TOLERANCE)
    # Adam hides a gradient that is wrong by a factor, its norm does not
    np.testing.assert_allclose(many_norm, one_norm, rtol=1e-5)
    assert len(set(one)) > 1
    assert one_compiled == compiled


@pytest.fixture(scope="module")
def short():
    return run(["graphs", *SHORT])


@pytest.mark.timeout(900)  # the first of them runs all of them, and may compile everything anew
@pytest.mark.parametrize("case", SHORT)
def test_a_mesh_trains_as_one_device(short, case):
    check(short[case])
    assert short[case]["many"][2] == 1  # one program


def test_graphs_of_images_need_no_other_device(short):
    found = short["graphs"]
    assert found["forward"] == found["gradient"] == {}
    assert found["control"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("model", "stage", "tuning"), STAGES, ids="-".join)
def test_every_stage_trains_as_one_device(model, stage, tuning):
    cases = [f"{model}:{stage}:{tuning}:{mesh}" for mesh in MESHES]
    cases += [f"{model}:{stage}:{tuning}:2,2,2:buckets:accumulate"] * (stage == "instruct")
    for case, found in run(cases).items():
        check(found)
        assert found["many"][2] == (2 if "buckets" in case else 1)  # a program a bucket

import json
import os
import subprocess
import sys

import pytest

from tests import paths, xla


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.decode.eight_devices"],
        cwd=paths.ROOT,
        env={**os.environ, "XLA_FLAGS": xla.flags(8), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_eight_devices_write_what_one_writes(found):
    whole, single = found["one"]
    assert len(set(whole)) > 1
    assert found["many"] == [whole, single]


@pytest.mark.slow
def test_what_rows_share_runs_once_on_any_mesh(found):
    for cases in found["shared"]:
        assert [is_shared for is_shared, _ in cases] == [False, True, False, True]
        texts = [answers for _, answers in cases]
        assert len(set(texts[0])) > 2 and texts == texts[:1] * 4


@pytest.mark.slow
def test_eight_devices_score_as_one_does(found):
    one, many = (found["scores"][name] for name in ("one", "many"))
    assert len({tuple(row) for row in one[0]}) == len(one[0]) == 4
    for ours, theirs in zip(many, one, strict=True):  # sums in another order, of values near 20
        assert [value for row in ours for value in row] == pytest.approx(
            [value for row in theirs for value in row], abs=1e-4
        )


@pytest.mark.slow
def test_weights_are_divided_over_tensor_only(found):
    (rows, columns), part = found["kernel"]
    assert part == [rows, columns // 2]


@pytest.mark.slow
def test_a_model_is_loaded_onto_a_mesh(found):
    rows, columns = found["kernel"][0]
    assert found["loaded"] == [found["layers"], rows, columns // 2]
    assert found["same"]


@pytest.mark.slow
def test_no_weight_is_gathered_for_a_token(found):
    (rows, columns), _ = found["kernel"]
    assert set(found["decode"]) == {"all-reduce"}
    count, elements = found["decode"]["all-reduce"]
    assert count == 1 + 2 * found["layers"]  # of the embedded token, then after o and down
    assert elements == count * columns  # one row a device
    _, training = found["training"]["all-gather"]
    assert training > 2 * rows * columns  # on the training mesh the same step gathers weights

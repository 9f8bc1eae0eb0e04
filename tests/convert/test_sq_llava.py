import numpy as np
import pytest

from sgqlm import errors
from sgqlm.convert import sq_llava

DENSE, WIDTH, OUT = ("c", "v", "f"), 4, 6


def released(prefix=""):
    rng = np.random.default_rng(0)
    tensors = {"sim_alpha": np.ones((1, 1, 1)), "sim_beta": np.zeros((1, 1, 1))}
    tensors |= {"ln_1.weight": rng.normal(size=WIDTH), "ln_1.bias": rng.normal(size=WIDTH)}
    shapes = dict.fromkeys(DENSE, (WIDTH, WIDTH)) | {"mlp.0": (OUT, WIDTH), "mlp.2": (OUT, OUT)}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0])
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["", "mm_projector.", "base_model.model.model.mm_projector."])
def test_the_fourteen_tensors_find_their_places(prefix):
    tensors = released(prefix)
    assert len(tensors) == 14
    params = sq_llava.connector_from_state_dict(tensors)
    fc1 = params["projector"]["fc1"]
    np.testing.assert_array_equal(fc1["kernel"], tensors[prefix + "mlp.0.weight"].T)
    assert fc1["kernel"].flags.c_contiguous
    np.testing.assert_array_equal(fc1["bias"], tensors[prefix + "mlp.0.bias"])
    assert params["projector"]["fc2"]["kernel"].shape == (OUT, OUT)
    assert set(params["prototypes"]) == {"sim_alpha", "sim_beta", "ln_1", *DENSE}
    assert set(params["prototypes"]["ln_1"]) == {"scale", "bias"}


def test_missing_and_unknown_tensors_are_named():
    tensors = released()
    del tensors["f.bias"]
    with pytest.raises(errors.SgqlmError) as caught:
        sq_llava.connector_from_state_dict({**tensors, "mlp.4.bias": np.zeros(OUT)})
    assert caught.value.why == "missing: ['f.bias']; unexpected: ['mlp.4.bias']"
    assert caught.value.code == errors.CHECKPOINT

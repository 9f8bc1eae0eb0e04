"""The released SQ-LLaVA connector (`mm_projector` of type `cluster`)."""

from collections.abc import Mapping

import numpy as np

from sgqlm import errors, types

_TABLE = {
    "sim_alpha": ("prototypes", "sim_alpha"),
    "sim_beta": ("prototypes", "sim_beta"),
    "c": ("prototypes", "c"),
    "v": ("prototypes", "v"),
    "f": ("prototypes", "f"),
    "ln_1": ("prototypes", "ln_1"),
    "mlp.0": ("projector", "fc1"),
    "mlp.2": ("projector", "fc2"),
}


def connector_from_state_dict(tensors: Mapping[str, np.ndarray]) -> types.Params:
    """Turn the 14 released tensors into `{"prototypes": {...}, "projector": {...}}`.

    Args:
        tensors: torch names (`c.weight`, `mlp.0.bias`, ...), with or without what precedes
            `mm_projector.`; linear weights are [out, in].

    Returns:
        Parameters for `models.prototypes.released_connector`.

    Raises:
        SgqlmError: a tensor is missing or unknown.
    """
    params: types.Params = {"prototypes": {}, "projector": {}}
    short = {name.rsplit("mm_projector.", 1)[-1]: np.asarray(v) for name, v in tensors.items()}
    expected = {
        key if key.startswith("sim_") else f"{key}.{kind}"
        for key in _TABLE
        for kind in ("weight", "bias")
    }
    if set(short) != expected:
        missing, extra = sorted(expected - set(short)), sorted(set(short) - expected)
        raise errors.SgqlmError(
            "these are not the tensors of a released connector",
            why=f"missing: {missing}; unexpected: {extra}",
            fix="give the 14 `mm_projector` tensors of a SQ-LLaVA release",
            code=errors.CHECKPOINT,
        )
    for key, (part, name) in _TABLE.items():
        if key.startswith("sim_"):
            params[part][name] = short[key]
            continue
        weight, bias = short[f"{key}.weight"], short[f"{key}.bias"]
        if weight.ndim == 1:
            params[part][name] = {"scale": weight, "bias": bias}
        else:
            params[part][name] = {"kernel": np.ascontiguousarray(weight.T), "bias": bias}
    return params

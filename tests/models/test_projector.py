import jax
import numpy as np
import pytest

from sgqlm import config
from sgqlm.models import functional, projector


def applied(x, *, is_grid=True, **settings):
    module = projector.Projector(config.ProjectorConfig(**settings), features=6)
    params = module.init(jax.random.key(0), x, merge=is_grid)["params"]
    return params, np.asarray(module.apply({"params": params}, x, merge=is_grid))


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)


def test_two_layers_with_an_activation(features):
    params, found = applied(features, activation="quick_gelu")
    hidden = functional.quick_gelu(features @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    expected = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_merged_patches_are_neighbours(features):
    params, found = applied(features, kind="linear", merge=2)
    grid = features.reshape(2, 4, 4, 3)
    for row in range(2):
        for column in range(2):
            block = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, 12)
            expected = block @ params["fc1"]["kernel"]
            np.testing.assert_allclose(found[:, 2 * row + column], expected, atol=1e-6)


def test_rows_without_a_grid_stay_apart(features):
    params, found = applied(features[:, :5], is_grid=False, kind="linear", merge=2)
    np.testing.assert_allclose(found, features[:, :5] @ params["fc1"]["kernel"], atol=1e-6)

import pytest

from sgqlm.decode import inputs
from sgqlm.evals import scenes
from tests import tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model.make()


@pytest.fixture(scope="session")
def cases():
    return scenes.make_cases(tiny_model.SCENES, count=3)


@pytest.fixture(scope="session")
def rows(cases):
    """Three rows of different lengths: with graph, without graph, without image."""
    first, second = cases[0], cases[1]
    return [
        inputs.Row([inputs.human(first.questions[0].text)], first.image, first.entities),
        inputs.Row([inputs.human("what colour is the star?")], second.image),
        inputs.Row([inputs.human("hello")]),
    ]

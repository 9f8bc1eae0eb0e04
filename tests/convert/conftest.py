"""Interpreters with other versions of transformers, made once for all runs of the tests."""

import pytest

from tests.convert import other_python


@pytest.fixture(scope="session")
def environments(pytestconfig):
    """Return the folder in which environments are kept between runs."""
    return pytestconfig.rootpath / ".pytest_cache" / "environments"


@pytest.fixture(scope="session")
def transformers_4(environments):
    """Return an interpreter with transformers 4.57 and peft, and without this project."""
    return other_python.environment("4", environments)


@pytest.fixture(scope="session")
def transformers_5(environments):
    """Return an interpreter with transformers 5 and peft, and without this project."""
    return other_python.environment("5", environments)


@pytest.fixture
def python_with(request):
    """Return a function from a version (4, 5, or empty for the running Python) to a Python.

    An environment is made when the first test asks for it, not before.
    """

    def find(major):
        if major:
            return request.getfixturevalue(f"transformers_{major}")
        return other_python.having("transformers")

    return find

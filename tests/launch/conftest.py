import pytest

from tests.launch import places


@pytest.fixture
def place(tmp_path):
    return places.Place(tmp_path)

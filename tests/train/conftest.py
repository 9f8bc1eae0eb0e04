import pytest

from sgqlm.text import tokenizer


@pytest.fixture(scope="session")
def tokenizer_model() -> bytes:
    return tokenizer.train(["the red star is left of the blue circle"] * 2, 320)

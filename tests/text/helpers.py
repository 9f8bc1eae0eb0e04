"""Fixtures of the text tests: tokenizers, fixture records and random conversations."""

import functools
import json

import numpy as np

from sgqlm.text import tokenizer
from tests import paths

CORPUS = (
    "what colour is the small square left of the red circle?",
    "how many objects are there?\nAnswer the question using a single word or phrase.",
    "the big striped triangle is blue. it is above a green star.",
    "is there a purple ring? yes, it points at the cross. no, there is none!",
    "USER and ASSISTANT talk; VUSER asks. 12 things, 3 rings, 45 dots.",
)


@functools.cache
def trained(vocab_size: int = 640) -> tokenizer.Tokenizer:
    """Return a tokenizer trained on a few sentences."""
    return tokenizer.load(tokenizer.train(CORPUS, vocab_size))


@functools.cache
def llama(legacy: bool = False, rule: str = "4.31") -> tokenizer.Tokenizer:
    """Return LLaMA's tokenizer, or skip."""
    return tokenizer.load(paths.fixture("llama_tokenizer.model"), legacy, rule=rule)


def read(name: str):
    """Return the content of a json fixture."""
    return json.loads(paths.fixture(name).read_text())


def turn(role: str, value: str) -> dict[str, str]:
    """Return one LLaVA turn."""
    return {"from": role, "value": value}


def chat(*values: str) -> list[dict[str, str]]:
    """Return turns that alternate between human and gpt."""
    return [turn("gpt" if index % 2 else "human", value) for index, value in enumerate(values)]


def random_chat(rng: np.random.Generator) -> list[dict[str, str]]:
    """Return a conversation with an image and texts that lean towards trouble."""
    words = ["what", "is", " ", "  ", "\n", "ASSISTANT:", "USER:", "VUSER: ", "</s>", "é", "🐼"]
    words += ["12", "the red cat", "?", "ring", ".", "\t", "图", "a ", " b", "yes"]
    weights = np.ones(len(words))
    weights[5:9] = 0.15
    weights /= weights.sum()

    def text():
        return "".join(rng.choice(words, size=rng.integers(1, 7), p=weights))

    turns = [turn("gpt" if i % 2 else "human", text()) for i in range(2 * rng.integers(1, 4))]
    turns[0]["value"] = "<image>\n" + turns[0]["value"]
    return turns

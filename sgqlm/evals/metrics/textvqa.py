"""TextVQA accuracy as M4C's evaluator computes it, and the answer form that LLaVA submits."""

from collections.abc import Iterable, Sequence
from typing import Any

from sgqlm.evals.metrics import vqa

NUM_ANSWERS = 10


def normalise(text: str) -> str:
    """Return an answer as M4C's EvalAIAnswerProcessor writes it.

    It differs from `vqa.normalise`: commas and question marks are left out first (`black,white`
    becomes `blackwhite`), and `'s` is a word of its own (`dog's` becomes `dog 's`). LLaVA submits
    this form for VQAv2 and VizWiz.

    Args:
        text: an answer as it was given.

    Returns:
        Its form.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa.digits_and_articles(vqa.strip_punctuation(vqa.clean(text)))


def accuracy(prediction: str, answers: Iterable[Any]) -> float:
    """Return the accuracy of a prediction, from 0 to 1; both sides are always normalised.

    Args:
        prediction: the answer of a model.
        answers: the 10 human answers: texts, or records with `answer`.

    Returns:
        0, 0.3, 0.6, 0.9 or 1.

    Raises:
        ValueError: there are not 10 answers.
    """
    texts = vqa.texts_of(answers)
    check(texts)
    return vqa.agreement(normalise(prediction), [normalise(text) for text in texts])


def check(answers: Sequence[Any]) -> None:
    """Refuse another number of human answers than the figure is defined for.

    Raises:
        ValueError: there are not 10.
    """
    if len(answers) != NUM_ANSWERS:
        raise ValueError(f"{len(answers)} human answers, {NUM_ANSWERS} are needed")

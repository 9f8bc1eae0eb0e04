"""The answer prior: what a model that never sees the image can know."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sgqlm.scenes import questions as scene_questions

FAMILIES = ("attribute", "one_hop", "exist", "count", "left_right")


class Prior(NamedTuple):
    """Most frequent training answers, from the finest group to the coarsest."""

    by_argument: dict[tuple[str, str], str]
    by_family: dict[str, str]
    overall: str


def fit(questions: Iterable[scene_questions.Question]) -> Prior:
    """Count the answers of the training questions.

    Args:
        questions: training questions; their `argument` is what the question asks for, such as
            `colour` for the family `attribute`.

    Returns:
        The prior. Equal counts are resolved by the alphabet, so it does not depend on the order.
    """
    fine, coarse = (collections.defaultdict(collections.Counter) for _ in range(2))
    overall: collections.Counter = collections.Counter()
    for question in questions:
        fine[question.family, question.argument][question.answer] += 1
        coarse[question.family][question.answer] += 1
        overall[question.answer] += 1
    return Prior(
        {key: _most_frequent(counts) for key, counts in fine.items()},
        {key: _most_frequent(counts) for key, counts in coarse.items()},
        _most_frequent(overall),
    )


def answer(prior: Prior, question: scene_questions.Question) -> str:
    """Return the prior's answer, falling back to the family and then to all questions."""
    family = prior.by_family.get(question.family, prior.overall)
    return prior.by_argument.get((question.family, question.argument), family)


def score(questions: Sequence[scene_questions.Question], answers: Sequence[str]) -> dict:
    """Compare answers with the truth by exact match.

    Args:
        questions: the questions, with their `answer`.
        answers: one answer a question; case, outer blanks and a closing full stop do not count.

    Returns:
        `{"accuracy": share, "by_family": {family: share}}`; None where there is no question.
    """
    hits = collections.defaultdict(list)
    for question, given in zip(questions, answers, strict=True):
        hits[question.family].append(normalise(given) == normalise(question.answer))
    total = [hit for family in hits.values() for hit in family]
    return {
        "accuracy": _share(total),
        "by_family": {family: _share(hits[family]) for family in FAMILIES},
    }


def normalise(text: str) -> str:
    """Bring an answer into the form that is compared."""
    return text.strip().rstrip(".").rstrip().lower()


def _share(hits: Sequence[bool]) -> float | None:
    return round(sum(hits) / len(hits), 4) if hits else None


def _most_frequent(counts: collections.Counter) -> str:
    return min(counts, key=lambda key: (-counts[key], key)) if counts else ""

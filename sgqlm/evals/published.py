"""Published scores of other models, each with its source and how sure it is.

Only `known` belongs beside a measured score. `UNVERIFIED` holds numbers that nobody has
seen in a source; they are kept to be checked and are never shown as known.
"""

import dataclasses
from collections.abc import Iterator

BENCHMARKS = (
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mmvet",
    "llava_wild",
    "mmbench",
    "mmbench_cn",
    "seed",
)
OWN, THIRD_PARTY, MEMORY = "own", "third party", "memory"
CERTAINTY = {
    OWN: "given by the authors of the model",
    THIRD_PARTY: "given by somebody else",
    MEMORY: "from memory, not verified",
}


@dataclasses.dataclass(frozen=True)
class Value:
    """One published score.

    Attributes:
        model: its name.
        benchmark: of `BENCHMARKS`.
        score: on the benchmark's scale, 0 to 100.
        source: where it is given.
        certainty: of `CERTAINTY`.
        note: what differs from the other scores of the column.
    """

    model: str
    benchmark: str
    score: float
    source: str
    certainty: str = OWN
    note: str = ""


_ZOO = "model zoo of LLaVA"
_SQ_ZOO = "model zoo of SQ-LLaVA"
_SHARE = "README of ShareGPT4V"

# model, source, certainty, scores in the order of BENCHMARKS
_ROWS = (
    ("LLaVA-1.5-7B", _ZOO, OWN, (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 31.1, 65.4, 64.3, 58.3, 58.6)),
    (
        "LLaVA-1.5-7B LoRA",
        _ZOO,
        OWN,
        (79.1, 63.0, 47.8, 68.4, 58.2, 86.4, 30.2, 67.9, 66.1, 58.9, 60.1),
    ),
    (
        "LLaVA-1.5-13B",
        _ZOO,
        OWN,
        (80.0, 63.3, 53.6, 71.6, 61.3, 85.9, 36.1, 72.5, 67.7, 63.6, 61.6),
    ),
    (
        "LLaVA-1.5-13B LoRA",
        _ZOO,
        OWN,
        (80.0, 63.3, 58.9, 71.2, 60.2, 86.7, 38.3, 69.5, 68.5, 61.5, 61.3),
    ),
    # partly from a third party and partly from memory, and not told apart: the weaker mark holds
    (
        "SQ-LLaVA-7B",
        "third party, part from memory",
        MEMORY,
        (79.2, 62.8, 54.0, 68.9, 58.6, 87.7, 32.5, 66.3, 66.2, 58.1, None),
    ),
    (
        "SQ-LLaVA*-7B",
        _SQ_ZOO,
        OWN,
        (80.3, 63.7, 55.3, 70.5, 60.5, 87.2, 37.6, 74.3, 66.6, 60.0, None),
    ),
    (
        "SQ-LLaVA-13B",
        "memory",
        MEMORY,
        (80.1, 63.6, 54.6, 69.8, 60.2, 87.7, 35.5, 74.6, 68.7, 62.0, None),
    ),
    (
        "SQ-LLaVA*-13B",
        _SQ_ZOO,
        OWN,
        (81.3, 65.0, 58.2, 71.5, 61.9, 87.4, 39.7, 80.7, 68.5, 62.5, None),
    ),
    (
        "ShareGPT4V-7B",
        _SHARE,
        OWN,
        (80.6, 63.3, 57.2, 68.4, 60.4, 86.8, 37.6, 72.6, 68.8, 62.2, 69.7),
    ),
    (
        "ShareGPT4V-13B",
        _SHARE,
        OWN,
        (81.0, 64.8, 55.6, 71.2, 62.2, None, 43.1, 79.9, 68.5, 63.7, 70.8),
    ),
)
_STAR = "* instruction data of ShareGPT4V"
_IMAGES = "images of SEED alone"
_NOTES = {
    ("LLaVA-1.5-7B", "mmvet"): "30.5 in the paper; 27.9 with a judge of today (LLaVA #1905)",
    ("LLaVA-1.5-7B", "llava_wild"): "63.4 in the paper",
    ("LLaVA-1.5-13B", "mmvet"): "35.4 in the paper",
    ("LLaVA-1.5-13B", "llava_wild"): "70.7 in the paper; the zoo gives the mean of three reviews",
    ("SQ-LLaVA-7B", "llava_wild"): "a row of the ablations has 68.1",
    ("ShareGPT4V-7B", "seed"): _IMAGES,
    ("ShareGPT4V-13B", "seed"): _IMAGES,
}
_GONE = "graded by a GPT-4 that is gone"
_JUDGED = {"mmvet": _GONE, "llava_wild": _GONE}
_THIRD_PARTY = {("ShareGPT4V-7B", "pope")}
ABSENT = {"LLaVA-SG-7B": "not found in any text at hand; take it from the tables of the paper"}
NOTES = (
    "scores of LLaVA-Bench-Wild and MM-Vet compare only under the same judge",
    "retraining with the published scripts moves a benchmark by about one point",
)


def _values() -> Iterator[Value]:
    for model, source, certainty, scores in _ROWS:
        for benchmark, score in zip(BENCHMARKS, scores, strict=True):
            if score is None:
                continue
            key = model, benchmark
            other = key in _THIRD_PARTY
            notes = _NOTES.get(key, _STAR if "*" in model else ""), _JUDGED.get(benchmark, "")
            yield Value(
                model,
                benchmark,
                score,
                "third party" if other else source,
                THIRD_PARTY if other else certainty,
                "; ".join(filter(None, notes)),
            )


KNOWN = tuple(value for value in _values() if value.certainty != MEMORY)
UNVERIFIED = tuple(value for value in _values() if value.certainty == MEMORY)


def known(model: str) -> dict[str, Value]:
    """Return benchmark -> known score of a model."""
    return {value.benchmark: value for value in KNOWN if value.model == model}


def models() -> list[str]:
    """Return the models that have known scores, in the order of the table."""
    return list(dict.fromkeys(value.model for value in KNOWN))

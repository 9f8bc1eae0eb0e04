"""Figures of a benchmark in groups that are charted together."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence

from sgqlm.evals import measured
from sgqlm.evals.metrics import mmbench

DIMENSIONS, CATEGORIES, PARTS = "dimensions", "categories", "parts"
_ROUND = (100, 200, 500, 1000)
_ANSWER_TYPES = ("yes/no", "number", "other", "unanswerable", "unsuitable")


def of(report: measured.Report) -> list[tuple[str, list[str]]]:
    """Return (title, names of figures) of each group below the headline."""
    return grouped(report.task, list(report.figures)[1:], report.groups)


def grouped(
    task: str, names: Sequence[str], told: Mapping[str, str] | None = None
) -> list[tuple[str, list[str]]]:
    """Put the names of figures into groups, in their order.

    Args:
        task: the benchmark.
        names: of its figures.
        told: name -> title, where the report tells it; the rest goes by the benchmark.
    """
    told, rule = told or {}, _RULES.get(task, _first_word)
    out = collections.defaultdict(list)
    for name in names:
        out[told.get(name) or rule(name)].append(name)
    return list(out.items())


def highest(task: str, title: str, values: Iterable[float | int | None] = ()) -> float | int:
    """Return the value of a full bar: per cent, or the most points of MME (perception: 2000).

    Args:
        task: the benchmark.
        title: of the group of figures, or its headline.
        values: of the bars. Above 100, as CIDEr-D and ratios to a reference go, the next of
            `_ROUND` is a full bar.
    """
    if task == "mme":
        return {"sum": 800, CATEGORIES: 200}.get(title, 2000)
    most = max((value for value in values if value is not None), default=0.0)
    return next((full for full in _ROUND if most <= full), most)


def _first_word(name: str) -> str:
    """Return the title in `title name`, where the title is one that many names share."""
    first, _, rest = name.partition(" ")
    return first if rest and first in _TITLES else PARTS


_TITLES = ("structural", "semantic", "subject", "context", "grade", "domain", "capability")


def _pope(name: str) -> str:
    return name.rpartition(" ")[0]


def _mmbench(name: str) -> str:
    if name == "single":
        return "answers"
    return DIMENSIONS if name in mmbench.DIMENSIONS else CATEGORIES


def _vqa(name: str) -> str:
    return "answer types" if name in _ANSWER_TYPES else "question types"


def _gqa(name: str) -> str:
    return name.split(" ")[0] if " " in name else "question types"


def _seed(name: str) -> str:
    return "images and videos" if name in ("image", "video") else "question types"


def _mme(name: str) -> str:
    return "sum" if name == "cognition" else CATEGORIES


_RULES: Mapping[str, Callable[[str], str]] = {
    "pope": _pope,
    "mmbench": _mmbench,
    "mmbench_cn": _mmbench,
    "vqav2": _vqa,
    "vizwiz": _vqa,
    "gqa": _gqa,
    "seed": _seed,
    "mme": _mme,
}

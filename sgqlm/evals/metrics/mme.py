"""MME score as its eval_tool computes it: accuracy and accuracy+ of 14 categories, in points."""

from collections.abc import Iterable, Mapping, Sequence

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def parse(text: str) -> str:
    """Return `yes`, `no` or `other`: what the first four letters of an answer have in them."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(categories: Mapping[str, Iterable[Sequence[str]]]) -> dict:
    """Score the answers of some categories.

    Args:
        categories: name -> rows (image, question, truth, answer); each image has two questions.

    Returns:
        `perception` and `cognition`: sums of the categories that are there, None without any (at
        most 2000 and 800 points); `by_category`: name -> `score` (100 x (accuracy + accuracy+), at
        most 200), `accuracy`, `accuracy_plus` (share of images with both right), `other` (answers
        that are neither), `count`; `missing`: categories that are not there; `items`.

    Raises:
        ValueError: an image has not two questions, or a truth is neither yes nor no.
    """
    parts, items = {}, {}
    for name, rows in categories.items():
        parts[name], found = _category(name, list(rows))
        items |= found
    sums = {}
    for title, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        known = [parts[name]["score"] for name in names if name in parts]
        sums[title] = sum(known) if known else None
    missing = [name for name in (*PERCEPTION, *COGNITION) if name not in parts]
    return {**sums, "by_category": parts, "missing": missing, "items": items}


def _category(name: str, rows: Sequence[Sequence[str]]) -> tuple[dict, dict[str, float]]:
    images, items, other = {}, {}, 0
    for image, question, truth, text in rows:
        if truth.lower() not in ("yes", "no"):
            raise ValueError(f"{name}: the truth of {image} is {truth!r}, not yes or no")
        answer = parse(text)
        other += answer == "other"
        items[f"{name}/{image}/{question}"] = float(answer == truth.lower())
        images.setdefault(image, []).append(answer == truth.lower())
    uneven = [image for image, found in images.items() if len(found) != 2]
    if uneven or not images:
        raise ValueError(
            f"{name}: {uneven[0]} has not two questions" if uneven else f"{name}: empty"
        )
    accuracy = sum(map(sum, images.values())) / len(rows)
    plus = sum(map(all, images.values())) / len(images)
    part = {"score": 100 * (accuracy + plus), "accuracy": accuracy, "accuracy_plus": plus}
    return part | {"other": other, "count": len(rows)}, items

"""SEED-Bench accuracy as LLaVA's convert_seed_for_submission.py computes it."""

from collections.abc import Iterable, Mapping
from typing import Any

from sgqlm.evals.metrics import records


def image(record: Mapping[str, Any]) -> str:
    """Return the path of the picture of a question of SEED-Bench.json, as LLaVA's file has it."""
    if record["data_type"] == "video":  # LLaVA's program stores the frame in the middle so
        kind = record["question_type_id"]
        return f"SEED-Bench-video-image/{kind}_{record['question_id']}.png"
    return f"SEED-Bench-image/{record.get('data_id')}"


def score(
    answers: Mapping[Any, Any] | Iterable[Mapping[str, Any]],
    questions: Mapping[str, Any] | Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Score answers: right is a text that equals the letter; a missing one is wrong.

    Args:
        answers: id -> text, or records with `question_id` and `text`.
        questions: the official SEED-Bench.json, or its list `questions`, each with `question_id`,
            `answer`, `data_type` (image or video) and `question_type_id`.

    Returns:
        `accuracy`, `image`, `video` (0 to 1, None without such questions), `by_type`
        (name -> [accuracy, number]), `correct`, `count`, `missing` (ids), `items` (id -> 0 or 1).

    Raises:
        ValueError: an id of the answers stands twice.
    """
    said = records.by_id(answers)
    whole: Any = questions if isinstance(questions, Mapping) else {"questions": questions}
    names = {number: name for name, number in whole.get("question_type", {}).items()}
    asked = {str(item["question_id"]): item for item in whole["questions"]}
    items = {
        key: float(key in said and said[key]["text"] == item["answer"])
        for key, item in asked.items()
    }
    kinds, types = {}, {}
    for key, item in asked.items():
        kinds.setdefault(item.get("data_type"), []).append(items[key])
        types.setdefault(item.get("question_type_id"), []).append(items[key])
    ordered = sorted(types, key=lambda number: (number is None, number))
    return {
        "accuracy": records.mean(items.values()),
        "image": records.mean(kinds.get("image", [])),
        "video": records.mean(kinds.get("video", [])),
        "by_type": {
            str(names.get(number, number)): [records.mean(types[number]), len(types[number])]
            for number in ordered
        },
        "correct": int(sum(items.values())),
        "count": len(items),
        "missing": [key for key in asked if key not in said],
        "items": items,
    }

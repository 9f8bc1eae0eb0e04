"""Small reports of `sgqlm eval score`, made by scoring answers in the official formats."""

import json

from sgqlm.data import records
from sgqlm.evals import report, scoring


def lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def write(path, task, answers, annotations=(), *, done=None, **fields):
    """Score files and write the report beside which they are named, as the command does."""
    done = done or scoring.score(task, answers, annotations)
    files = [*answers, *annotations]
    about = {
        "answers": [str(file) for file in answers],
        "annotations": [str(file) for file in annotations],
        "sha256": {str(file): records.file_digest(file) for file in files if file.is_file()},
    }
    return report.write(path, {**done.report(), **about, **fields})


def pope(folder, said, *, name="pope", count=12, **fields):
    """Write a report on questions about images of 2 questions each; `said` has y or n of each."""
    labels = [
        {
            "question_id": n + 1,
            "image": f"COCO_val2014_{n // 2:012d}.jpg",
            "text": f"Is there a {n} | <b> in the image?",
            "label": "yes" if n % 2 else "no",
        }
        for n in range(count)
    ]
    truth = lines(folder.parent / f"coco_pope_random-{count}.json", labels)
    texts = {"y": "Yes", "n": "No", "-": ""}
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": texts[letter]}
        for q, letter in zip(labels, said, strict=True)
    ]
    file = lines(folder / "answers" / "a.jsonl", answers[::-1])
    return write(folder / f"{name}.json", "pope", [file], [truth], **fields)

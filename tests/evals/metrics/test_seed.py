import json

from sgqlm.evals.metrics import seed
from tests import paths


def test_scores_are_the_official_ones():
    official = json.loads(paths.fixture("llava/seed.json").read_text())
    done = seed.score(official["answers"], official["annotation"])
    lines = [f"{name}: {100 * value:.2f}%" for name, (value, _) in done["by_type"].items()]
    lines += [f"Total accuracy: {100 * done['accuracy']:.2f}%"]
    lines += [f"{kind} accuracy: {100 * done[kind]:.2f}%" for kind in ("image", "video")]
    assert lines == official["official_stdout"].splitlines()
    assert done["correct"] == 4 and done["count"] == 24 and not done["missing"]


def test_only_the_letter_is_right_and_a_missing_answer_is_wrong():
    questions = [
        {"question_id": "1", "answer": "A", "data_type": "image", "question_type_id": 2},
        {"question_id": "v2", "answer": "B", "data_type": "video", "question_type_id": 1},
        {"question_id": "3", "answer": "B", "data_type": "image", "question_type_id": 2},
    ]
    done = seed.score({1: "A", "v2": "B."}, questions)
    assert done["items"] == {"1": 1, "v2": 0, "3": 0} and done["missing"] == ["3"]
    assert (done["image"], done["video"]) == (0.5, 0)
    assert list(done["by_type"]) == ["1", "2"]

import pytest

from sgqlm.evals.metrics import records


def test_answers_by_id_in_any_shape():
    wanted = {"1": "yes"}
    for given in ({1: "yes"}, {1: {"text": "yes"}}, [{"questionId": "1", "prediction": "yes"}]):
        assert {key: value["text"] for key, value in records.by_id(given).items()} == wanted
    assert records.by_id([{"question_id": 0, "text": None}])["0"]["text"] == ""
    with pytest.raises(ValueError, match="stands twice"):
        records.by_id([{"id": 1, "text": "a"}, {"id": "1", "text": "a"}])
    with pytest.raises(ValueError, match="none of the fields"):
        records.by_id([{"text": "a"}])
    assert records.mean([]) is None and records.mean([0, 1]) == 0.5

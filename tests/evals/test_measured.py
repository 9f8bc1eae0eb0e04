"""What is found below a folder of results, and what a report tells of its own questions."""

import json

import pytest

from sgqlm import errors
from sgqlm.evals import comparing, joining, measured, scored, summary
from tests.evals import reports


def test_unfinished_and_unscored_results_are_told(tmp_path):
    result = {"task": "vqav2", "settings": {}, "notes": ["x", "not scored: no annotations"]}
    path = tmp_path / "m" / "vqav2" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | {"score": None}))
    reports.lines(tmp_path / "m" / "gqa" / "progress.jsonl", [{"task": "gqa"}])
    with pytest.raises(errors.SgqlmError, match="no reports") as told:
        measured.find([tmp_path])
    assert told.value.code == errors.DATA
    assert "gqa is not finished" in told.value.why and "no annotations" in told.value.why
    with pytest.raises(errors.SgqlmError) as told:
        measured.read(path)
    assert "not scored: no annotations" in told.value.why
    reports.pope(tmp_path / "m", "ny" * 6)
    found, other, left = measured.find([tmp_path])
    assert len(found) == 1 and not any("vqav2" in name for name in other) and len(left) == 2
    assert measured.find([found[0].path])[2] == []


def test_an_empty_folder_and_foreign_json(tmp_path):
    with pytest.raises(errors.SgqlmError) as told:
        measured.find([tmp_path])
    assert told.value.why == "there is no json file"
    (tmp_path / "a.json").write_text('{"task": "gqa", "items": [1]}')
    with pytest.raises(errors.SgqlmError) as told:
        measured.find([tmp_path])
    assert "1 json files, none with" in told.value.why


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("notes", 3),
        ("notes", "text"),
        ("answers", 3),
        ("annotations", {"a": 1}),
        ("sha256", ["x"]),
        ("groups", [1]),
        ("settings", [1]),
        ("figures", [1]),
        ("figures", {"a": {"value": 1, "count": "many"}}),
        ("faults", {"missing": 3}),
        ("details", [1]),
        ("details", {"0": [1]}),
        ("details", {"0": {"kinds": 3}}),
        ("details", {"0": {"grades": [[8]]}}),
        ("details", {"0": {"kinds": "abc"}}),
    ],
)
def test_a_damaged_report_is_told(tmp_path, field, value):
    path = tmp_path / "m" / "r.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"task": "gqa", "score": 0.5, "items": {"0": 0.5}, field: value}))
    with pytest.raises(errors.SgqlmError, match="the report is damaged") as told:
        measured.find([tmp_path])
    assert told.value.code == errors.DATA and str(path) in told.value.where


def test_what_may_be_left_empty(tmp_path):
    inner = {"task": "gqa", "score": None, "items": {"0": 0.5}, "notes": None, "groups": None}
    inner["details"] = {"0": {"kinds": None, "question": None, "given": 7}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"task": "gqa", "score": inner, "notes": 3, "failed": 2}))
    report = measured.read(path)
    assert report.notes == [] and report.details["0"].given == "7"
    path.write_text(json.dumps({"task": "gqa", "score": None, "settings": {}, "notes": 3}))
    with pytest.raises(errors.SgqlmError, match="there are no reports"):
        measured.find([tmp_path])


def test_a_report_may_tell_its_own_questions_charts_and_unit(tmp_path):
    items = {str(n): n / 10 for n in range(8)}
    details = {
        key: {"question": f"q{key}", "given": "g", "image": f"{key}.jpg", "kinds": [half], "new": 1}
        for key, half in ((k, "low" if int(k) < 4 else "high") for k in items)
    }
    rows = [("CIDEr-D", 0.35, 8), ("low", 0.15, None), ("high", 0.55, None)]
    groups = {"low": "domains", "high": "domains"}
    done = scored.Scored(
        "any", 0.35, "CIDEr-D", rows, items, joining.Faults(), unit="x 100", groups=groups,
        details=details,
    )  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(done.report()))
    report = measured.read(path)
    assert report.details["5"].question == "q5" and report.details["5"].kinds == ("high",)
    assert report.scale == 100 and summary.charts(report) == [("domains", ["low", "high"])]
    assert comparing.interval(report)[0].value == pytest.approx(0.35)
    part = summary.build([report])["reports"][0]
    assert part["unit"] == "x 100" and part["wrong"]["shown"][0]["image"] == "0.jpg"
    assert [row["count"] for row in part["families"][0]["rows"]] == [4, 4]
    assert summary.headline(part).startswith("CIDEr-D 35.00, 95 % interval")
    plain = scored.Scored("any", 0.35, "CIDEr-D", rows, items, joining.Faults()).report()
    assert not {"unit", "groups", "details"} & set(plain)

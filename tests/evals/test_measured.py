"""What is found below a folder of results, and what a report tells of its own questions."""

import json

import pytest

from sgqlm import errors
from sgqlm.evals import comparing, families, joining, measured, scored, summary
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
    found, other = measured.find([tmp_path])
    assert len(found) == 1 and not any("vqav2" in name for name in other)
    assert (
        len(measured.left_out([tmp_path])) == 2 and measured.left_out([tmp_path / "m.json"]) == []
    )


def test_an_empty_folder_and_foreign_json(tmp_path):
    with pytest.raises(errors.SgqlmError) as told:
        measured.find([tmp_path])
    assert told.value.why == "there is no json file"
    (tmp_path / "a.json").write_text('{"task": "gqa", "items": [1]}')
    with pytest.raises(errors.SgqlmError) as told:
        measured.find([tmp_path])
    assert "1 json files, none with" in told.value.why


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
    known, why = measured.items_of(report)
    assert not why and known["5"].question == "q5" and known["5"].kinds == ("high",)
    assert report.scale == 100 and families.of(report) == [("domains", ["low", "high"])]
    assert comparing.interval(report, known)[0].value == pytest.approx(0.35)
    part = summary.build([report], [(known, why)])["reports"][0]
    assert part["unit"] == "x 100" and part["wrong"]["shown"][0]["image"] == "0.jpg"
    assert [row["count"] for row in part["families"][0]["rows"]] == [4, 4]
    assert summary.headline(part).startswith("CIDEr-D 35.00, 95 % interval")
    plain = scored.Scored("any", 0.35, "CIDEr-D", rows, items, joining.Faults()).report()
    assert not {"unit", "groups", "details"} & set(plain)

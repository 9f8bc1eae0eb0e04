"""The pages of two models compared: the result first, under the names of the models."""

import dataclasses

from sgqlm.evals import comparing, comparison, measured
from tests.evals import reports

WRONG = "nynynynynyyn"


def compare(folder, **settings):
    pair = [
        measured.read(reports.pope(folder / name, said, settings={"model_id": model}))
        for name, said, model in (
            ("a", WRONG, settings.get("first")),
            ("b", "ny" * 6, settings.get("second")),
        )
    ]
    (named,) = comparison.named([(pair[0], pair[1])])
    done = comparing.adjusted([comparing.compare(*named)])
    return comparison.compared(done, ["seed only in the first: left out"])


def test_what_changed_and_by_how_much(tmp_path):
    found = compare(tmp_path)
    part = found["tasks"][0]
    assert (part["better"], part["worse"], part["same"]) == (2, 0, 10)
    assert [item["second_given"] for item in part["changed"]["better"]] == ["No", "Yes"]
    header, rows = comparison.cells(found)
    row = dict(zip(header, rows[0], strict=True))
    assert (row["a"], row["b"], row["difference"]) == ("83.33", "100.00", "+16.67")
    assert row["better"] == "2" and row["test"].startswith("sign")
    text = comparison.markdown(found)
    assert "left out" in text and "| random/11 |" in text and "### pope: 0 worse in b" in text


def test_the_result_stands_first_and_what_is_against_it_once(tmp_path):
    found = compare(tmp_path)
    told = comparison.headline(found["tasks"][0])
    assert (
        told.startswith("difference +16.67 (95 % interval ")
        and "), p = 1.000 (Holm = 1.000): mean F1" in told
    )
    assert "of a 83.33 %, of b 100.00 %; 2 questions better, 0 worse, 10 the same" in told
    assert not any("8,910" in note for note in comparison.notes(found))
    assert comparison.caveats(found)[0] == "pope: a: over 12 of 8,910 questions"
    lines = comparison.markdown(found).splitlines()
    assert lines[lines.index("## pope") + 2].startswith("- difference +16.67")
    for name in ("a", "b"):
        assert sum(f"{name}: over 12 of 8,910" in line for line in lines) == 1


def test_models_are_called_by_their_id_where_that_tells_them_apart(tmp_path):
    for first, second, names in (
        ("llava", "ours", ["llava", "ours"]),
        ("ours", "ours", ["a", "b"]),
        ("0000100", "0000200", ["a", "b"]),  # numbers of checkpoints
        ("ours", None, ["ours", "b"]),
    ):
        found = compare(tmp_path, first=first, second=second)
        assert comparison.cells(found)[0][1:3] == names
        assert comparison.notes(found)[0] == f"differences are {names[1]} minus {names[0]}"
    one = measured.read(tmp_path / "a" / "pope.json")
    same = dataclasses.replace(one, path=tmp_path / "other.json")
    assert [report.name for report in comparison.named([(one, same)])[0]] == ["first", "second"]

"""Scores beside published ones, and the documents made of them."""

import json

from sgqlm.evals import measured, published, reviewed, summary
from tests.evals import reports

WRONG = "nynynynynyyn"


def build(path, **options):
    return summary.build(measured.find([path])[0], **options)


def test_the_table_shows_only_what_has_a_source(tmp_path):
    reports.pope(tmp_path / "mine", WRONG, judge="gpt-x")
    done = build(tmp_path)
    header, rows, notes = summary.cells(done["table"])
    assert header == ["model", "pope", "source"] and rows[0][0] == "mine"
    assert rows[0][1].startswith("83.3 (") and rows[0][1].endswith("[1]")
    assert notes[0] == "[1] over 12 of 8,910 questions; judge: gpt-x"
    by_name = {row[0]: row for row in rows}
    assert by_name["LLaVA-1.5-7B"][1:] == ["85.9", "model zoo of LLaVA"]
    assert by_name["ShareGPT4V-7B"][2] == "see notes" and "somebody else" in " ".join(notes)
    shown = json.dumps(done["table"]["published"])
    for value in published.UNVERIFIED:
        assert value.model not in by_name and f'"{value.model}"' not in shown
        assert value.model in done["table"]["absent"]
    assert "LLaVA-SG-7B" in done["table"]["absent"]


def test_wrong_answers_and_families(tmp_path):
    reports.pope(tmp_path / "mine", WRONG)
    part = build(tmp_path)["reports"][0]
    assert part["images"] == 6 and part["count"] == 12 and part["wrong"]["count"] == 2
    first = part["wrong"]["shown"][0]
    assert (first["id"], first["wanted"], first["given"]) == ("random/11", "no", "Yes")
    assert [family["title"] for family in part["families"]] == ["random"]
    names = {row["name"]: row for row in part["families"][0]["rows"]}
    assert names["f1"]["interval"]["low"] <= names["f1"]["value"] and names["recall"]["count"] == 12
    assert [item["id"] for item in build(tmp_path, wrong=1)["reports"][0]["wrong"]["shown"]] == [
        "random/11"
    ]
    assert build(tmp_path, wrong=0)["reports"][0]["wrong"]["shown"] == []


def write(path, scores, **fields):
    """Write a report that tells its own questions; by default with CIDEr-D, which goes to 10."""
    value = {"task": "nocaps", "metric": "CIDEr-D", "score": sum(scores) / len(scores)}
    value |= {"items": {str(at): score for at, score in enumerate(scores)}, "unit": "x 100"}
    value["details"] = {key: {"wanted": f"w{key}", "given": f"g{key}"} for key in value["items"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value | fields))
    return path


def test_where_nothing_is_wrong_the_lowest_scores_are_shown(tmp_path):
    write(tmp_path / "mine" / "r.json", [0.5, 9.0, 0.25, 1.2, 3.0])
    done = build(tmp_path, wrong=3)
    part = done["reports"][0]
    assert [row["id"] for row in part["wrong"]["shown"]] == ["2", "0", "3"]
    assert summary.wrong_title(part) == "the 3 lowest scores of 5"
    assert summary.graded(part, 1.2) == ("CIDEr-D 120.00", "")
    assert "| 3 |  | w3 | g3 | CIDEr-D 120.00 |" in summary.markdown(done)
    share = {"task": "llava_wild", "unit": "%"}
    for name, scores, fields, is_open in (
        ("a ratio to a reference", [0.5, 0.75], share, True),
        ("a share of something else", [0.5, 1.0], {**share, "task": "mmvet"}, False),
        ("a share that is none", [0.5, 1.5], {**share, "task": "mmvet"}, True),
    ):
        write(tmp_path / "mine" / "r.json", scores, **fields)
        part = build(tmp_path)["reports"][0]
        assert part["is_open"] == is_open, name
    assert summary.graded({"is_open": False}, 1.0) == ("score 1.00", "good")


def test_what_a_report_does_not_tell_is_not_made_up(tmp_path):
    path = write(tmp_path / "m" / "r.json", [0.5, 1, 1], unit="%", details={"0": {"kinds": ["a"]}})
    part = build(tmp_path)["reports"][0]
    told = "1 question not fully right (the report does not tell what was asked)"
    assert summary.wrong_title(part) == told and part["wrong"]["shown"] == [
        {"id": "0", "score": 0.5}
    ]
    write(path, [0.5, 0.5, 1], unit="%", details={"0": {"wanted": "w"}, "1": {"wanted": "v"}})
    rows = build(tmp_path)["reports"][0]["wrong"]["shown"]
    assert [row["wanted"] for row in rows] == ["w", "v"] and not any("given" in row for row in rows)
    write(path, [0.5, 0.5, 1], unit="%", details={"0": {"given": "g"}, "1": {"wanted": "v"}})
    assert [r["given"] for r in build(tmp_path)["reports"][0]["wrong"]["shown"]] == ["g", None]
    write(path, [1, 1], unit="%", details={})
    assert summary.wrong_title(build(tmp_path)["reports"][0]) == "every answer is fully right"


def test_a_full_bar_is_a_round_number():
    assert summary.highest("gqa", "parts", [99.9, None, 0.0]) == 100
    assert [summary.highest("nocaps", "t", [top]) for top in (100, 101, 359.9, 501, 1001)] == [
        100, 200, 500, 1000, 1001,
    ]  # fmt: skip
    assert summary.highest("mme", "categories", [150.0]) == 200
    assert summary.highest("mme", "perception", [1500.0]) == 2000


def test_names_in_a_chart_leave_out_its_title(tmp_path):
    figures = {
        name: {"value": 0.5, "count": 1}
        for name in ("total", "integration ocr_math", "BLEU-4 uncut")
    }
    groups = {"integration ocr_math": "integrations", "BLEU-4 uncut": "uncut"}
    write(tmp_path / "m" / "r.json", [0.5], unit="%", figures=figures, groups=groups)
    part = build(tmp_path)["reports"][0]
    names = [[row["name"] for row in family["rows"]] for family in part["families"]]
    assert names == [["ocr_math"], ["BLEU-4"]]


def test_models_stand_side_by_side(tmp_path):
    reports.pope(tmp_path / "a", WRONG)
    reports.pope(tmp_path / "b", "ny" * 6)
    done = build(tmp_path)
    (part,) = done["together"]
    assert part["names"] == ["a", "b"]
    head, random = part["families"]
    assert [round(bar["value"], 2) for bar in head["rows"][0]["bars"]] == [83.33, 100.0]
    rows = {row["name"]: row for row in random["rows"]}
    assert [bar["count"] for bar in rows["recall"]["bars"]] == [12, 12]
    assert "| random | a | b | questions |" in summary.markdown(done) and not part["notes"]
    assert build(tmp_path / "a")["together"] == []


def test_markdown_is_not_broken_by_questions(tmp_path):
    reports.pope(tmp_path / "mine", WRONG)
    text = summary.markdown(build(tmp_path))
    line = next(line for line in text.splitlines() if line.startswith("| random/11"))
    assert r"a 10 \| &lt;b&gt; in" in line and line.replace(r"\|", "").count("|") == 5
    assert (
        "mean F1 of 1 of 3 categories 83.33 %, 95 % interval" in text
        and "clustered by 6 images" in text
    )


def test_control_characters_of_answers_are_shown(tmp_path):
    details = {"0": {"question": "a\nb", "given": "x\x08\x19 \ud800\u202ey|"}}
    write(tmp_path / "m" / "r.json", [0.5], unit="%", details=details)
    text = summary.markdown(build(tmp_path))
    assert r"| 0 | a b |  | x\\x08\\x19 \\ud800\\u202ey\| |" in text and text.encode()


def test_the_points_of_mme_stand_beside_the_most_there_are(tmp_path):
    answers = tmp_path / "given" / "code_reasoning.txt"
    other = answers.with_name("count.txt")
    answers.parent.mkdir()
    for path, said in ((answers, "yes"), (other, "no")):
        path.write_text(f"1.jpg\tIs it?\tYes\t{said}\n1.jpg\tIs it not?\tNo\tno\n")
    reports.write(tmp_path / "m" / "r.json", "mme", [answers, other])
    told = summary.headline(build(tmp_path / "m")["reports"][0])
    assert told.startswith(("perception 50.00 of 2000 ", "perception 50.00 of 2000,"))
    assert told.endswith("; cognition 200.00 of 800")


def test_models_over_other_questions_have_their_own_counts(tmp_path):
    asked = {"max_new_tokens": 128, "template": "vicuna_v1"}
    reports.pope(tmp_path / "a", "ny", count=2, settings={**asked, "template": "v1_sq"})
    reports.pope(tmp_path / "b", "ny" * 6, settings=asked)
    done = build(tmp_path)
    (part,) = done["together"]
    assert [bar["count"] for bar in part["families"][0]["rows"][0]["bars"]] == [2, 12]
    text = summary.markdown(done)
    assert "| 2 / 12 |" in text and r"not asked alike: template v1\_sq (a), vicuna\_v1 (b)" in text


def test_a_question_that_a_judge_has_graded(tmp_path):
    done = reviewed.score("llava_wild", [reports.lines(tmp_path / "r.jsonl", [
        {"question_id": 1, "tuple": [8, 7], "category": "c"}
    ])])  # fmt: skip
    reports.write(tmp_path / "m" / "r.json", "llava_wild", [], done=done)
    part = build(tmp_path / "m")["reports"][0]
    assert summary.graded(part, 7.0) == ("grade 7.0 of 10", "") and part["is_open"]

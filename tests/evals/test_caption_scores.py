"""Scores of captions: joined by id, by SQ-LLaVA's protocol and as the COCO program has them."""

import json
import shutil
import sys

import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.evals import benchmark, caption_scores, finishing, scoring, tasks
from sgqlm.evals.metrics import captions
from tests import paths
from tests.evals import benchmark_files as files
from tests.evals import caption_library

SAID = "A man riding a large wave in the ocean."


@pytest.fixture
def library(monkeypatch):
    caption_library.use(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Java starts in a second, often


@pytest.fixture
def root(tmp_path):
    return files.make(tmp_path, files.CAPTIONS)


def answered(root, task, texts=None, keys=None):
    place = tasks.locate(tasks.get(task), root)
    keys = keys or [q.id for q in tasks.read(place)]
    texts = texts or [SAID] * len(keys)
    pairs = zip(keys, texts, strict=True)
    path = root / f"{task}.jsonl"
    files.lines(path, [{"question_id": k, "prompt": "", "text": text} for k, text in pairs])
    return path, place.annotations


def figures(found):
    return {name: value for name, value, _ in found.rows}


def test_without_the_package_the_answers_stay_and_the_remedy_is_told(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    place = tasks.locate(tasks.get("coco_caption"), root)
    job = benchmark.prepare(place)
    lines = [{"question_id": q.id, "text": SAID, "metadata": {}} for q in job.questions]
    files.lines(root / "out" / benchmark.ANSWERS, lines)
    done = finishing.finish(job, lines, root / "out")
    assert done.score is None and "pip install -e '.[caption]'" in done.notes[-1]
    sent = json.loads(done.submission.read_text())
    assert sent[0] == {"image_id": 391895, "caption": SAID} and len(sent) == 5


def test_figures_are_those_of_the_program_over_prepared_captions(root, library):
    long = SAID + " and one two three four five six seven eight nine ten eleven twelve thirteen"
    path, known = answered(root, "nocaps", [SAID, long, "Two dogs!", "A bus."])
    found = scoring.score("nocaps", [path], known)
    true = {str(at): list(files.TEXTS[at]) for at in range(4)}
    said = {"0": SAID, "1": long, "2": "Two dogs!", "3": "A bus."}
    cut = {key: captions.pre_caption(text, 20) for key, text in said.items()}
    low = {key: [captions.pre_caption(text) for text in texts] for key, texts in true.items()}
    ours = captions.score(cut, low)
    assert found.score == ours.values["cider"] and found.items == ours.per_item["cider"]
    assert sum(found.items.values()) / 4 == pytest.approx(found.score)
    rows = figures(found)
    assert rows["BLEU-4"] == ours.values["bleu_4"] and rows["ROUGE-L"] == ours.values["rouge_l"]
    whole = captions.score(said, true)
    assert rows["CIDEr-D uncut"] == whole.values["cider"] != found.score
    assert found.metric == caption_scores.METRIC
    assert found.items == caption_scores.score("nocaps", path, known).items
    part = caption_scores.score("nocaps", path, known, only=["1", "3"])
    assert set(part.items) == {"1", "3"}
    near = captions.score({k: cut[k] for k in "02"}, {k: low[k] for k in "02"})
    assert rows["CIDEr-D near-domain"] == near.values["cider"]
    assert found.details["1"]["kinds"] == ["out-domain"] and found.details["1"]["given"] == long
    notes = " ".join(found.notes)
    assert "20 words" in notes and "simple tokeniser" in notes and "meteor left out" in notes
    assert "over 4 questions; published figures are over 4500" in notes
    assert found.unit == "x 100" and "%" not in found.lines()[1]


def test_ids_that_do_not_fit_are_told_apart(root, library):
    keys = [391895, 60623, 60623, 384213, 8]
    path, known = answered(root, "coco_caption", [SAID, "Dogs.", "Dogs.", "", "x"], keys)
    found = scoring.score("coco_caption", [path], known)
    faults = found.faults
    assert (faults.missing, faults.unknown) == (["483108", "42"], ["8"])
    assert (faults.repeated, faults.empty) == (["60623"], ["384213"])
    assert found.items["42"] == found.items["384213"] == 0 and len(found.items) == 5
    path, _ = answered(root, "coco_caption", ["a", "b"], [42, 42])
    with pytest.raises(errors.SgqlmError, match="two different answers"):
        scoring.score("coco_caption", [path], known)
    path, _ = answered(root, "coco_caption", ["a"], [9])
    with pytest.raises(errors.SgqlmError, match="do not fit together"):
        scoring.score("coco_caption", [path], known)
    with pytest.raises(errors.SgqlmError, match="needs its annotations"):
        scoring.score("coco_caption", [path])
    place = root / "nocaps" / "nocaps_val.json"
    files.value(place, [{"image": "val/a.jpg", "img_id": 42}])
    path, _ = answered(root, "nocaps", ["a"], [42])
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        scoring.score("nocaps", [path], [place])
    assert "1 images have no captions" in str(caught.value)


def test_results_of_others_are_scored_over_their_images_of_the_whole_file(root, library, capsys):
    path = root / "results.json"
    said = [{"image_id": 42, "caption": None}, {"image_id": 7, "caption": "A dog."}]
    files.value(path, {"imgToEval": {str(record["image_id"]): record for record in said}})
    texts = {7: "A dog runs.", 8: "A bird.", 42: "A cat sits."}
    told = [{"image_id": n, "id": n, "caption": text} for n, text in texts.items()]
    whole = {"images": [{"id": n} for n in texts], "annotations": told}
    files.value(root / "captions_val2014.json", whole)
    words = ["eval", "score", str(path), "--task=coco_caption", "--out", str(root / "r.json")]
    words += ["--annotations", str(root / "captions_val2014.json")]
    assert main.main(words) == errors.OK
    seen = capsys.readouterr().out
    assert "over the answered ones of the 3 images" in seen and "CIDEr-D uncut" in seen
    told = json.loads((root / "r.json").read_text())
    assert set(told["items"]) == {"7", "42"} and told["details"]["42"]["given"] == ""


def test_a_part_of_the_questions_is_scored_alone(root, library):
    for task in files.CAPTIONS:
        job = benchmark.prepare(tasks.locate(tasks.get(task), root), limit=2)
        lines = [
            {"question_id": job.questions[at].id, "text": SAID, "metadata": {}} for at in job.chosen
        ]
        files.lines(root / task / "out" / benchmark.ANSWERS, lines)
        done = finishing.finish(job, lines, root / task / "out")
        assert len(done.score.items) == 2 and not done.score.faults.is_mismatch
        assert done.submission is None


def test_reports_compare_and_show_captions(root, library, tmp_path, capsys):
    for name, text in (("first", "A bus."), ("second", "Two dogs playing in the snow")):
        path, known = answered(root, "coco_caption", [text] * 5)
        words = ["eval", "score", str(path), "--task=coco_caption", "--annotations", str(known[0])]
        kept = tmp_path / name / "coco_caption.jsonl"
        kept.parent.mkdir()
        path.rename(kept)
        words[2] = str(kept)
        assert main.main([*words, f"--out={kept.with_suffix('.json')}"]) == errors.OK
    both = [str(tmp_path / name / "coco_caption.json") for name in ("first", "second")]
    assert main.main(["eval", "compare", *both]) == errors.OK
    assert "coco_caption" in capsys.readouterr().out
    assert main.main(["eval", "report", both[1], f"--out={tmp_path / 'pages'}"]) == errors.OK
    text = (tmp_path / "pages" / "evaluation.md").read_text()
    assert "CIDEr-D" in text and "interval" in text and "A cat sleeps on a laptop." in text
    assert "the 5 lowest scores of 5" in text
    part = json.loads((tmp_path / "pages" / "evaluation.json").read_text())["reports"][0]
    charts = {
        family["title"]: [row["name"] for row in family["rows"]] for family in part["families"]
    }
    assert charts["CIDEr-D"] == ["uncut"] and "BLEU-4" in charts["uncut"]


def test_genuine_captions_are_nearest_to_themselves(tmp_path, library):
    refs = paths.shared("samples/captions/coco/coco_data_refs.json")
    kept = ("image_id", "caption")
    said = [{name: record[name] for name in kept} for record in json.loads(refs.read_text())]
    files.value(tmp_path / "results.json", said)
    rows = figures(scoring.score("coco_caption", [tmp_path / "results.json"], [refs]))
    assert rows["CIDEr-D uncut"] == pytest.approx(10) and rows["BLEU-4 uncut"] == pytest.approx(1)
    assert 9.9 < rows["CIDEr-D"] < 10  # some have more than 20 words


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_the_published_program_gives_its_figures(tmp_path, monkeypatch):
    caption_library.use(monkeypatch, install=True)
    data = json.loads(paths.fixture("llava/caption.json").read_text())
    true = [
        {"image_id": int(key), "caption": text, "id": k}
        for key, texts in data["references"].items()
        for k, text in enumerate(texts)
    ]
    files.value(tmp_path / "refs.json", true)
    own = [{"image_id": int(k), "caption": text} for k, text in data["predictions"].items()]
    files.value(tmp_path / "own.json", own)
    found = scoring.score("coco_caption", [tmp_path / "own.json"], [tmp_path / "refs.json"])
    rows = figures(found)
    for name, key in (("CIDEr-D", "CIDEr"), ("METEOR", "METEOR"), ("ROUGE-L", "ROUGE_L")):
        assert rows[f"{name} uncut"] == pytest.approx(data[key], rel=1e-9)
    assert rows["BLEU-4 uncut"] == pytest.approx(data["Bleu"][3], rel=1e-9)
    assert rows["METEOR"] > 0 and "Penn Treebank" in " ".join(found.notes)

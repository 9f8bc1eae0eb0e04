"""`sgqlm eval --tasks=relations` and `sgqlm eval score`, as a user types them."""

import json

import pytest

from sgqlm import config, errors
from sgqlm.cli import eval_own, eval_relations, eval_tasks, main
from sgqlm.train import checkpoint
from tests import tiny_model
from tests.evals import benchmark_files as files
from tests.evals import relation_data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    model, folder = tiny_model.make(), tmp_path_factory.mktemp("eval")
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    words = model.tokenizer.model_bytes
    checkpoint.save(folder / "run" / "checkpoints", meta, model.params, tokenizer=words)
    relation_data.make(folder)
    return folder


def run(*words):
    return main.main(["eval", *map(str, words)])


@pytest.mark.slow
def test_the_task_is_measured_resumed_and_scored_again(place, capsys, tmp_path):
    words = [f"--checkpoint={place / 'run'}", f"--data={place / 'built'}", "--tasks=relations"]
    words += ["--pairs=annotated", f"--out={tmp_path}", "--config.eval.batch_size=2"]
    made = tmp_path / "relations"
    assert run(*words, "--limit=1") == errors.OK
    seen = capsys.readouterr()
    assert "predcls" in seen.out and "mR" in seen.out and "riding" in seen.out
    assert "not comparable with all pairs" in seen.out and "zR" in seen.out
    first = (made / eval_relations.ANSWERS).read_text()
    assert run(*words) == errors.OK
    seen = capsys.readouterr()
    assert "1 of 3 images have an answer" in seen.err and "3/3" in seen.err
    assert (made / eval_relations.ANSWERS).read_text().startswith(first)
    told = json.loads((made / eval_relations.REPORT).read_text())
    assert told["task"] == "relations" and told["images"] == 3 and 0 <= told["R@20"] <= 1
    assert run(*words, "--calibrate") == errors.USAGE
    assert "is_calibrated" in capsys.readouterr().err
    *lines, last = (made / eval_relations.ANSWERS).read_text().splitlines(keepends=True)
    failed = {"key": json.loads(last)["key"], "row": 0, "error": "the disk was away"}
    whole = "".join([*lines, last])
    (made / eval_relations.ANSWERS).write_text("".join(lines) + json.dumps(failed) + "\n")
    assert run(*words, "--retry", "--calibrate") == errors.USAGE
    assert "the disk was away" in (made / eval_relations.ANSWERS).read_text()
    assert run(*words, "--retry") == errors.OK
    assert (made / eval_relations.ANSWERS).read_text() == whole
    again = [f"--data={place / 'built'}", "--task", "relations", f"--out={made / 'b.json'}"]
    assert run("score", made / eval_relations.ANSWERS, *again) == errors.OK
    assert json.loads((made / "b.json").read_text()) == told
    page = tmp_path / "page"
    assert run("report", tmp_path, f"--out={page}") == errors.OK
    shown = json.loads((page / "evaluation.json").read_text())["reports"]
    assert {part["task"] for part in shown} == {"relations"}
    assert shown[0]["score"] == pytest.approx(100 * told["R@50"]) and shown[0]["count"] == 3
    assert {family["title"] for family in shown[0]["families"]} >= {"R@K", "mR@K", "predicate"}


@pytest.mark.slow
def test_a_list_of_all_kinds_is_one_command(place, tmp_path, capsys):
    root, out = files.make(tmp_path / "root", files.OURS), tmp_path / "out"
    words = [f"--checkpoint={place / 'run'}", f"--data={place / 'built'}", f"--out={out}"]
    words += [f"--root={root}", "--tasks=relations,pope,scenes", "--entities=none", "--limit=2"]
    words += ["--max-new-tokens=4", "--template=trained", "--batch-size=4", "--pairs=annotated"]
    words += ["--config.eval.max_new_tokens=3", "--config.eval.num_described=2"]
    words += ["--config.eval.num_asked=2"]
    assert run(*words) == errors.OK
    seen = capsys.readouterr()
    assert "mean F1" in seen.out and "left_right" in seen.out and "mR" in seen.out
    names = ("pope", "relations", "scenes")
    made = {name: (out / name / "report.json").read_text() for name in names}
    assert json.loads(made["scenes"])["described"]["scenes"] == 2
    assert "there are no entities" in seen.err
    before = {name: (out / name / "answers.jsonl").read_text() for name in names}
    assert run(*words) == errors.OK  # nothing is asked twice
    assert "2 of 2 images have an answer" in capsys.readouterr().err
    for name in names:
        assert (out / name / "answers.jsonl").read_text() == before[name]
        assert (out / name / "report.json").read_text() == made[name]
    assert run("report", out, f"--out={tmp_path / 'page'}") == errors.OK
    table = json.loads((tmp_path / "page" / "evaluation.json").read_text())["table"]
    (row,) = table["measured"]
    assert set(row["cells"]) == {"pope", "relations", "scenes"}
    assert run("compare", out, out, f"--out={tmp_path / 'compared'}") == errors.OK
    assert "relations" in (tmp_path / "compared" / "comparison.md").read_text()


def test_texts_of_another_model_are_scored(place, capsys, tmp_path):
    line = {"key": "pictures/0.png", "text": "man -> riding -> horse; a man in a hat"}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(line) + "\n")
    words = [tmp_path / "theirs.jsonl", "--task=relations", f"--data={place / 'built'}"]
    assert run("score", *words) == errors.OK
    seen = capsys.readouterr().out
    assert "50.00" in seen and "50.0% of 2 pieces of text cannot be read" in seen


def test_mistakes_are_told(place, capsys, tmp_path):
    data = f"--data={place / 'built'}"
    words = ["--tasks=relations", f"--checkpoint={place / 'run'}", f"--out={tmp_path / 'out'}"]
    assert run(*words, f"--data={tmp_path}") == errors.DATA
    assert "no annotated relations" in capsys.readouterr().err
    assert run(*words, data, "--mode=sgdet") == errors.DATA
    assert "--entities" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*words, data, "--max-pair=3", "--nonsense=1") == errors.USAGE
    assert "--nonsense" in capsys.readouterr().err
    assert run(*words, data, "--limit=-1") == errors.USAGE
    assert run("score", tmp_path / "none", "--task=relations", data) == errors.USAGE
    assert "no such file of answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tasks=scenes,relations",), errors.USAGE, "--data"),
        (("--tasks=relations",), errors.USAGE, "--data"),
        (("--tasks=scenes,gqa",), errors.USAGE, "--root"),
        (("--tasks=scenes,relations", "--root={place}"), errors.USAGE, "--root is a flag of bench"),
        (("--tasks=scenes", "--retry"), errors.USAGE, "--retry is a flag of bench"),
        (("--tasks=scenes", "--entities=none"), errors.USAGE, "--entities is a flag of bench"),
        (("--tasks=scenes", "--data={place}/built"), errors.USAGE, "--data is a flag of rel"),
        (("--tasks=scenes", "--out={place}/x.json"), errors.USAGE, "name of a file"),
        (("--tasks=scenes", "--config.text.template=plain"), errors.USAGE, "the checkpoint says"),
        (("--tasks=scenes,gqa", "--root={place}", "--mode=sgcls"), errors.DATA, "questions of gqa"),
        (("--tasks=scenes,scene",), errors.USAGE, "did you mean scenes?"),
        (("--tasks=scenes,relations", "--data={place}/none"), errors.DATA, ""),
        (
            ("--tasks=scenes,relations", "--data={place}/built", "--mode=sgdet"),
            errors.DATA,
            "sgdet",
        ),
        (("--tasks=scenes,relations", "--data={place}/built", "--limit=-1"), errors.USAGE, "below"),
    ],
)
def test_mistakes_in_a_list_are_told_before_the_model_is_read(
    place, capsys, tmp_path, words, code, message
):
    given = [word.format(place=place) for word in words]
    nowhere = (f"--checkpoint={tmp_path / 'nowhere'}", f"--out={tmp_path / 'out'}")
    assert run(*nowhere, *given) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_entities_in_a_list(place, tmp_path):
    """A store is that of the benchmarks; the relations have their own beside those of the tasks."""

    def choice(tasks, *, is_alone, has_files):
        words = [f"--data={place / 'built'}", f"--entities={tmp_path / 'stores'}"]
        args = parser.parse_args([f"--tasks={tasks}", *words])
        return eval_relations.prepare(args, is_alone=is_alone, has_files=has_files).choice

    assert eval_own.names_of("scenes, gqa,relations,gqa,") == (["gqa"], ("scenes", "relations"))
    parser = eval_tasks.make_parser()[0]
    own = relation_data.extracted(tmp_path / "stores" / "relations")
    assert choice("gqa,relations", is_alone=False, has_files=True) == str(own)
    assert choice("scenes,relations", is_alone=False, has_files=False) == str(own)
    own.rename(tmp_path / "stores" / "gqa")
    assert choice("gqa,relations", is_alone=False, has_files=True) == ""

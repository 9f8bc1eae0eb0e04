"""Data sets that are hostile, broken or too long: what is refused, and what training makes of them.

Paths out of the image folder are tried with every program that reads a json, under an audit hook.
"""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from sgqlm import config, errors, types
from sgqlm.cli import common, main
from sgqlm.data import batch, image_tree, pipeline, sources
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.text import tokenizer as tokenizers
from sgqlm.train import loop, metrics, start, state
from tests import paths
from tests.train import micro

# runs commands, and lists every file that Python opens and all it does with sockets meanwhile
AUDITED = """
import json, socket, sys
from sgqlm.cli import data, main, train
events = []
sys.addaudithook(lambda name, given: (
    events.append([name, str(given[0])])
    if name == "open" or (name.startswith("socket.") and name != "socket.gethostname") else None
))
codes = [main.main(words) for words in json.loads(sys.argv[1])]
before = len(events)
socket.socket().close()
print(json.dumps({"codes": codes, "events": events[:before], "control": events[before:]}))
"""


def turns(question="What is it?", answer="A ring.", image=False):
    lead = "<image>\n" if image else ""
    return [{"from": "human", "value": lead + question}, {"from": "gpt", "value": answer}]


def write(folder, entries, name="talks.json"):
    """Write a json, and the picture `a.png` beside it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "a.png")
    file = folder / name
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


def sgqlm(capsys, *words):
    code = main.main([str(word) for word in words])
    done = capsys.readouterr()
    return code, done.out + done.err


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.load(tokenizers.train(["what is it? a red ring of the blue star"] * 2, 320))


def outside_paths(folder):
    """Make a secret beside the image folder; return paths that would lead to it, or elsewhere."""
    images = folder / "photos" / "images"
    images.mkdir(parents=True)
    (folder / "secret").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "secret" / "secret.png")
    (images / "link.png").symlink_to(folder / "secret" / "secret.png")
    (images / "door").symlink_to(folder / "secret")
    return {
        "up": "../../secret/secret.png",
        "far up": "../" * 30 + "etc/passwd",
        "by a detour": "door/../../../secret/secret.png",
        "absolute": "/etc/passwd",
        "link": "link.png",
        "linked folder": "door/secret.png",
        "zero byte": "a.png\0.jpg",
        "address": "http://169.254.169.254/latest",
        "file address": "file:///etc/passwd",
        "the folder above": "..",
    }


def test_no_program_leaves_the_image_folder(tmp_path):
    bad = outside_paths(tmp_path)
    entries = [
        {"id": name, "image": path, "conversations": turns(image=True)}
        for name, path in {"good": "a.png", **bad}.items()
    ]
    file = write(tmp_path / "photos", entries)
    row = micro.stage("instruct", 1, "projector")
    row = dataclasses.replace(row, sources=(config.SourceConfig(name="own", path=str(file)),))
    settings = micro.settings(row, workdir=str(tmp_path / "run"))
    common.write_config(settings, tmp_path / "config.json")
    commands = [
        ["data", "check", str(file)],
        ["data", "build", str(file), "--out", str(tmp_path / "built")],
        ["data", "show", str(file), "--text"],
        ["train", f"--config={tmp_path / 'config.json'}"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, json.dumps(commands)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["codes"] == [errors.DATA] * 4, done.stderr
    table = {line.split("  ")[0]: line for line in shown}
    for name in bad:
        assert "image inside root" in table[name], table[name]
        assert ("zero byte" if name == "zero byte" else "outside") in table[name]
    assert "good" not in table
    assert done.stderr.count("10 faults in the data: image inside root (10)") == 3
    opened = [path for name, path in found["events"] if name == "open"]
    assert any(path.endswith("images/a.png") for path in opened), "the hook sees no file"
    assert found["control"], "the hook sees no socket"
    assert not [path for path in opened if "passwd" in path or "secret" in path or "link" in path]
    assert not [event for event in found["events"] if event[0].startswith("socket.")]
    assert not (tmp_path / "built").exists()


GOOD = {"id": "good", "image": "a.png", "conversations": turns(image=True)}
TEXTS = {  # what stands in the file: what the report says
    json.dumps([GOOD])[:-9]: "(file)  json  line 1, column",
    json.dumps([GOOD])[:-1] + ",]": "(file)  json  line 1, column",
    '[\n{"id": "a"\n"image": 1}]': "(file)  json  line 3, column 1",
    "": "(file)  json  line 1, column 1",
    "[" * 100_000: "(file)  json  brackets are nested too deeply",
    f"[{'1' * 5000}]": "(file)  json  Exceeds the limit",
    '{"id": "a"}': "(file)  json  the file holds an object, not a list",
    '["one", "two"]': "#1      record shape  it is a text, not an object",
}
RECORDS = {  # the changes to a good record: what the report says of it
    "missing": ({"conversations": ...}, "record shape  `conversations` is missing"),
    "words": ({"conversations": "hello"}, "record shape  `conversations` is a text, not a list"),
    "empty": ({"conversations": []}, "turn shape  there are no turns"),
    "gpt first": ({"conversations": turns(image=True)[::-1]}, "human first"),
    "no answer": ({"conversations": turns(answer="", image=True)}, "no empty text  turn 1"),
    "two": ({"conversations": turns("<image> or <image>?")}, "one <image>  <image> stands 2 times"),
    "in answer": (
        {"conversations": turns(answer="<image>", image=True)},
        "one <image>  <image> in an answer",
    ),
    "no tag": ({"conversations": turns()}, "image has <image>  no turn has <image>"),
    "no picture": ({"image": ...}, "<image> has image  turn 0"),
    "a list": ({"image": ["a.png", "a.png"]}, "record shape  `image` is not one path"),
    "a number": ({"image": 7}, "record shape  `image` is not one path"),
    "half a pair \ud800": ({"image": "\ud800.png"}, r"image exists  \ud800.png"),
    "escape \x1b[2J\n": ({"image": "b.png\x1b[2J"}, r"image exists  b.png\x1b[2J is missing"),
    "long " * 99: ({"image": "x" * 5000}, "image exists  " + "x" * 97 + "...: File name too long"),
}


@pytest.mark.parametrize("text", TEXTS, ids=[repr(text[:12]) for text in TEXTS])
def test_a_json_that_cannot_be_read_says_where(text, tmp_path, capsys):
    code, out = sgqlm(capsys, "data", "check", write(tmp_path, text))
    assert code == errors.DATA
    assert TEXTS[text] in out


def test_every_broken_record_is_named_with_its_rule(tmp_path, capsys):
    entries = [GOOD]
    for name, (changes, _) in RECORDS.items():
        entry = {**GOOD, "id": name, **changes}
        entries.append({key: value for key, value in entry.items() if value is not ...})
    code, out = sgqlm(capsys, "data", "check", write(tmp_path, entries))
    assert code == errors.DATA
    assert f"{len(entries)} records, 1 usable" in out
    squeezed = "\n".join("  ".join(line.split("  ")).strip() for line in out.splitlines())
    for name, (_, wanted) in RECORDS.items():
        shown = image_tree.shown(name)
        lines = [line for line in squeezed.splitlines() if line.startswith(shown.strip())]
        rule, _, message = wanted.partition("  ")
        assert any(rule in line and message in line for line in lines), (name, lines)
    assert "\x1b" not in out and max(map(len, out.splitlines())) < 350


def test_the_first_twenty_faults_stand_in_one_error(tmp_path, capsys):
    bad = [{**GOOD, "id": f"r{i}", "image": f"{i}.png"} for i in range(25)]
    file = write(tmp_path, [GOOD, *bad])
    code, out = sgqlm(capsys, "data", "build", file, "--out", tmp_path / "built")
    assert code == errors.DATA and "25 faults in the data: image exists (25)" in out
    assert all(f"r{i}: image exists: {i}.png is missing" in out for i in range(20))
    assert "r20" not in out and "... and 5 more" in out
    code, out = sgqlm(capsys, "data", "check", file)
    assert code == errors.DATA and all(f"r{i} " in out for i in range(25))


def test_a_repeated_id_and_a_byte_order_mark_are_no_reason_to_refuse(tmp_path, capsys):
    """Published sets have repeated ids; the report names the records and the exit code is 0."""
    file = write(tmp_path, "\ufeff" + json.dumps([GOOD, {**GOOD, "id": "b"}, GOOD]))
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    code, out = sgqlm(capsys, "data", "check", file)
    assert code == errors.OK
    assert "3 records, 3 usable" in out and "records #0 and #2 have it" in out
    file.write_bytes(file.read_text("utf-8-sig").encode("utf-16"))
    code, out = sgqlm(capsys, "data", "check", file)
    assert code == errors.DATA and "byte 0 is not UTF-8" in out


def test_no_line_of_a_jsonl_file_is_lost_without_a_word(tmp_path, capsys):
    lines = [json.dumps({**GOOD, "id": str(i)}, ensure_ascii=False) for i in range(4)]
    odd = {**GOOD, "conversations": turns("What\u2028is it?", image=True)}
    lines.append(json.dumps(odd, ensure_ascii=False))  # json allows this separator in a text
    file = write(tmp_path, "\n".join(lines), "talks.jsonl")
    assert sgqlm(capsys, "data", "check", file)[0] == errors.OK
    file.write_text("\r\n".join(lines)[:-20])
    code, out = sgqlm(capsys, "data", "check", file)
    assert code == errors.DATA and "line 5, column" in out and "5 records, 4 usable" in out
    with pytest.raises(errors.SgqlmError, match="1 fault in the data: json") as caught:
        sources.JsonSource(file, budget=0.1)
    assert caught.value.code == errors.DATA
    assert sources.JsonSource(file, budget=0.2).dropped == 1


def encoder(tokenizer, **graph):
    model = micro.model(projector=config.ProjectorConfig(kind="linear", merge=1))
    model = dataclasses.replace(model, graph=dataclasses.replace(model.graph, **graph))
    return batch.Encoder(model, config.TextConfig(system=""), tokenizer, "v1_sq")


@pytest.mark.parametrize("placement", ["after_image", "after_question"])
def test_a_cut_never_halves_an_image_or_a_graph(tokenizer, placement):
    made = encoder(tokenizer, placement=placement)
    talk = [*turns("What is the red ring?"), *turns(image=True), *turns("And the star?")]
    nodes = made.make_nodes(
        batch.graphs.Entities.from_boxes(np.array([[1, 1, 20, 20], [5, 5, 30, 28.0]]), (30, 40))
    )
    sample = sources.Sample(0, None, talk, record_key="x")
    item = made.example(sample, epoch=0, nodes=nodes, pixels=None)
    whole, full = item.tokens.tolist(), len(item.tokens)
    blocks = {types.IMAGE_TOKEN_ID: 4, types.GRAPH_TOKEN_ID: 2}
    assert all(whole.count(token) for token in blocks)
    lengths = set()
    for length in range(1, full + 3):
        kept = batch.fit(item, length, num_runs=8)
        size = len(kept.tokens)
        lengths.add(size)
        assert kept.tokens.tolist() == whole[:size]
        assert len(kept.labels) == len(kept.kinds) == size
        # as much as fits: the next token would begin a block that does not
        assert size == min(length, full) or (length - size < 4 and whole[size] in blocks)
        for token, block in blocks.items():
            assert kept.tokens.tolist().count(token) % block == 0
        made_batch = batch.collate([item], made.model, length=length, num_runs=8)
        assert made_batch.tokens.shape == (1, length) and made_batch.lengths.tolist() == [size]
    assert len(lengths) < full  # some lengths would have halved a block


def too_long(folder, count=6):
    """Write records whose answer begins behind the context of the micro model."""
    question = "what is the red ring of the blue star? " * 40
    entries = [
        {"id": f"r{i}", "image": "a.png", "conversations": turns(question, image=True)}
        for i in range(count)
    ]
    return write(folder, entries)


def test_a_record_without_a_label_left_is_a_counted_dummy(tmp_path, tokenizer, caplog):
    file = too_long(tmp_path)
    entries = json.loads(file.read_text())
    answer = {"conversations": turns("what?", "a red ring " * 200, image=True)}
    file.write_text(json.dumps([*entries[:3], {**entries[3], **answer}]))
    made = encoder(tokenizer)

    def loader(budget, **options):
        return pipeline.Loader(
            [sources.JsonSource(file)],
            model=made.model,
            text=config.TextConfig(system="", self_questioning=0.0),
            tokenizer=tokenizer,
            data=config.DataConfig(buckets=(64, 96), fault_budget=budget),
            batch_size=4,
            **options,
        )

    lenient = loader(1.0, repeat=False)
    (found,) = lenient
    assert found.row.tolist() == [batch.FAULT] * 3 + [0] and lenient.faults == 3
    assert not found.weights[:3].any() and not (found.tokens[:3] < 0).any()
    long = found.tokens[3]  # its answer is cut, its image is whole
    assert (long == types.IMAGE_TOKEN_ID).sum() == 4 and found.lengths[3] == 96
    assert found.weights[3].sum() > 50
    assert "no answer is left in the first 96 tokens" in caplog.text
    assert (loader(0.0, annotated_labels=True).batch(0).row >= 0).all()  # text is no target there
    with pytest.raises(errors.SgqlmError, match=r"3 of 4 records were broken") as caught:
        list(loader(0.1, repeat=False))
    assert caught.value.code == errors.DATA and "talks record 0: no answer" in caught.value.why


@pytest.mark.slow
def test_a_batch_without_a_label_trains_nothing_and_stays_finite(tmp_path):
    source = config.SourceConfig(name="own", path=str(too_long(tmp_path / "data")))
    made = {"sources": (source,), "self_questioning": 0.0}
    row = micro.stage("instruct", 1, "projector", "graph", **made)
    settings = micro.settings(row)
    lenient = dataclasses.replace(settings.data, fault_budget=1.0)
    result = loop.run(dataclasses.replace(settings, data=lenient), tmp_path / "run")
    record = metrics.read(tmp_path / "run")["instruct"][1]
    assert record["dummies"] == 4 and record["samples"] == 0 and record["skipped"] == 0
    assert record["loss"] == 0.0 and record["grad_norm"] == 0.0
    assert record["answer_loss"] is None and record["dead_share"] is None  # means over nothing
    fresh = start.init_params(result.config.model, 0, mesh_lib.make({}, jax.devices()[:1]))
    for tree in state.split(result.params, row.learning_rates):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), result.params, fresh)
    assert all(jax.tree.leaves(same))

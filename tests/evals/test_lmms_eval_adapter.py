"""The adapter alone, and under lmms-eval itself where an interpreter has that."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import main
from sgqlm.data import images
from sgqlm.decode import generate, inputs, sample
from sgqlm.entities import settings
from sgqlm.evals import (
    benchmark,
    lmms_eval_adapter,
    lmms_eval_entities,
    lmms_eval_plugin,
    ranking,
    self_questioning,
)
from sgqlm.scenes import render, world
from sgqlm.train import checkpoint
from tests import paths, tiny_model

VARIABLE = "SGQLM_LMMS_EVAL_PYTHON"  # an interpreter with lmms-eval and sgqlm's own packages
ROOM = 6
GREEDY = {"max_new_tokens": ROOM, "do_sample": False, "temperature": 0, "until": ["\n\n"]}
DOCUMENTS = [
    {"image": 0, "name": "a/0.png", "question": "What is left of the red cube?"},
    {"image": 1, "name": "a/1.png", "question": "Describe the picture."},
    {"image": None, "name": "", "question": "What colour is a cube?"},
    {"image": 1, "name": "a/1.png", "question": "How many?"},
]


@functools.cache
def picture(number):
    return render.draw(world.make_scene(tiny_model.SCENES, "test", number))[0]


def visual(document):
    return [] if document["image"] is None else [picture(document["image"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A work directory with the tiny model."""
    model, place = tiny_model.make(), tmp_path_factory.mktemp("tiny")
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    words = model.tokenizer.model_bytes
    checkpoint.save(place / "checkpoints", meta, model.params, tokenizer=words)
    return place


@pytest.fixture(scope="module")
def make(folder, adapter):
    """Make adapters whose model is read no second time."""

    def made(**arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_lib, "load", lambda path, base, mesh: as_trained(adapter.model))
            return lmms_eval_adapter.Adapter(str(folder), **arguments)

    return made


def as_trained(model):
    """Return the model with the conversation format of its checkpoint."""
    settings = dataclasses.replace(model.config, text=tiny_model.make().config.text)
    return model_lib.VisionLanguageModel.from_parts(settings, model.params, model.tokenizer)


@pytest.fixture(scope="module")
def adapter(folder):
    made = lmms_eval_adapter.Adapter(pretrained=str(folder), entities="none", batch_size=2)
    made.task_dict["ours"] = {"test": DOCUMENTS}
    return made


@pytest.fixture(scope="module")
def expected(adapter):
    """What the model says to the documents."""
    rows = [
        inputs.Row([inputs.human(d["question"])], visual(d)[0] if visual(d) else None)
        for d in DOCUMENTS
    ]
    return adapter.model.respond(rows, max_new_tokens=ROOM, batch_size=2)


def request(*arguments):
    return types.SimpleNamespace(args=arguments)


def asked(number, options=None, see=visual):
    """A request as lmms-eval makes it."""
    text = DOCUMENTS[number]["question"]
    return request(text, dict(GREEDY, **(options or {})), see, number, "ours", "test")


def refused(call, *words):
    with pytest.raises(errors.SgqlmError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_lmms_eval_finds_the_model_by_an_entry_point(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True)
    text = (tmp_path / "sgqlm.egg-info" / "entry_points.txt").read_text()
    group = text.split("[lmms_eval.models]\n")[1].split("\n[")[0]
    module, _, name = group.partition("=")[2].strip().partition(":")
    assert (module, getattr(lmms_eval_plugin, name)) == (
        lmms_eval_plugin.__name__,
        lmms_eval_plugin.manifest,
    )


def test_the_entry_point_imports_nothing_heavy():
    code = "import sgqlm.evals.lmms_eval_plugin, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, check=True, capture_output=True, text=True
    )
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"jax", "numpy", "torch"}


def test_without_lmms_eval_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    lmms_eval_adapter._model_class.cache_clear()
    module, _, name = lmms_eval_plugin.CLASS.rpartition(".")
    assert module == lmms_eval_adapter.__name__
    for call in (lmms_eval_plugin.manifest, lambda: getattr(lmms_eval_adapter, name)):
        refused(call, ".[lmms-eval]", "docs/lmms_eval.md")
    with pytest.raises(AttributeError):
        _ = lmms_eval_adapter.Other


def test_answers_are_those_of_the_model(adapter, expected):
    assert len(set(expected)) == len(expected)
    assert adapter.generate_until([asked(i) for i in range(len(DOCUMENTS))]) == expected
    assert adapter.generate_until([asked(3)]) == [expected[3]]


def test_the_papers_template_unless_the_trained_one_is_wanted(adapter, make):
    own = make(template="trained", entities="none")
    assert own.model.config.text == tiny_model.make().config.text
    assert adapter.model.config.text.template == "vicuna_v1"
    assert adapter.model.config.text.system is None


def test_an_answer_ends_before_a_string_that_ends_it(adapter, expected):
    stop = expected[0][2:4]
    cut = expected[0][: expected[0].find(stop)].strip()
    assert adapter.generate_until([asked(0, {"until": ["~~~", stop]})]) == [cut]
    assert adapter.generate_until([asked(0, {"until": stop})]) == [cut]
    assert adapter.generate_until([asked(0, {"until": []})]) == [expected[0]]


def test_draws_belong_to_the_request_not_to_the_batch(adapter):
    options = {"do_sample": True, "temperature": 2.0, "top_p": 0.9}
    row = inputs.Row([inputs.human(DOCUMENTS[0]["question"])], picture(0))
    wanted = adapter.model.respond(
        [row] * 3,
        max_new_tokens=ROOM,
        sampling=sample.Sampling(2.0, 0, 0.9),
        seed=self_questioning.seed_of(0, "ours/test, document 0, round 0"),
        batch_size=2,
    )
    assert adapter.generate_until([asked(0, options) for _ in range(3)]) == wanted
    assert len(set(wanted)) == 3
    assert adapter.generate_until([asked(3, options), asked(0, options)])[1:] == wanted[:1]
    greedy = adapter.generate_until([asked(0), asked(0, {"do_sample": False, "temperature": 2.0})])
    assert greedy[0] == greedy[1]


def test_what_the_model_cannot_do_is_refused(adapter, tmp_path):
    def call(options=None, see=visual):
        return lambda: adapter.generate_until([asked(1, options, see)])

    refused(call(see=lambda d: [picture(0), picture(1)]), "one picture", "ours/test, document 1")
    refused(call(see=lambda d: [str(tmp_path / "film.mp4")]), "not str", "ours/test, document 1")
    refused(call({"num_beams": 3}), "num_beams=3", "--gen_kwargs num_beams=1")
    refused(call({"max_new_tokens": 16384}), "16384", "512 positions", "--gen_kwargs")


def test_what_is_not_used_is_said_once(adapter, expected, capsys):
    requests = [asked(i, {"image_aspect_ratio": "original"}) for i in (0, 1)]
    assert adapter.generate_until(requests) == expected[:2]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "image_aspect_ratio" in line] == [
        "sgqlm: ours/test: image_aspect_ratio=original is not used"
    ]


def test_one_long_document_does_not_stop_the_others(adapter, expected, capsys):
    long = request("cube " * 600, GREEDY, visual, 0, "ours", "test")
    assert adapter.generate_until([long, asked(1)]) == ["", expected[1]]
    assert "ours/test, document 0 gets an empty answer" in capsys.readouterr().err


def test_rounds_are_prompts_of_their_own(adapter, expected):
    def following(document, *, previous_output, round_idx, previous_round_info):
        assert previous_round_info == (None if round_idx == 1 else round_idx - 1)
        is_over = round_idx == document["image"] + 1
        return visual(document), DOCUMENTS[3]["question"], is_over, previous_output, round_idx

    requests = [
        request(DOCUMENTS[i]["question"], GREEDY, visual, following, i, "ours", "test")
        for i in (0, 1)
    ]
    (one,), (first, second) = adapter.generate_until_multi_round(requests)
    assert [one, first, second] == [expected[0], expected[1], expected[3]]


def test_draws_of_a_round_depend_on_no_other_document(adapter):
    def following(document, *, previous_output, round_idx, previous_round_info):
        return visual(document), "How many?", round_idx > document["image"], previous_output, None

    def rounds(*numbers):
        options = {**GREEDY, "do_sample": True, "temperature": 2.0}
        requests = [
            request("How many?", options, visual, following, i, "ours", "test") for i in numbers
        ]
        return adapter.generate_until_multi_round(requests)

    (alone,) = rounds(1)
    assert len(set(alone)) == 2  # of the same prompt
    assert rounds(0, 1)[1] == alone
    first, second = rounds(1, 1)
    assert first == alone != second


def test_likelihoods_are_those_of_the_logits(adapter):
    choices, row = ["red cube", " blue"], inputs.Row([inputs.human("How many?")], picture(1))
    ids = ranking.continuations(["red cube", "blue"], adapter.model.config, adapter.model.tokenizer)
    model, wanted = adapter.model, []
    text = inputs.prepare(row, model.config, model.tokenizer).expanded.tokens
    count = model.config.model.num_image_tokens
    start = int(np.flatnonzero(np.asarray(text) < 0)[0])
    prompt = [*text[:start], -200, *text[start + count :]]
    for tokens in ids:
        whole = np.asarray(jax.nn.log_softmax(model.logits([row.image], [[*prompt, *tokens]])[0]))
        wanted.append([whole[len(text) - 1 + i, token] for i, token in enumerate(tokens)])
    requests = [request("How many?", one, visual, 1, "ours", "test") for one in choices]
    requests.append(request("How many?", lambda d: choices[1], visual, 1, "ours", "test"))
    found = [bare(pair) for pair in adapter.loglikelihood(requests)]
    assert [is_greedy for _, is_greedy in found] == [False] * 3
    # lmms-eval takes the smallest number of choices, but makes a perplexity of likelihoods
    expected = [*(-np.mean(one) for one in wanted), np.sum(wanted[1])]
    # float32 sums in another order
    np.testing.assert_allclose([number for number, _ in found], expected, rtol=1e-4)
    refused(lambda: adapter.loglikelihood([request("", "red")]), "acc_mutual_info")


def bare(value):
    """Return the pair, whether or not lmms-eval is here to wrap it."""
    return getattr(value, "text", value)


def test_the_own_answer_is_greedy(make):
    made = make(entities="none")
    made.task_dict["ours"] = {"test": DOCUMENTS}
    model, row = made.model, inputs.Row([inputs.human("Describe the picture.")])
    prepared = inputs.prepare(row, model.config, model.tokenizer)
    batch = inputs.collate([prepared], generate.bucket(prepared.length), model.config.model)
    ((_, second),) = ranking.make_generator(model).generate(batch, max_new_tokens=2)
    word = model.respond([row], max_new_tokens=1)[0]
    # where the second token would come, the model now ends
    end, table = model.tokenizer.eos_id, np.array(model.params["llm"]["embed"]["embedding"])
    table[end] = 1.5 * table[second]
    llm = {**model.params["llm"], "embed": {"embedding": table}}
    params = {**model.params, "llm": llm}
    made.model = model_lib.VisionLanguageModel.from_parts(model.config, params, model.tokenizer)
    assert made.model.respond([row], max_new_tokens=ROOM) == [word]
    words = (word, word + " cube", "cube")
    text = row.turns[0]["value"]
    requests = [request(text, w, lambda d: [], 1, "ours", "test") for w in words]
    found = [is_greedy for _, is_greedy in map(bare, made.loglikelihood(requests))]
    assert found == [True, False, False]


def test_entities_are_extracted_or_left_out_by_choice(make):
    refused(make, "entities=none", "entities=extract")
    refused(lambda: lmms_eval_entities.finder("store", "", "regions"), "image_key=")
    assert lmms_eval_entities.finder("none", "", "regions") is None
    made = make(entities="extract", extractor='{"name": "regions", "max_entities": 3}')
    made.task_dict["ours"] = {"test": DOCUMENTS}
    chosen = dataclasses.replace(settings.preset("regions"), max_entities=3)
    found = settings.make(chosen).extract(images.open_image(picture(0)))
    assert 0 < len(found) <= 3
    row = inputs.Row([inputs.human(DOCUMENTS[0]["question"])], picture(0), found)
    assert made.generate_until([asked(0)]) == made.model.respond([row], max_new_tokens=ROOM)
    refused(
        lambda: make(entities="extract", extractor='{"size": 3}'),
        "no setting 'size'",
    )


def test_entities_of_a_store_are_found_by_a_field(make, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in (0, 1):
        picture(number).save(tmp_path / "images" / "a" / f"{number}.png")
    flags = [f"--images={tmp_path / 'images'}", f"--out={tmp_path / 'store'}"]
    assert main.main(["entities", "extract", *flags, "--extractor=regions"]) == 0
    store = str(tmp_path / "store")
    made = make(entities=store, image_key="name", batch_size=2)
    live = make(entities="extract", batch_size=2)
    for one in (made, live):
        one.task_dict["ours"] = {"test": DOCUMENTS}
    requests = [asked(0), asked(1)]
    assert made.generate_until(requests) == live.generate_until(requests)
    made.task_dict["ours"] = {"test": [{**DOCUMENTS[0], "name": "b.png"}]}
    refused(lambda: made.generate_until([asked(0)]), "no image 'b.png'", "ours/test, document 0")
    made.task_dict["ours"] = {"test": [{**DOCUMENTS[0], "name": "a/1.png"}]}
    small = Image.new("RGB", (40, 30))
    refused(lambda: made.generate_until([asked(0, see=lambda d: [small])]), "another size")
    made.task_dict["ours"] = {"test": [{"question": "?"}]}
    refused(lambda: made.generate_until([asked(0, see=lambda d: [small])]), "no field 'name'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [  # told before the model is read
        ({}, ("pretrained=PATH",)),
        ({"pretrained": "x", "batch_size": "auto"}, ("'auto'", "--batch_size 8")),
        ({"pretrained": "x", "max_new_tokens": 0}, ("max_new_tokens",)),
        ({"pretrained": "x", "mesh": "data=2"}, ("mesh", "no JSON")),
        ({"pretrained": "x", "device": "cuda:7"}, ("cuda:7", "JAX_PLATFORMS")),
    ],
)
def test_wrong_arguments_are_told(arguments, words):
    refused(lambda: lmms_eval_adapter.Adapter(**arguments), *words)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(lambda: lmms_eval_adapter.Adapter("x"), "WORLD_SIZE=2", "mesh=")


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function tools.visual
doc_to_text: question
{rest}
"""
GENERATED = """
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = """
doc_to_target: target
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TOOLS = """
from PIL import Image
def visual(document):
    return [Image.open(document["image"]).convert("RGB")] if document["image"] else []
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_lmms_eval_itself(folder, tmp_path):
    python = os.environ.get(VARIABLE)
    if not python and importlib.util.find_spec("lmms_eval") is None:
        pytest.skip(f"needs lmms_eval; {VARIABLE} names an interpreter that has it")
    model, documents = benchmark.with_template(model_lib.load(folder), "vicuna_v1"), []
    rows = []
    for number, one in enumerate(DOCUMENTS[:3]):
        image, path = (visual(one) or [None])[0], ""
        if image is not None:
            path = str(tmp_path / f"{number}.png")
            image.save(path)
        rows.append(inputs.Row([inputs.human(one["question"])], image))
        documents.append({"image": path, "question": one["question"]})
    texts = model.respond(rows, max_new_tokens=6)
    choices = ["red cube", "blue"]
    values = _likelihoods(model, rows, choices)
    best = [max(choices, key=values[i].__getitem__) for i in range(len(rows))]
    assert best != [choices[0]] * 3
    for document, text, word in zip(documents, texts, best, strict=True):
        document.update(answer=text, choices=choices, target=choices.index(word))
    documents[0]["answer"] = "something else"
    documents[1]["target"] = 1 - documents[1]["target"]
    (tmp_path / "data.json").write_text(json.dumps(documents))
    (tmp_path / "tools.py").write_text(TOOLS)
    kinds = {"generate_until": GENERATED, "multiple_choice": CHOSEN}
    for kind, rest in kinds.items():
        text = TASK.format(name=f"ours_{kind}", file=tmp_path / "data.json", kind=kind, rest=rest)
        (tmp_path / f"{kind}.yaml").write_text(text)
    results, samples = _run(python or sys.executable, folder, tmp_path, kinds)
    scores = {
        name: [v for k, v in found.items() if k.split(",")[0] in ("exact_match", "acc")]
        for name, found in results.items()
    }
    two_thirds = [pytest.approx(2 / 3)]
    assert scores == {"ours_generate_until": two_thirds, "ours_multiple_choice": two_thirds}
    assert samples == texts


def _likelihoods(model, rows, choices):
    """Return the mean log-likelihood of each choice in each row."""
    ids = ranking.continuations(choices, model.config, model.tokenizer)
    out = []
    for row in rows:
        ranker = ranking.Ranker(model, choices)
        values = ranker.rank(ranking.Picture(row.image, None), [row.turns[0]["value"]]).values[0]
        out.append({c: v / len(i) for c, v, i in zip(choices, values, ids, strict=True)})
    return out


def _run(python, folder, place: pathlib.Path, kinds):
    """Run lmms-eval offline; return its scores, and the answers that it logged."""
    command = [
        python, "-m", "lmms_eval", "--model", "sgqlm",
        "--model_args", f"pretrained={folder},entities=none",
        "--tasks", ",".join(f"ours_{kind}" for kind in kinds), "--include_path", str(place),
        "--batch_size", "2", "--log_samples", "--output_path", str(place / "out"),
    ]  # fmt: skip
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    environment = {
        **os.environ,
        **offline,
        "HF_HOME": str(place / "home"),
        "PYTHONPATH": "",
        "XLA_FLAGS": "",
    }
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (place / "out").rglob("*_results.json")
    (logged,) = (place / "out").rglob("*_samples_ours_generate_until.jsonl")
    lines = [json.loads(line) for line in logged.read_text().splitlines()]
    lines.sort(key=lambda line: line["doc_id"])
    texts = [line["filtered_resps"] for line in lines]
    return json.loads(found.read_text())["results"], [
        text[0] if isinstance(text, list) else text for text in texts
    ]

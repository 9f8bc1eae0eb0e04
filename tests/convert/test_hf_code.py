"""The torch files of an exported folder: equal to ours stage by stage, in text and in pictures."""

import dataclasses
import functools
import os
import subprocess
import types as python_types

import jax
import numpy as np
import pytest

from sgqlm import config, types
from sgqlm.decode import generate
from sgqlm.models import vlm
from tests import tiny_model
from tests.convert import exports

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="the shipped files are written for torch")
transformers = pytest.importorskip("transformers", reason="the shipped files extend it")
# transformers warns of its own use of deprecated functions
pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = {
    "Model": "modeling_sgqlm.SgqlmForConditionalGeneration",
    "Processor": "processing_sgqlm.SgqlmProcessor",
    "Tokenizer": "tokenization_sgqlm.SgqlmTokenizer",
}


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """Return the classes of the shipped files."""
    from transformers import dynamic_module_utils

    with exports.module_cache(tmp_path_factory.mktemp("modules")):
        folder = exports.write_folder(
            tmp_path_factory.mktemp("code") / "model", tiny_model.make(), tiny_model.words()
        )
        find = dynamic_module_utils.get_class_from_dynamic_module
        found = {key: find(name, str(folder)) for key, name in CLASSES.items()}
        yield python_types.SimpleNamespace(**found, folder=folder)


def load(code, folder, **options):
    """Load a folder and see that every tensor found its place."""
    model, info = code.Model.from_pretrained(str(folder), output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval(), code.Processor.from_pretrained(str(folder), trust_remote_code=True)


@functools.partial(jax.jit, static_argnames="cfg")
def our_stages(params, batch, *, cfg):
    """Return what each stage of the model computes."""
    features = vlm.encode_images(params, cfg, batch.images)
    visual = vlm.visual_tokens(params, cfg, features)
    found = {"features": features, "tokens": visual.tokens, "nodes": visual.node_features}
    if cfg.graph.enabled:
        graph = vlm.graph_tokens(params, cfg, visual.node_features, batch.graph)
        found["graph"] = graph.tokens
    hidden, _ = vlm.forward(params, cfg, batch, features=features)
    return found | {"logits": vlm.head(params, cfg, hidden)}


def processed(processor, given, **options):
    """Give the rows to the processor as a user would."""
    return processor(
        images=[row.image for row in given],
        text=[processor.conversation(row.turns, has_image=row.image is not None) for row in given],
        entities=[row.entities for row in given],
        **options,
    )


def their_stages(model, batch):
    with torch.no_grad():
        features = model.encode_images(batch["pixel_values"])
        visual = model.visual_tokens(features)
        found = {"features": features, "tokens": visual.tokens, "nodes": visual.node_features}
        if model.settings.graph.enabled:
            label_ids = batch["node_label_ids"]
            if batch["needs_labels"].any():
                plain = model.encode_images(batch["pixel_values"], use_lora=False)
                ids = model.predict_labels(plain, batch["node_coverage"])
                args = (label_ids, batch["node_valid"], batch["needs_labels"])
                label_ids = model._read_labels(ids, *args)
            found["graph"] = model.graph_tokens(
                visual.node_features,
                batch["node_coverage"],
                batch["node_boxes"],
                label_ids,
                batch["node_valid"],
                batch["prompt_ids"],
                batch["prompt_valid"],
            )
        found["logits"] = model(**batch).logits
    return {key: value.float().numpy() for key, value in found.items()}


def compare(ours, theirs, masks, tolerance):
    """Assert that every stage agrees where it means something."""
    errors = {}
    for stage, value in theirs.items():
        mask = masks.get(stage, slice(None))
        wanted = np.asarray(ours[stage], np.float32)[mask]
        errors[stage] = np.abs(wanted - value[mask]).max() / max(1.0, np.abs(wanted).max())
    assert max(errors.values()) < tolerance, errors
    return errors


def check(code, folder, model, tolerance=1e-5, **options):
    """Compare a model with its export: ids, graph inputs, stages and logits."""
    cfg = model.config.model
    given = exports.rows(cfg)
    if not cfg.graph.enabled:
        given = [dataclasses.replace(row, entities=None) for row in given]
    batch = exports.our_batch(model, given)
    torch_model, processor = load(
        code, exports.write_folder(folder, model, tiny_model.words()), **options
    )
    found = processed(processor, given, padding_side="right")
    np.testing.assert_array_equal(found["input_ids"], batch.tokens)
    np.testing.assert_array_equal(found["attention_mask"].sum(1), batch.lengths)
    ours = our_stages(model.params, batch, cfg=cfg)
    theirs = their_stages(torch_model, found)
    shown = batch.image_valid
    masks = {"features": shown, "tokens": shown, "nodes": shown}
    masks["logits"] = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    if cfg.graph.enabled:
        np.testing.assert_array_equal(found["node_coverage"], batch.graph.coverage)
        np.testing.assert_array_equal(found["node_boxes"], batch.graph.boxes)
        np.testing.assert_array_equal(found["node_valid"], batch.graph.valid)
        np.testing.assert_array_equal(found["prompt_ids"], batch.graph.prompt_ids)
        np.testing.assert_array_equal(found["prompt_valid"], batch.graph.prompt_valid)
        runs = batch.graph.prompt_ids.shape[1]
        masks["graph"] = np.repeat(batch.graph.valid[:, None], runs, axis=1)
    return compare(ours, theirs, masks, tolerance)


# the first rows switch most of the parts between them, the others one or two at a time
GRID = {
    "all": {},
    "released": {
        "prototypes__mode": "released",
        "vision__activation": "gelu",
        "vision__feature_layer": 2,
        "image_fit": "crop",
        "vision_lora": config.LoraConfig(),
        "llm_lora": config.LoraConfig(),
        "graph__impl": "dense",
        "graph__node_source": "prototypes",
        "graph__labels": "none",
        "graph__edge_visual": False,
    },
    "compress": {
        "prototypes__compress": True,
        "projector__kind": "linear",
        "graph__use_boxes": False,
        "graph__edge_geometry": False,
        "graph__label_skip": False,
        "region_words": 0,
    },
    "plain": {
        "prototypes__mode": "none",
        "graph__enabled": False,
        "projector__merge": 1,
        "projector__activation": "quick_gelu",
        "llm__tie_embeddings": True,
        "region_words": 0,
    },
    "after question": {"graph__placement": "after_question", "graph__num_rounds": 1},
}
SLOW = {
    "merged": {"vision_lora": config.LoraConfig(), "llm_lora": config.LoraConfig()},
    "no boxes": {"graph__use_boxes": False, "graph__edge_geometry": False},
    "no labels": {"graph__labels": "none", "graph__label_skip": True},
    "no evidence": {"graph__edge_visual": False, "graph__num_rounds": 3},
    "no messages": {"graph__message_passing": False, "graph__node_source": "prototypes"},
    "no prompt": {"graph__prompt_attention": False, "prototypes__mode": "none"},
    "compress released": {"prototypes__mode": "released", "prototypes__compress": True},
    "all heads": {"llm__num_kv_heads": 4, "llm__tie_embeddings": True, "projector__kind": "linear"},
}


@pytest.mark.parametrize("name", GRID)
def test_every_stage_equals_ours(code, tmp_path, name):
    check(code, tmp_path / "model", exports.random_model(exports.settings(**GRID[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_stage_equals_ours_with_other_switches(code, tmp_path, name):
    for seed in (0, 1):
        check(
            code,
            tmp_path / "model",
            exports.random_model(exports.settings(**SLOW[name]), seed=seed),
        )


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
def test_every_template_hears_the_same_question(code, tmp_path, template):
    model = exports.random_model(exports.settings(), template=template)
    given = exports.rows(model.config.model)[1:]
    one_turn = [dataclasses.replace(row, turns=row.turns[:1]) for row in given]
    batch = exports.our_batch(model, one_turn)
    _, processor = load(code, exports.write_folder(tmp_path / "model", model, tiny_model.words()))
    found = processed(processor, one_turn, padding_side="right")
    np.testing.assert_array_equal(found["input_ids"], batch.tokens)
    np.testing.assert_array_equal(found["prompt_ids"], batch.graph.prompt_ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "released"])
def test_bfloat16_stays_near_ours(code, tmp_path, name):
    model = exports.random_model(exports.settings(**GRID[name], compute_dtype="bfloat16"))
    # two roundings to three digits: 0.01 of the largest feature, 0.07 of the largest logit
    check(code, tmp_path / "model", model, 0.1, dtype=torch.bfloat16)
    loaded, _ = load(code, tmp_path / "model", dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: value.dtype for name, value in loaded.named_parameters()}
    assert kinds.pop("prototypes") == kinds.pop("regions") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


@pytest.fixture(scope="module")
def tiny(code):
    """Return our tiny model, its export, and rows for both."""
    model = tiny_model.make()
    torch_model, processor = load(code, code.folder)
    given = [exports.rows(model.config.model)[i] for i in (0, 1, 2, 3)]
    return model, torch_model, processor, given


def new_ids(model, inputs, **options):
    """Return the ids that a torch model writes after each prompt, up to the end token."""
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)
    rest = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rest]


def test_generation_equals_ours(tiny):
    model, torch_model, processor, given = tiny
    writer = generate.Generator(model.config.model, model.params, eos_id=2)
    wanted = writer.generate(exports.our_batch(model, given), max_new_tokens=12)
    assert len({tuple(ids) for ids in wanted}) == len(given), "rows write the same"
    whole = processed(processor, given)
    assert (whole["attention_mask"][:, 0] == 0).any(), "nothing is padded"
    assert new_ids(torch_model, whole) == wanted
    assert new_ids(torch_model, whole, use_cache=False) == wanted
    alone = [new_ids(torch_model, processed(processor, [row]))[0] for row in given]
    assert alone == wanted
    texts = processor.batch_decode(wanted, skip_special_tokens=True)
    assert [text.strip() for text in texts] == model.respond(given, max_new_tokens=12)


def test_the_image_is_read_once(tiny, monkeypatch):
    _, torch_model, processor, given = tiny
    seen = []
    tower = torch_model.vision_tower
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *args: seen.append(1) or forward(*args))
    new_ids(torch_model, processed(processor, given[:1]))
    assert len(seen) == 1


def test_beams_penalties_and_pipelines_run(tiny):
    _, torch_model, processor, given = tiny
    batch = processed(processor, given[:2])
    greedy = new_ids(torch_model, batch)
    assert new_ids(torch_model, batch, repetition_penalty=50.0) != greedy
    assert len(new_ids(torch_model, batch, num_beams=2)) == 2
    ask = transformers.pipeline(
        "image-text-to-text", torch_model, processor=processor, tokenizer=processor.tokenizer
    )
    content = [{"type": "image", "image": given[0].image}, {"type": "text", "text": "what is it"}]
    options = {"max_new_tokens": 12, "do_sample": False}
    found = ask([{"role": "user", "content": content}], generate_kwargs=options)
    text = processor.conversation("what is it")
    wanted = new_ids(torch_model, processor(images=given[0].image, text=text))
    answer = found[0]["generated_text"][-1]["content"]
    assert answer.strip() == processor.decode(wanted[0], skip_special_tokens=True).strip()


def test_padding_on_either_side_gives_the_same_logits(tiny):
    _, torch_model, processor, given = tiny
    found = {}
    for side in ("left", "right"):
        batch = processed(processor, given, padding_side=side)
        with torch.no_grad():
            found[side] = torch_model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(found["left"], found["right"], atol=1e-4, rtol=0)


def test_labels_are_predicted_without_adapters_and_read_as_text(tiny):
    model, torch_model, processor, given = tiny
    batch = processed(processor, given[1:2])
    assert batch["needs_labels"].tolist() == [True]
    assert (batch["node_label_ids"] < 0).all()
    with torch.no_grad():
        features = torch_model.encode_images(batch["pixel_values"], use_lora=False)
        raw = torch_model.predict_labels(features, batch["node_coverage"])
        args = (batch["node_label_ids"], batch["node_valid"], batch["needs_labels"])
        ids = torch_model._read_labels(raw, *args)
        adapted = torch_model.encode_images(batch["pixel_values"])
    assert not torch.equal(raw, torch_model.predict_labels(adapted, batch["node_coverage"]))
    np.testing.assert_array_equal(ids, exports.our_batch(model, given[1:2]).graph.label_ids)
    assert not torch.equal(ids[..., : raw.shape[-1]], raw), "no label changes on its way"


def test_labels_need_a_tokenizer(tiny, code, tmp_path):
    _, torch_model, processor, given = tiny
    batch = processed(processor, given[1:2])
    torch_model.save_pretrained(tmp_path / "bare")
    bare = code.Model.from_pretrained(str(tmp_path / "bare")).eval()
    with pytest.raises(ValueError, match="set_tokenizer"):
        bare(**batch)
    bare.set_tokenizer(processor.tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(bare(**batch).logits, torch_model(**batch).logits)
    known = processed(processor, given[:1])
    assert known["needs_labels"].tolist() == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "image placeholders in 1 runs, but it has 0 image features"),
        ({"node_valid": None}, "graph placeholders in 1 runs, but it has 0 graph features"),
        ({"input_ids": (types.IMAGE_TOKEN_ID, 5)}, "image placeholders"),
        ({"input_ids": (types.GRAPH_TOKEN_ID, 5)}, "graph placeholders"),
        ({"input_ids": (5, -7)}, "negative id"),
    ],
)
def test_placeholders_that_do_not_fit_are_refused(tiny, change, message):
    _, torch_model, processor, given = tiny
    batch = dict(processed(processor, given[:1]))
    for key, value in change.items():
        if value is not None:
            ids = batch[key].clone()
            old = (ids == value[0]) if value[0] < 0 else ids > 2
            ids[0, old[0].nonzero()[0]] = value[1]
            value = ids
        batch[key] = value
    with pytest.raises(ValueError, match=message):
        torch_model(**batch)


def test_auto_classes_find_the_code_and_a_saved_folder_keeps_it(tiny, code, tmp_path):
    _, torch_model, processor, given = tiny
    batch = processed(processor, given)
    torch_model.save_pretrained(tmp_path / "again")
    auto = transformers.AutoModelForImageTextToText.from_pretrained(
        str(code.folder), trust_remote_code=True
    )
    auto.save_pretrained(tmp_path / "again")
    transformers.AutoProcessor.from_pretrained(
        str(code.folder), trust_remote_code=True
    ).save_pretrained(tmp_path / "again")
    shipped = {path.name for path in code.folder.glob("*.py")}
    assert shipped == {path.name for path in (tmp_path / "again").glob("*.py")}
    for kind in ("AutoModel", "AutoModelForImageTextToText"):
        again, info = getattr(transformers, kind).from_pretrained(
            str(tmp_path / "again"), trust_remote_code=True, output_loading_info=True
        )
        assert not any(info.values()), info
    options = {"trust_remote_code": True}
    read = transformers.AutoProcessor.from_pretrained(str(tmp_path / "again"), **options)
    with torch.no_grad():
        wanted = torch_model(**batch).logits
        assert torch.equal(again.eval()(**processed(read, given)).logits, wanted)
    words = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "again"), **options)
    assert words("a red ring")["input_ids"] == tiny_model.words().encode("a red ring")


def test_a_loss_is_given_for_labels(tiny):
    _, torch_model, processor, given = tiny
    batch = processed(processor, given[:2], padding_side="right")
    labels = torch.where(batch["input_ids"] > 2, batch["input_ids"], -100)
    with torch.no_grad():
        found = torch_model(**batch, labels=labels)
    logits, targets = found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    wanted = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(found.loss, wanted)


IN_A_FRESH_ENVIRONMENT = """
import importlib.util, sys
import numpy as np, torch, transformers
from PIL import Image

folder, data, again = sys.argv[1:]
assert transformers.__version__.startswith("4.57.")
assert not any(importlib.util.find_spec(name) for name in ("sgqlm", "jax"))
options = {"trust_remote_code": True}


def load(folder):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, **options)


wanted = np.load(data)
questions = wanted["questions"].tolist()
entities = [{"boxes": boxes} for boxes in wanted["boxes"]]
images = [Image.fromarray(image) for image in wanted["images"]]
model, processor = load(folder)
for name in (again, None):
    texts = [processor.conversation(question) for question in questions]
    batch = processor(images=images, text=texts, entities=entities)
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        logits = model(**batch).logits[mask].numpy()
        np.testing.assert_allclose(logits, wanted["logits"], atol=1e-4)
        reads = []
        model.vision_tower.register_forward_hook(lambda *args: reads.append(1))
        for cache in (True, False):
            ids = model.generate(**batch, max_new_tokens=8, do_sample=False, use_cache=cache)
            new = ids[:, batch["input_ids"].shape[1] :].tolist()
            new = [row[: row.index(2)] if 2 in row else row for row in new]
            assert new == [[i for i in row if i >= 0] for row in wanted["new"].tolist()], new
            # with a cache once for the features, and once without adapters for the labels
            assert len(reads) == 2 if cache else len(reads) > 4, reads
    if name:
        model.save_pretrained(name)
        processor.save_pretrained(name)
        model, processor = load(name)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_transformers_4_gives_the_same_without_this_project(tiny, code, transformers_4, tmp_path):
    model, _, _, given = tiny
    cfg = model.config.model
    questions = ["what is left of the ring?", "is it red"]
    images = [np.asarray(row.image.resize((60, 44))) for row in given[:2]]
    boxes = np.array([[[2, 3, 30, 20], [10, 10, 50, 35.5], [0, 0, 9, 44]]] * 2, np.float32)
    boxes[1] += 5
    asked = [
        dataclasses.replace(
            row,
            turns=[{"from": "human", "value": question}],
            image=exports.as_picture(image),
            entities=exports.from_boxes(box, image.shape[:2]),
        )
        for row, question, image, box in zip(given, questions, images, boxes, strict=False)
    ]
    batch = exports.our_batch(model, asked)
    logits = np.asarray(our_stages(model.params, batch, cfg=cfg)["logits"])
    valid = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    writer = generate.Generator(cfg, model.params, eos_id=2)
    written = writer.generate(batch, max_new_tokens=8)
    padded = np.array([ids + [-1] * (8 - len(ids)) for ids in written])
    np.savez(
        tmp_path / "wanted.npz",
        questions=questions,
        images=images,
        boxes=boxes,
        logits=logits[valid],
        new=padded,
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [str(code.folder), str(tmp_path / "wanted.npz"), str(tmp_path / "again")]
    done = subprocess.run(
        [transformers_4, "-c", IN_A_FRESH_ENVIRONMENT, *arguments],
        env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("equal\n")

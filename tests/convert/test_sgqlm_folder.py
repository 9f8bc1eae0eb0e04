"""What an exported folder holds beside its weights, and its processor: ids, pixels, masks."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from sgqlm import config, errors, types
from sgqlm.convert import sgqlm_folder
from sgqlm.data import graphs
from sgqlm.data import images as image_lib
from sgqlm.decode import inputs
from sgqlm.models import clip_vit
from sgqlm.text import conversation
from sgqlm.text import tokenizer as tokenizers
from tests import tiny_model
from tests.convert import exports
from tests.text import helpers as text_helpers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers warns of its own use of deprecated functions
pytestmark = pytest.mark.filterwarnings("ignore")

CODE = {
    "configuration_sgqlm.py",
    "modeling_sgqlm.py",
    "processing_sgqlm.py",
    "tokenization_sgqlm.py",
}


def whole(model=None, **text):
    """Return a configuration around a small model."""
    text = {"template": "v1_sq", **text}
    return config.Config(model=model or exports.settings(), text=config.TextConfig(**text))


@pytest.fixture(scope="module")
def auto(tmp_path_factory):
    """Return a function that writes a folder without weights and opens its processor."""
    transformers = pytest.importorskip("transformers", reason="the processor extends it")
    with exports.module_cache(tmp_path_factory.mktemp("modules")):

        def make(cfg, words):
            folder = tmp_path_factory.mktemp("folder") / "model"
            folder.mkdir()
            for name, content in sgqlm_folder.side_files(cfg, words).items():
                (folder / name).write_bytes(content)
            return transformers.AutoProcessor.from_pretrained(str(folder), trust_remote_code=True)

        yield make


@pytest.fixture(scope="module")
def processor(auto):
    return auto(whole(), tiny_model.words())


def test_the_configuration_comes_back_exactly():
    words = tiny_model.words().with_token("[vusr]")
    model = exports.settings(llm__vocab_size=words.vocab_size)
    cfg = whole(model, system="", vusr_marker="token", template="v1_sq")
    tree = json.loads(sgqlm_folder.side_files(cfg, words)["config.json"])
    own = tree["sgqlm"]
    assert config.from_config_dict(own["model"], config.ModelConfig) == cfg.model
    assert config.from_config_dict(own["text"], config.TextConfig) == cfg.text
    rules = own["tokenizer"]
    again = tokenizers.Tokenizer(
        words.model_bytes,
        rules["legacy"],
        rule=rules["rule"],
        added_tokens=tuple(rules["added_tokens"]),
    )
    assert again.digest == words.digest


def test_both_majors_find_their_spelling():
    files = sgqlm_folder.side_files(whole(), tiny_model.words())
    tree = json.loads(files["config.json"])
    text, theta = tree["text_config"], exports.settings().llm.rope_theta
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == theta
    assert text["dtype"] == text["torch_dtype"] == tree["dtype"] == tree["torch_dtype"]
    assert files["tokenizer.model"] == tiny_model.words().model_bytes
    for part in tree["auto_map"].values():
        module, name = part.split(".")
        assert f"class {name}(".encode() in files[module + ".py"]
    assert set(files) >= CODE
    assert all(name.endswith(("_sgqlm.py", ".json", ".model")) for name in files)


def test_the_shipped_files_are_flat_and_of_torch_only():
    for name, content in sgqlm_folder.side_files(whole(), tiny_model.words()).items():
        if name.endswith(".py"):
            assert b"import jax" not in content
            assert b"import sgqlm" not in content
            assert b"from sgqlm" not in content


def test_what_a_folder_cannot_hold_is_refused():
    model = exports.settings(graph__edge_oracle=True)
    with pytest.raises(errors.SgqlmError, match="annotated predicates"):
        sgqlm_folder.side_files(whole(model), tiny_model.words())
    model = exports.settings(llm__vocab_size=300)
    with pytest.raises(errors.SgqlmError, match="the model only 300 rows"):
        sgqlm_folder.side_files(whole(model), tiny_model.words())


@pytest.mark.parametrize("rule", ["4.31", "4.37", "legacy"])
@pytest.mark.parametrize("kind", ["llama", "trained"])
def test_the_tokenizer_gives_the_ids_of_training(auto, kind, rule):
    legacy, rule = rule == "legacy", "4.31" if rule == "legacy" else rule
    words = text_helpers.llama() if kind == "llama" else text_helpers.trained()
    words = tokenizers.Tokenizer(words.model_bytes, legacy, rule=rule, added_tokens=("[vusr]",))
    model = exports.settings(llm__vocab_size=words.vocab_size)
    found = auto(whole(model), words).tokenizer
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, 2, 0)
    rng, placeholders = np.random.default_rng(0), [types.IMAGE_TOKEN_ID, types.GRAPH_TOKEN_ID]
    texts = [turn["value"] for _ in range(60) for turn in text_helpers.random_chat(rng)]
    texts += ["", " ", "</s>", "</s> a", "</s>a</s>", "[vusr]: b[vusr]", "\u2581x", "<unk>y<s>z"]
    for text in texts:
        ids = words.encode(text)
        assert found(text)["input_ids"] == ids
        assert found.encode_with_starts(text) == words.encode_with_starts(text)
        for skip in (True, False):
            mixed = [*placeholders, *ids, words.vocab_size + 3]
            decoded = found.decode(mixed, skip_special_tokens=skip)
            assert decoded == words.decode(mixed, skip_special=skip)


def test_conversations_are_written_and_read_as_in_training(auto):
    rng = np.random.default_rng(0)
    counts = {"written": 0, "refused": 0}
    for template in ("v1_sq", "vicuna_v1", "plain"):
        for placement in ("after_image", "after_question"):
            cfg = whole(exports.settings(graph__placement=placement), template=template)
            processor = auto(cfg, tiny_model.words())
            for index in range(60):
                turns = text_helpers.random_chat(rng)[: 1 + 2 * int(rng.integers(3))]
                turns = turns[: 1 if template == "plain" else None]
                asked = (2,) if len(turns) > 2 and index % 3 == 0 else ()
                counts[_compare(processor, cfg, turns, index % 4 > 0, asked)] += 1
    assert min(counts.values()) > 50, counts


def _compare(processor, cfg, turns, has_image, asked):
    """Compare text, ids and what the graph hears; return what became of the conversation."""
    words = tiny_model.words()
    args = {"tokenizer": words, "has_image": has_image, "vusr_turns": asked}
    try:
        wanted = conversation.prompt(turns, cfg.text.template, **args)
    except errors.SgqlmError:
        with pytest.raises(ValueError):
            processor.conversation(turns, has_image=has_image, vusr_turns=asked)
        return "refused"
    text = processor.conversation(turns, has_image=has_image, vusr_turns=asked)
    assert text == wanted.text
    picture, nodes = exports.picture(20, 20), exports.entities(2, (20, 20))
    options = {"images": [picture], "entities": [nodes]} if has_image else {}
    count = 2 if has_image else 0
    expanded = conversation.expand(
        wanted,
        cfg.model.num_image_tokens,
        count,
        placement=cfg.model.graph.placement,
    )
    given = [text]
    if not any("ASSISTANT" in turn["value"] or "USER" in turn["value"] for turn in turns):
        given.append(str(text))  # a plain string is read by its role words
    for prompt in given:
        found = processor(text=prompt, return_tensors="np", **options)
        assert found["input_ids"][0].tolist() == expanded.tokens
        if has_image:
            graph = graphs.stack([None], [expanded.prompts], cfg.model, num_runs=100)
            heard = found["prompt_ids"][0]
            np.testing.assert_array_equal(heard, graph.prompt_ids[0, : len(heard)])
            assert len(heard) == max(1, len(expanded.prompts))
    return "written"


def test_what_the_model_asks_itself(processor):
    words = tiny_model.words()
    turns = text_helpers.chat("<image>\nis it red?", "yes", "is it big?", "no")
    cases = [([], ()), (turns, ()), (turns, (0,)), (turns, (0, 2)), (turns[:2], (0,))]
    for given, asked in cases:
        args = {"vusr_turns": asked, "open_role": "vuser"}
        wanted = conversation.prompt(given, "v1_sq", tokenizer=words, **args)
        text = processor.conversation(given, **args)
        assert text == wanted.text
        for prompt in (text, str(text)):
            found = processor(
                images=[exports.picture(20, 20)],
                text=[prompt],
                entities=[exports.entities(2, (20, 20))],
            )
            heard = found["prompt_ids"][0, 0][found["prompt_valid"][0, 0]]
            assert heard.tolist() == wanted.prompt_ids


def test_chat_messages_become_the_same_prompt(processor):
    picture = exports.picture(30, 20)
    image = {"type": "image", "image": picture}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "is it red?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    ]
    turns = text_helpers.chat("<image>\nis it red?", "yes", "why?")
    wanted = processor.conversation(turns)
    assert processor.apply_chat_template(messages) == wanted
    assert processor.apply_chat_template([messages, messages]) == [wanted] * 2
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    by_hand = processor(images=picture, text=wanted)
    assert set(batch) == set(by_hand)
    assert all((batch[key] == by_hand[key]).all() for key in batch)
    with pytest.raises(ValueError, match="role 'system'"):
        processor.apply_chat_template([{"role": "system", "content": "x"}])


def _encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures():
    """Return pictures of many kinds, opened, as bytes and as arrays."""
    rng = np.random.default_rng(3)
    wide, tall = exports.picture(61, 40), exports.picture(7, 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (20, 33)).astype(np.uint16))
    return {
        "wide": wide,
        "tall": tall,
        "square": exports.picture(28, 28),
        "line": exports.picture(1, 50),
        "alpha": wide.convert("RGBA"),
        "palette": _encoded(wide.quantize(16), "PNG", transparency=3),
        "grey": wide.convert("L"),
        "cmyk": _encoded(wide.convert("CMYK"), "JPEG"),
        "turned": _encoded(wide, "JPEG", exif=exif),
        "deep": deep,
        "float": Image.fromarray(rng.random((20, 33)).astype(np.float32)),
        "array": np.asarray(tall),
    }


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_pixels_equal_ours(auto, fit):
    cfg = whole(exports.settings(image_fit=fit))
    processor = auto(cfg, tiny_model.words())
    for name, source in pictures().items():
        text = processor.conversation("what?")
        found = processor(images=[source], text=text, return_tensors="np")["pixel_values"][0]
        square = image_lib.to_square(image_lib.open_image(source), 28, fit)
        wanted = np.asarray(clip_vit.normalise(square[None], "float32"))[0].transpose(2, 0, 1)
        # one rounding in float32, where the compiler divides by multiplying
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(30, 20), (17, 33), (24, 24), (1, 9), (50, 3)])
def test_nodes_equal_ours(auto, fit, size):
    cfg = whole(exports.settings(image_fit=fit))
    words, picture = tiny_model.words(), exports.picture(*size[::-1])
    processor = auto(cfg, words)
    for seed in range(12):
        count = seed % 8
        labels = ["red circle", "a  ring", "", "12", "x", "big", "square"][:count]
        given = exports.entities(count, size, labels=labels if seed % 3 else [], seed=seed)
        batch = processor(
            images=[picture], text=[processor.conversation("what?")], entities=[given]
        )
        row = inputs.Row([inputs.human("what?")], picture, given)
        nodes = inputs.prepare(row, cfg, words).nodes
        wanted = graphs.stack([nodes], [[]], cfg.model, num_runs=1)
        if not len(nodes.boxes):
            assert "node_valid" not in batch
            continue
        for key in ("coverage", "boxes", "label_ids", "valid"):
            np.testing.assert_array_equal(batch[f"node_{key}"], getattr(wanted, key), key)
        assert bool(batch["needs_labels"]) == (not any(given.labels))


def test_entities_may_be_plain_dictionaries(processor):
    given = exports.entities(4, (20, 30), labels=list("abcd"), seed=1)
    plain = {
        "boxes": given.boxes.tolist(),
        "masks": given.coded_masks(),
        "labels": given.labels,
        "scores": given.scores.tolist(),
    }
    text, picture = processor.conversation("what?"), exports.picture(30, 20)
    found = [processor(images=picture, text=text, entities=item) for item in (given, plain)]
    assert all((found[0][key] == found[1][key]).all() for key in found[0])
    only = graphs.Entities.from_boxes(given.boxes, (20, 30)), {"boxes": given.boxes}
    found = [processor(images=picture, text=text, entities=item) for item in only]
    assert all((found[0][key] == found[1][key]).all() for key in found[0])


def test_a_question_can_be_given_to_the_graph(processor):
    args = {"images": exports.picture(30, 20), "entities": exports.entities(2, (20, 30))}
    text = processor.conversation("what?")
    found = processor(text=text, prompts="where is the ring?", **args)
    heard = found["prompt_ids"][0, 0][found["prompt_valid"][0, 0]].tolist()
    wanted = conversation.graph_prompt("where is the ring?", tiny_model.words())
    assert heard == wanted[: exports.settings().graph.prompt_tokens]


def test_images_belong_to_the_texts_that_show_them(processor):
    texts = [processor.conversation(q, has_image=q != "hello") for q in ("one", "hello", "two")]
    first, second = exports.picture(30, 20, 1), exports.picture(30, 20, 2)
    found = processor(images=[first, second], text=texts)
    rows = processor(images=[first, None, second], text=texts)
    assert (found["pixel_values"] == rows["pixel_values"]).all()
    assert (found["pixel_values"][1] == 0).all()
    assert "pixel_values" not in processor(text=texts[1])


MASKS = np.zeros((1, 20, 30), bool)
BOX = [[0, 0, 9, 9]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "every text with <image> needs one image"),
        ({"images": [None]}, "has <image> but no image"),
        ({"text": "USER: hello ASSISTANT:"}, "has an image but no <image>"),
        ({"images": b"no picture"}, "cannot be decoded"),
        ({"text": []}, "at least one text"),
        ({"entities": [None, None]}, "do not fit 1 texts"),
        ({"prompts": ["a", "b"]}, "2 prompts do not fit"),
        ({"padding_side": "top"}, "use left or right"),
        ({"entities": {"boxes": BOX, "masks": MASKS[:, :9]}}, r"\[9, 30\], but the image has"),
        ({"entities": {"boxes": BOX, "masks": MASKS.astype(int)}}, "use bool"),
        ({"entities": {"boxes": BOX * 2, "masks": MASKS}}, "1 masks, 2 boxes"),
        ({"entities": {"boxes": BOX, "labels": ["a", "b"]}}, "2 labels"),
        ({"entities": {"boxes": [[0, 0, np.nan, 1]]}}, "not finite"),
        (
            {"entities": {"boxes": BOX, "masks": [{"size": [20, 30], "counts": [3, 4]}]}},
            "does not cover the image",
        ),
    ],
)
def test_bad_input_is_named(processor, change, message):
    good = {"images": exports.picture(30, 20), "text": processor.conversation("what?")}
    with pytest.raises(ValueError, match=message):
        processor(**good | change)


def test_boxes_stay_exact_in_a_short_type(processor):
    torch = pytest.importorskip("torch", reason="types of tensors")
    args = {"images": exports.picture(30, 20), "entities": exports.entities(2, (20, 30))}
    batch = processor(text=processor.conversation("what?"), **args)
    boxes = batch["node_boxes"].clone()
    moved = batch.to("cpu", torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(moved["node_boxes"], boxes)
    assert (boxes.bfloat16() != boxes).any()


def test_rows_of_different_length_need_padding(processor):
    texts = [processor.conversation(q, has_image=False) for q in ("a", "a longer one")]
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=texts, padding=False)


def test_a_graph_that_follows_the_question_takes_no_other(auto):
    cfg = whole(exports.settings(graph__placement="after_question"))
    processor = auto(cfg, tiny_model.words())
    text = processor.conversation("what?")
    with pytest.raises(ValueError, match="follows each question"):
        processor(images=exports.picture(30, 20), text=text, prompts="why?")

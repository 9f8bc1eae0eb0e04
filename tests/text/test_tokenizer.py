import os
import pickle
import subprocess
import sys

import pytest

from sgqlm import errors
from sgqlm.text import tokenizer
from tests import paths
from tests.text import helpers

TEXTS = (
    "",
    "hello world",
    "two  spaces, three   spaces",
    "  leading and trailing  ",
    "\nline\n\nbreaks\t",
    "café – «où» 图片 🐼 €12.50",
    "e\u0301 combining \u3000 wide",
    "nul\x00byte\r\n",
    "USER: what? ASSISTANT: that VUSER:",
    "xyz</s>USER: q ASSISTANT: a</s> b</s>",
    "<s>a</s></s><unk> c",
)


@pytest.mark.parametrize("text", TEXTS)
def test_decode_gives_back_what_was_encoded(text):
    if "xyz" not in text:  # a run of letters after </s> may lose a piece the small model lacks
        found = helpers.trained()
        assert found.decode(found.encode(text, bos=False), skip_special=False) == text
    for legacy, rule in ((False, "4.31"), (True, "4.31"), (False, "4.37")):
        found = helpers.llama(legacy, rule)
        assert found.decode(found.encode(text, bos=False), skip_special=False) == text


@pytest.mark.parametrize("text", TEXTS)
def test_starts_are_the_first_characters_of_the_tokens(text):
    found = helpers.trained()
    ids, starts = found.encode_with_starts(text)
    assert starts == sorted(starts)
    for token, start, end in zip(ids, starts, [*starts, len(text)][1:], strict=True):
        if start < end and token != found.pad_id:
            assert text[start:end].endswith(found.surface([token]).strip(" \ufffd"))


@pytest.mark.parametrize(
    ("legacy", "rule", "expected"),
    [
        (False, "4.31", [1, 263, 2, 3308, 1001, 29901, 289, 2, 29871, 319]),
        (True, "4.31", [1, 263, 2, 3148, 1001, 29901, 289, 2, 29871, 319]),
        (False, "4.37", [1, 263, 2, 11889, 29901, 289, 2, 319]),
    ],
)
def test_text_after_a_special_token_follows_the_rule(legacy, rule, expected):
    assert helpers.llama(legacy, rule).encode("a</s>USER: b</s> A") == expected


def test_strings_of_the_llava_program():
    for case in helpers.read("llava/llava_prompts.json")["image_token"]:
        if "<image>" not in case["prompt"]:
            assert helpers.llama().encode(case["prompt"]) == case["ids"]


def test_role_words_are_one_piece_each():
    found = helpers.trained()
    pieces = [found.surface([i]) for i in found.encode("a USER: the ASSISTANT:", bos=False)]
    assert pieces == [" a", " USER", ":", " the", " ASSISTANT", ":"]
    after_end = found.encode("</s>USER:</s>VUSER:</s> ASSISTANT:", bos=False)
    assert [found.surface([i]) for i in after_end] == (
        ["</s>", "USER", ":", "</s>", "VUSER", ":", "</s>", " ", " ASSISTANT", ":"]
    )


def test_words_of_the_corpus_become_pieces():
    found = helpers.trained()
    for word in ("what", "colour", "square", "triangle", "blue", "there"):
        assert len(found.encode(f"is {word} it", bos=False)) == 3
    assert [found.surface([i]) for i in found.encode("45", bos=False)] == [" ", "4", "5"]


def test_training_is_a_pure_function_of_the_distinct_lines():
    first = tokenizer.train(helpers.CORPUS, 480)
    again = tokenizer.train(reversed((*helpers.CORPUS, *helpers.CORPUS)), 480)
    assert first == again
    assert tokenizer.load(first).vocab_size == 480
    assert tokenizer.train([*helpers.CORPUS, "quite another line"], 480) != first


def test_training_does_not_depend_on_the_hash_seed():
    code = """
import hashlib
from sgqlm.text import tokenizer
rare = ["".join(chr(0x4E00 + 40 * line + i) for i in range(40)) for line in range(40)]
print(hashlib.sha256(tokenizer.train([*rare, "what is the red ring"], 480)).hexdigest())
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=paths.ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_small_corpus_lowers_the_vocabulary():
    assert tokenizer.load(tokenizer.train(["a cat"], 4000)).vocab_size < 300


def test_a_corpus_with_many_characters_leaves_room_for_words():
    rare = "".join(chr(0x4E00 + i) for i in range(3000))
    found = tokenizer.load(tokenizer.train([rare, *helpers.CORPUS * 3], 480))
    assert found.decode(found.encode(rare, bos=False)) == rare
    assert len(found.encode("the", bos=False)) == 1


@pytest.mark.parametrize(("texts", "size"), [([], 640), (["\n", " "], 640), (["a cat"], 270)])
def test_training_without_text_or_room_is_refused(texts, size):
    with pytest.raises(errors.SgqlmError, match="no tokenizer can be trained"):
        tokenizer.train(texts, size)


def test_an_added_token_is_special_and_takes_the_next_id():
    plain = helpers.trained()
    found = plain.with_token("[vusr]")
    assert found.vocab_size == plain.vocab_size + 1
    assert found.encode("[vusr]: what", bos=False)[0] == plain.vocab_size
    assert found.decode([plain.vocab_size, *plain.encode("what", bos=False)]) == "what"
    assert plain.vocab_size not in plain.encode("[vusr]: what")
    assert found.with_token("[vusr]") is found


def test_digest_names_model_and_rules():
    model = helpers.trained().model_bytes
    digests = {
        tokenizer.load(model).digest,
        tokenizer.load(model, legacy=True).digest,
        tokenizer.load(model, rule="4.37").digest,
        tokenizer.load(model).with_token("[vusr]").digest,
        tokenizer.load(tokenizer.train(["a cat"], 400)).digest,
    }
    assert len(digests) == 5
    assert tokenizer.load(model).digest == helpers.trained().digest


def test_pickle_keeps_everything():
    found = helpers.trained().with_token("[vusr]")
    copy = pickle.loads(pickle.dumps(found))
    assert (copy.digest, copy.encode("a [vusr] b")) == (found.digest, found.encode("a [vusr] b"))


def test_decode_leaves_out_what_is_no_text():
    found = helpers.trained()
    words = found.encode("blue star", bos=False)
    ids = [1, -200, -201, *words, 10**6, 2]
    assert found.decode(ids) == "blue star"
    assert found.decode(ids, skip_special=False) == "<s><image><graph>blue star<1000000></s>"


def test_a_file_that_is_no_model_is_named(tmp_path):
    broken = tmp_path / "tokenizer.model"
    broken.write_bytes(b"not a model")
    for path in (broken, tmp_path / "missing.model"):
        with pytest.raises(errors.SgqlmError, match="cannot be loaded") as caught:
            tokenizer.load(path)
        assert caught.value.where == str(path)


def test_loading_by_path_and_by_content_agree(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(helpers.trained().model_bytes)
    assert tokenizer.load(path).digest == tokenizer.load(str(path)).digest


def test_vocabulary_of_llama():
    found = helpers.llama()
    assert (found.vocab_size, found.bos_id, found.eos_id, found.pad_id) == (32000, 1, 2, 0)
    assert paths.fixture("llama_tokenizer.model").read_bytes() == found.model_bytes

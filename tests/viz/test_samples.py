import numpy as np
import pytest
from PIL import Image

from sgqlm.data import graphs
from sgqlm.text import conversation, templates
from sgqlm.text import tokenizer as tokenizers
from sgqlm.viz import samples

TURNS = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A naïve 🦊 fox."},
    {"from": "human", "value": "Is it red?"},
    {"from": "gpt", "value": "Yes."},
]


@pytest.fixture(scope="module")
def tokenizer():
    corpus = ["What is it?", "A fox.", "Is it red?", "Yes.", templates.get("v1_sq").system]
    return tokenizers.load(tokenizers.train(corpus, 400))


def make(tokenizer, *, vusr_turns=(), nodes=3):
    encoded = conversation.encode(TURNS, "v1_sq", tokenizer=tokenizer, vusr_turns=vusr_turns)
    box = np.array([[2, 2, 20, 20]], np.float32)
    entities = graphs.Entities.from_boxes(np.repeat(box, 5, 0), (40, 60))
    system = templates.get("v1_sq").system
    image = Image.new("RGB", (60, 40), "navy")
    return samples.Sample("fox", image, entities, encoded, 16, nodes, system=system)


def test_pieces_spell_the_conversation_with_its_kinds(tokenizer):
    found = samples.pieces(make(tokenizer, vusr_turns=(2,)), tokenizer)

    def spelled(kind):
        return "".join(text for text, k in found if k == kind)

    assert spelled("answer") == " A naïve 🦊 fox.</s> Yes.</s>"
    assert spelled("question") == " Is it red?</s>"
    assert spelled("place") == "image x 16graph x 3"
    assert "What is it?" in spelled("prompt") and "\ufffd" not in spelled("prompt")


def test_counts_are_those_of_the_expanded_sequence(tokenizer):
    sample = make(tokenizer, vusr_turns=(2,))
    counts, encoded = sample.counts(), sample.encoded
    assert counts["all"] == len(conversation.expand(encoded, 16, 3).tokens)
    assert counts["answer"] + counts["question"] == sum(i != -100 for i in encoded.labels)
    assert counts["question"] == len(tokenizer.encode("Is it red?", bos=False)) + 1


def test_text_marks_what_is_trained(tokenizer):
    shown = samples.text(make(tokenizer, vusr_turns=(2,)), tokenizer)
    assert "ASSISTANT:[answer: A naïve 🦊 fox.</s>]" in shown
    assert "[question: Is it red?</s>]" in shown
    assert "<image x 16><graph x 3>" in shown
    assert "5 entities; the 3 best become graph tokens" in shown
    assert "\x1b[33m Is it red?</s>\x1b[0m" in samples.text(
        make(tokenizer, vusr_turns=(2,)), tokenizer, colour=True
    )


def test_the_page_shows_everything_and_folds_the_system_text(tokenizer):
    document = samples.page("Data <x>", [make(tokenizer), make(tokenizer, nodes=0)], tokenizer)
    assert document.count("data:image/") == 2 and "Data &lt;x&gt;" in document
    assert "the graph is asked: What is it?" in document
    card = document.split("</section>")[0]
    folded, shown = card.split("</details>")
    assert "curious" in folded and "curious" not in shown
    assert 'class="answer"' in shown and 'class="place"' in shown

"""Probes find an export whose tokenizer or template does not give the ids of the training."""

import json
import sys

import pytest

from sgqlm import errors, types
from sgqlm.convert import probe
from tests import tiny_model
from tests.convert import other_python, test_llava_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "folder"
    return test_llava_folder.write(folder, test_llava_folder.settings(), tiny_model.words())


def count(folder, whole=None, python=sys.executable):
    whole = whole or test_llava_folder.settings()
    return probe.count_differences(folder, whole, tiny_model.words(), python=python)


def test_there_are_two_hundred_different_probes():
    found = probe.prompts()
    assert len(found) == 200
    assert len(set(map(repr, found))) == 200
    assert found == probe.prompts()
    assert len(probe.asked_prompts()) == 20
    values = [turn["value"] for item in found for turn in item.turns]
    for part in ("  ", "\n\n", "\t", "\r\n", "。", "🙂", "\u0301", "م", "def f", "0123"):
        assert any(part in value for value in values), part
    assert any(value.startswith(" ") for value in values)
    assert any(value.endswith(" ") for value in values)
    middles = [v for v in values if "<image>" in v and not v.startswith("<image>")]
    assert len(middles) >= 40
    assert sum(len(item.turns) >= 3 for item in found) == 50
    assert sum(not item.has_image for item in found) >= 60


def test_chat_messages_have_text_and_images_in_their_order():
    turns = ({"from": "human", "value": "a <image>b"}, {"from": "gpt", "value": "c"})
    assert probe.messages(probe.Probe(turns, True)) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a "},
                {"type": "image"},
                {"type": "text", "text": "b"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ]


@pytest.mark.parametrize("major", test_llava_folder.MAJORS)
def test_an_export_has_no_differences(folder, major, python_with):
    report = count(folder, python=python_with(major))
    assert report.examples == ()
    assert (report.total, report.different) == (220, 0)
    assert report.checked_with.startswith(f"transformers {major or 5}")


@pytest.mark.slow
def test_differences_are_found(folder, tmp_path):
    """One spoilt folder and one other model: the ids, the placeholders and errors all count."""
    other_python.having("transformers")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (folder / "chat_template.jinja").read_text()
    spoilt = template.replace("'ASSISTANT:'", "'ASSISTANT: ' if images else 'ASSISTANT:'")
    spoilt = spoilt.replace("{%- for message in turns", "{%- set images = turns | length == 3 -%}\n"
                            "{%- for message in turns")  # fmt: skip
    spoilt = spoilt.replace("'vuser' -%}\n{%- if text", "'nobody' -%}\n{%- if text")
    (tmp_path / "chat_template.jinja").write_text(spoilt)
    report = count(tmp_path)
    three = sum(len(p.turns) == 3 and p.open_role == "assistant" for p in probe.prompts())
    asked = sum(bool(p.vusr_turns) for p in probe.asked_prompts())
    assert report.different == three + asked == 25 + 19
    assert len(report.examples) == 5
    assert "became" in report.examples[0]

    processor = json.loads((folder / "processor_config.json").read_text())
    processor["num_additional_image_tokens"] = 0
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    (tmp_path / "chat_template.jinja").write_text(template)
    report = count(tmp_path)
    images = [p for p in probe.prompts() + probe.asked_prompts() if p.has_image]
    assert report.different == len(images)
    assert "[3] image tokens, not [4]" in report.examples[0]


def test_without_transformers_nothing_is_claimed(folder, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')  # without site-packages
    bare.chmod(0o755)
    report = count(folder, python=str(bare))
    assert report.different is None
    assert report.checked_with == "not checked: No module named 'transformers'"


@pytest.mark.slow
def test_a_folder_that_does_not_open_is_an_error(tmp_path):
    other_python.having("transformers")
    with pytest.raises(errors.SgqlmError, match="cannot open the exported folder") as caught:
        count(tmp_path)
    assert caught.value.code == errors.CHECKPOINT
    assert caught.value.why


def test_rows_are_compared_by_ids_lengths_and_errors():
    item = probe.Probe(({"from": "human", "value": "x"},), True)
    image = types.IMAGE_TOKEN_ID
    cases = [
        ({"ids": [1, image, 7], "images": [4]}, "at 2 [image, 5] became [image, 7]"),
        ({"ids": [1, image], "images": [4]}, "at 2"),
        ({"ids": [1, image, 5], "images": [3]}, "[3] image tokens, not [4]"),
        ({"error": "ValueError: no"}, "ValueError: no"),
    ]
    for row, message in cases:
        found = probe.difference(item, [1, image, 5], [4], row)
        assert message.replace("image,", f"{image},") in found
    assert probe.difference(item, [1, image, 5], [4], {"ids": [1, image, 5], "images": [4]}) is None

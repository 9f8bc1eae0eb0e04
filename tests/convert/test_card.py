"""The model card: a head that hubs accept, honest counts, no path of the machine."""

import json

import pytest

from sgqlm.convert import card, probe

MANIFEST = {
    "format": "llava",
    "source": "/data/someone/runs/checkpoints/instruct",
    "step": 1200,
    "config_digest": "0123abcd",
    "versions": {"sgqlm": "0.1.0", "jax": "0.10.2"},
    "base": {"path": "/data/someone/vicuna-7b-v1.5", "id": "lmsys/vicuna-7b-v1.5", "digest": "ff"},
    "dropped": ["prototypes", "graph"],
    "dtype": "bfloat16",
    "created_by": "sgqlm 0.1.0",
}
GOOD = probe.ProbeReport(200, 0, (), "transformers 5.23.0")


def make(kind="llava", notes=("Mind the gap.",), found=GOOD, **changes):
    return card.model_card({**MANIFEST, **changes}, kind=kind, notes=notes, probe=found)


def head(text):
    first, middle, _ = text.split("---\n", 2)
    assert first == ""
    lines = [line.split(": ", 1) for line in middle.splitlines()]
    return {key: json.loads(value) for key, value in lines}


@pytest.mark.parametrize("kind", ["llava", "peft", "sgqlm"])
def test_the_head(kind):
    found = head(make(kind))
    assert found["license"] == "llama2"
    assert found["library_name"] == ("peft" if kind == "peft" else "transformers")
    assert found["pipeline_tag"] == "image-text-to-text"
    assert found["base_model"] == "lmsys/vicuna-7b-v1.5"
    assert found["base_model_relation"] == ("adapter" if kind == "peft" else "finetune")
    assert {"sgqlm", "llava"} <= set(found["tags"])
    assert ("scene-graph" in found["tags"]) == (kind == "sgqlm")
    yaml = pytest.importorskip("yaml", reason="a second reader of the head")
    assert yaml.safe_load(make(kind).split("---\n")[1]) == found


@pytest.mark.parametrize("kind", ["llava", "peft", "sgqlm"])
def test_the_body_says_where_it_comes_from_and_names_no_folder_of_its_maker(kind):
    text = make(kind)
    assert "/data" not in text
    assert "someone" not in text
    for part in ("| step | 1200 |", "0123abcd", "jax 0.10.2, sgqlm 0.1.0", "bfloat16", "instruct"):
        assert part in text
    assert "- Mind the gap." in text
    assert "`prototypes`: trained, and not part of this folder" in text
    assert "## Limits" in text
    assert "ASSISTANT:" in text or kind == "sgqlm"
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")


def test_what_each_kind_needs_to_load():
    assert "trust_remote_code" not in make("llava")
    text = make("sgqlm")
    assert '"trust_remote_code": True' in text
    assert "revision" in text
    assert "`entities`" in text
    assert "`prompts`" in text
    assert 'base, folder = "lmsys/vicuna-7b-v1.5", "FOLDER"' in make("peft")


def test_counts_of_probes():
    assert "0 of 200 probe conversations" in make()
    assert "**" not in make().split("## Prompt format")[1].split("## What")[0]
    bad = probe.ProbeReport(200, 3, ("'a\nb': at 1", "c"), "transformers 4.57.6")
    text = make(found=bad)
    assert "**3 of 200 probe conversations" in text
    assert "    'a b': at 1\n    c" in text
    missing = probe.ProbeReport(200, None, (), "not checked: No module named 'transformers'")
    text = make(found=missing)
    assert "of 200" not in text
    assert "not compared" in text
    assert "No module named" in text
    assert "not compared" in make(found=None)


@pytest.mark.parametrize(
    ("base", "is_llama_2"),
    [
        ("lmsys/vicuna-7b-v1.5", True),
        ("meta-llama/Llama-2-7b-hf", True),
        ("/models/llava-1.5-7b-hf", True),
        ("meta-llama/Meta-Llama-3-8B", False),
        ("llava-hf/llava-v1.6-mistral-7b-hf", False),
        ("TinyTower/small", False),
    ],
)
def test_the_licence_follows_the_base(base, is_llama_2):
    text = make(base=base)
    assert ("LLAMA 2 Community License" in text) == is_llama_2
    assert (card.notice(base) is not None) == is_llama_2
    assert (head(text)["license"] == "llama2") == is_llama_2
    name = card.base_name(base)
    assert name in text
    assert is_llama_2 or f"The licence of {name} applies" in text


def test_a_model_without_a_base():
    text = make(base=None, dropped=[], notes=[])
    assert "base_model" not in head(text)
    assert "trained from scratch" in text
    assert "Whoever publishes these weights chooses" in text
    assert "## Left out" not in text
    assert "## What to mind" not in text
    assert "base_model" not in head(make(base="/models/my tower"))
    assert "the licence of my tower applies" in make(base="/models/my tower").lower()


def test_missing_entries_leave_their_lines_out():
    text = card.model_card({}, kind="llava", notes=(), probe=None)
    assert "| step |" not in text
    assert "None" not in text

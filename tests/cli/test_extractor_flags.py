"""Flags of the entity extractor."""

import argparse
import dataclasses

import pytest

from sgqlm import errors
from sgqlm.cli import extractor_flags
from sgqlm.entities import settings


def _read(*words):
    parser = argparse.ArgumentParser()
    extractor_flags.add(parser)
    return extractor_flags.read(parser.parse_args(words))


def test_without_flags_it_is_the_preset():
    assert _read() == settings.preset("regions")
    for name in settings.NAMES:
        assert _read("--extractor", name) == settings.preset(name)


def test_every_setting_has_a_flag_that_changes_it_alone():
    others = {
        "name": "fast", "tagger": "fixed", "detector": "owlv2", "segmenter": "box",
        "separator": ", ", "views": ("16x16:pad", "8x8:crop@224"), "dtype": "float32",
    }  # fmt: skip
    for field in dataclasses.fields(settings.ExtractorConfig):
        value = others.get(field.name)
        if value is None:
            kind = type(field.default)
            value = {str: "text", bool: not field.default, int: 7, float: 0.125}[kind]
        flag = "--extractor" if field.name == "name" else "--" + field.name.replace("_", "-")
        words = [flag] if value is True else [flag, str(value)]
        if isinstance(value, tuple):
            words = [flag, ",".join(value)]
        if field.name == "name":
            assert _read(*words) == settings.preset(value)
        else:
            base = settings.preset("paper")
            want = dataclasses.replace(base, **{field.name: value})
            assert _read("--extractor", "paper", *words) == want != base


def test_a_wrong_name_is_refused_with_the_nearest():
    with pytest.raises(errors.SgqlmError, match="grounding_din") as caught:
        _read("--extractor", "paper", "--detector", "grounding_din")
    assert "grounding_dino" in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("--box-threshold=.3",),
        ("--extractor=sam3", "--detector=owlv2"),
        ("--extractor=sam3", "--segmenter=box"),
        ("--extractor=paper", "--segmenter=box", "--segmenter-weights=x"),
        ("--extractor=custom", "--tagger=fixed", "--tagger-weights=x"),
        ("--extractor=custom", "--detector=owlv2", "--separator=, "),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(words):
    with pytest.raises(errors.SgqlmError, match="makes no use of --") as caught:
        _read(*words)
    assert caught.value.where in str(words)

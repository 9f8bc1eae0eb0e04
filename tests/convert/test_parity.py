"""The parity gate, and ten mistakes of a converter that it must not let pass."""

import dataclasses
import warnings

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.convert import hf, leaves, parity, sq_llava
from sgqlm.models import vlm
from tests.convert import release
from tests.models import test_llava

torch = pytest.importorskip("torch", reason="the gate compares with torch")
pytest.importorskip("transformers", reason="the gate compares with transformers")


class Case:
    """A folder, what torch makes of it, and how it is opened."""

    def __init__(self, kind, folders, open_it):
        self.kind, self.folders, self.open = kind, folders, open_it
        with open_it() as found:
            self.job = parity.make_job(kind, found, folders)
            self.given = parity.inputs(found.config, self.job)
        self.theirs = parity.reference(self.job, self.given)

    def gaps(self, mutate=lambda found: None):
        with self.open() as found:
            mutate(found)
            return parity.gaps(found, self.job, self.given, self.theirs)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test_llava.make(folder, torch, is_tied=False, activation="quick_gelu", layer=-2)
    return Case("llava", {"source": folder}, lambda: hf.open_llava(folder))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = release.copy(tmp_path_factory.mktemp("release") / "all") / release.NAME
    return Case("sq-llava", {"source": folder}, lambda: sq_llava.open_release(folder))


def test_right_models_pass(llava, released):
    for case in (llava, released):
        for gap in case.gaps():
            assert gap.is_equal, gap
            assert gap.difference < 1e-5 * max(1.0, gap.largest)


def change(path, function):
    def mutate(found):
        leaf = found.leaves[path]
        found.leaves[path] = leaves.of_array(np.ascontiguousarray(function(leaf.load())))

    return mutate


def setting(part, **values):
    def mutate(found):
        changed = dataclasses.replace(getattr(found.config, part), **values)
        found.config = dataclasses.replace(found.config, **{part: changed})

    return mutate


def interleaved(kernel):
    """Lay the two halves of every head side by side, as other rotary code has them."""
    layers, width, out = kernel.shape
    return kernel.reshape(layers, width, out // 8, 2, 4).swapaxes(3, 4).reshape(kernel.shape)


def one_layer_less(found):
    setting("vision", feature_layer=-3)(found)
    for path in list(found.leaves):
        if path.startswith("vision/blocks/"):
            change(path, lambda x: x[:1])(found)


def tied(found):
    setting("llm", tie_embeddings=True)(found)
    del found.leaves["llm/head/kernel"]


MISTAKES = {
    "transposed kernel": change("vision/blocks/attn/v/kernel", lambda x: x.swapaxes(1, 2)),
    "rotary halves interleaved": change("llm/blocks/attn/q/kernel", interleaved),
    "bias dropped": change("projector/fc1/bias", np.zeros_like),
    "epsilon": setting("llm", rms_norm_eps=1e-5),
    "kind of gelu": setting("vision", activation="gelu"),
    "feature layer off by one": one_layer_less,
    "head tied": tied,
    "vocabulary padded in front": change("llm/embed/embedding", lambda x: np.roll(x, 1, 0)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_converter_fail(llava, mistake):
    assert not all(gap.is_equal for gap in llava.gaps(MISTAKES[mistake]))


def test_a_class_token_that_is_kept_fails(llava, monkeypatch):
    encode = vlm.encode_images

    def shifted(*args, **kwargs):
        return np.roll(np.asarray(encode(*args, **kwargs)), 1, 1)

    monkeypatch.setattr(parity.vlm, "encode_images", shifted)
    assert not all(gap.is_equal for gap in llava.gaps())


@pytest.mark.parametrize("part", ["llm_lora", "vision_lora"])
def test_another_scale_of_adapters_fails(released, part):
    found = {gap.name: gap.is_equal for gap in released.gaps(setting(part, alpha=7.9))}
    assert found == {"logits": part != "llm_lora", "features": part != "vision_lora"}


@pytest.mark.slow
def test_the_gate_stops_an_import(llava):
    with llava.open() as found:
        MISTAKES["bias dropped"](found)
        with pytest.raises(errors.SgqlmError, match="does not compute what the original") as caught:
            parity.check(found, kind="llava", folders=llava.folders)
    assert "logits" in caught.value.why
    with llava.open() as found, pytest.raises(errors.SgqlmError, match="no original program"):
        parity.make_job("peft", found, llava.folders)

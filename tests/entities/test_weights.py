"""Weights: found, named by their content, and refused with a reason."""

import pytest

from sgqlm import errors
from sgqlm.entities import weights

torch = pytest.importorskip("torch", reason="the entities extra is not installed")


def test_a_folder_a_file_and_a_hub_id_are_taken(tmp_path):
    file = tmp_path / "ram.pth"
    file.write_bytes(b"x")
    for given in (str(tmp_path), str(file), "IDEA-Research/grounding-dino-tiny"):
        assert weights.locate(given, "--detector-weights") == given


@pytest.mark.parametrize("given", ["", "no/such/folder", "folder", "a b/c"])
def test_what_is_neither_is_refused_with_the_flag(given):
    with pytest.raises(errors.SgqlmError, match="weights") as caught:
        weights.locate(given, "--detector-weights")
    assert caught.value.where == "--detector-weights" and "hub id" in caught.value.fix


def test_the_identity_is_that_of_the_content_not_of_the_place(tmp_path):
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"123")
    (tmp_path / "a/model/README.md").write_text("says nothing of the weights")
    first, second = (weights.identity(str(tmp_path / n)) for n in ("a/model", "b/model"))
    assert first == second and len(first["sha256"]) == 64
    (tmp_path / "b/model/model.safetensors").write_bytes(b"124")
    assert weights.identity(str(tmp_path / "b/model")) != first
    assert weights.identity("owner/name") == {"id": "owner/name"}


def test_devices_and_types():
    cpu = weights.device("cpu")
    assert weights.device("auto").type in ("cpu", "cuda")
    assert weights.dtype("auto", cpu) is torch.float32
    assert weights.dtype("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(errors.SgqlmError, match="no device 'tpu9'"):
        weights.device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(errors.SgqlmError, match="no device 'cuda'"):
            weights.device("cuda")


def test_a_folder_that_is_no_model_is_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(errors.SgqlmError, match="cannot be loaded") as caught:
        weights.load(transformers.AutoConfig.from_pretrained, str(tmp_path), "--segmenter-weights")
    assert caught.value.where == "--segmenter-weights" and caught.value.why
    assert caught.value.code == errors.CHECKPOINT

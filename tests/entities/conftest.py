"""Tiny instances of every neural backend, saved once a session in the layout of real ones."""

import pathlib

import pytest

DETECTORS = ("ram_plus", "ram", "grounding_dino", "mm_grounding_dino", "owlv2")
SEGMENTERS = ("sam", "sam_hq", "sam2", "sam3")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> pathlib.Path:
    """Return a folder with one folder a backend: `tiny / "grounding_dino"`."""
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.set_num_threads(1)  # models this small lose a third of the time to more threads
    pytest.importorskip("transformers", reason="needs transformers")
    from tests.entities import tiny_detectors, tiny_segmenters

    folder = tmp_path_factory.mktemp("tiny")
    for module, names in ((tiny_detectors, DETECTORS), (tiny_segmenters, SEGMENTERS)):
        for name in names:
            getattr(module, name)(folder / name)
    return folder

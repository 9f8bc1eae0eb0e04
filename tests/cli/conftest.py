"""What several tests of `sgqlm eval` share: a trained tiny model and small benchmarks."""

import pytest

from sgqlm import config
from sgqlm.train import checkpoint
from tests import tiny_model
from tests.evals import benchmark_files as files


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the work directory of a tiny model."""
    model, folder = tiny_model.make(), tmp_path_factory.mktemp("tiny")
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    words = model.tokenizer.model_bytes
    checkpoint.save(folder / "checkpoints", meta, model.params, tokenizer=words)
    return folder


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    """Return a folder of benchmarks of ours."""
    return files.make(tmp_path_factory.mktemp("ours"), files.OURS)

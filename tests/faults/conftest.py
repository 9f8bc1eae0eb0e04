import shutil

import pytest

from sgqlm.cli import main
from tests.faults import runs


@pytest.fixture(scope="session")
def plan(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("plan")
    return runs.write(folder / "plan.json", runs.settings(folder))


@pytest.fixture(scope="session")
def whole(plan, tmp_path_factory):
    """The work directory of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main.main(["train", plan, f"--config.train.workdir={folder}"]) == 0
    return folder


@pytest.fixture
def halfway(whole, tmp_path):
    """The work directory of a run that was killed after its second checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / f"00-align-{runs.STEPS:07d}")
    return folder

import pytest

from sgqlm import errors
from sgqlm.cli import train
from tests import paths


def test_help(capsys):
    assert train.run(["--help"]) == errors.OK
    assert "--config=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--confg=x"], "unknown argument"),
        ([], "no stage"),
        ([f"--config={paths.ROOT}/configs/base.py", "--config.train.onyl=a"], "train.onyl"),
        ([f"--config={paths.ROOT}/configs/base.py:huge"], "no model preset"),
        ([f"--config={paths.ROOT}/configs/base.py", "--config.train.only=tune"], "unknown stage"),
    ],
)
def test_mistakes_stop_before_anything_is_made(words, message, tmp_path):
    words = [*words, f"--config.train.workdir={tmp_path / 'run'}"]
    with pytest.raises(errors.SgqlmError, match=message) as caught:
        train.run(words)
    assert caught.value.code == errors.USAGE
    assert not (tmp_path / "run").exists()

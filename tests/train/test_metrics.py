import json

from sgqlm.train import metrics


def test_records_are_read_back_the_later_one_wins(tmp_path):
    for loss in (2.0, 1.0):
        writer = metrics.Writer(tmp_path, is_active=True, tensorboard=False)
        writer.write("train", "align", 5, {"loss": loss, "answer_loss": float("nan")})
        writer.write("eval", "align", 5, {"loss": 9.0})
        writer.close()
    with (tmp_path / metrics.FILE).open("a") as stream:
        stream.write('{"kind": "train", "sta')
    records = metrics.read(tmp_path)
    assert records["align"][5]["loss"] == 1.0
    assert records["align"][5]["answer_loss"] is None
    assert metrics.read(tmp_path, "eval")["align"][5]["loss"] == 9.0
    lines = (tmp_path / metrics.FILE).read_text().splitlines()
    assert json.loads(lines[0])["kind"] == "train"


def test_other_processes_write_nothing(tmp_path):
    writer = metrics.Writer(tmp_path, is_active=False, tensorboard=True)
    writer.write("train", "align", 1, {"loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard(tmp_path):
    writer = metrics.Writer(tmp_path, is_active=True, tensorboard=True)
    writer.write("train", "align", 1, {"loss": 1.0})
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events*"))

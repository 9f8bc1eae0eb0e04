import pytest

from sgqlm.data import files


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    assert files.write(path, "é\n") == path and path.read_bytes() == "é\n".encode()
    files.write(path, b"\r\n\xff")
    assert path.read_bytes() == b"\r\n\xff"

    def fail(*given):
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        files.write(path, "other")
    assert path.read_bytes() == b"\r\n\xff" and list(path.parent.iterdir()) == [path]

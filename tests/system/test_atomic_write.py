"""A file that is written is whole or absent."""

import os
from pathlib import Path

import pytest

from sentexp.system.atomic_write import replacing, write_atomic


def test_texts_and_bytes_are_written(tmp_path):
    for content in ("süß\n", b"\x00\xff"):
        write_atomic(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    write_atomic(tmp_path / "file", "whole")
    with pytest.raises(ValueError, match="the disk is full"), replacing(tmp_path / "file") as unfinished:
        unfinished.write_text("ha")
        raise ValueError("the disk is full")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "whole"}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, rename = [], Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))

    def replace(unfinished, path):
        assert synced == [unfinished.stat().st_ino]
        assert unfinished.read_text() == "whole"
        return rename(unfinished, path)

    monkeypatch.setattr(Path, "replace", replace)
    write_atomic(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"

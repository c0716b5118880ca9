"""Compressed tables: those of every kind are read as they were, and archives that are no table are refused."""

import bz2
import gzip
import lzma
import zipfile

import pyarrow as pa
import pytest

from sentexp.config import load_config
from sentexp.data import compressed
from sentexp.data.splits import load_examples
from sentexp.data.tables import TextFormat, read_table
from sentexp.errors import UserError
from sentexp.inference.readers import open_source

WANTED = {"data.text": "text", "data.label": "label"}
ROWS = b'text,label\n"good, really",1\ncaf\xc3\xa9,0\n'


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(file, *names):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, ROWS)


STREAMS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(file):
    table = read_table(file, WANTED, TextFormat()).columns
    return list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True))


@pytest.mark.parametrize("ending", STREAMS)
def test_a_compressed_table_is_read_as_it_was(tmp_path, ending):
    file = tmp_path / f"x.csv{ending.upper()}"
    file.write_bytes(STREAMS[ending](ROWS))
    assert read(file) == [("good, really", "1"), ("café", "0")]
    with open_source(str(file)) as source:
        assert [text for chunk in source.chunks("text", 10) for text in chunk.texts] == ["good, really", "café"]


def test_a_zip_of_one_table_is_read(tmp_path):
    zipped(tmp_path / "x.zip", "data/train.csv", "__MACOSX/data/._train.csv")
    assert read(tmp_path / "x.zip") == [("good, really", "1"), ("café", "0")]


def test_a_folder_of_compressed_splits_is_read(tmp_path):
    rows = "".join(f"text number {number},{number % 2}\n" for number in range(20))
    for name, ending in (("train", ".gz"), ("test", ".bz2")):
        (tmp_path / f"{name}.csv{ending}").write_bytes(STREAMS[ending](f"text,label\n{rows}".encode()))
    examples = load_examples(load_config("data=csv", f"data.path={tmp_path}").data)
    assert examples.test.num_rows == 20
    assert examples.train.num_rows + examples.validation.num_rows == 20


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv.gz", gzip.compress(ROWS)[:-12], r"data.path=.*x.csv.gz cannot be decompressed \("),
        ("x.csv.gz", b"no gzip", r"data.path=.*x.csv.gz cannot be decompressed \("),
        ("x.csv.xz", b"no xz", r"data.path=.*x.csv.xz cannot be decompressed \("),
        ("x.csv.zst", b"no zstd", r"data.path=.*x.csv.zst cannot be decompressed \("),
        ("x.zip", b"no zip", r"data.path=.*x.zip cannot be decompressed \("),
        ("x.gz", gzip.compress(ROWS), r"x.gz has the ending '': it must be one of .csv, .tsv, .* compressed \(.gz"),
        ("x.csv.gz", gzip.compress(b""), r"data.path=.*x.csv.gz is empty"),
    ],
    ids=["cut", "no gzip", "no xz", "no zstd", "no zip", "no ending", "empty"],
)
def test_what_is_damaged_is_reported(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / name)


def test_a_zip_of_several_files_is_refused(tmp_path):
    zipped(tmp_path / "x.zip", "a.csv", "b.csv")
    with pytest.raises(UserError, match=r"x.zip holds 2 files \(a.csv, b.csv\): a zip is read if it holds one"):
        read(tmp_path / "x.zip")


def test_a_zip_with_a_password_is_reported(tmp_path):
    zipped(tmp_path / "x.zip", "a.csv")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for place, mark in ((6, b"PK\x03\x04"), (8, b"PK\x01\x02")):  # the flag that says so, of the file and in the list
        content[content.index(mark) + place] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"x.zip cannot be decompressed \(.*password"):
        read(tmp_path / "x.zip")


def test_a_few_bytes_that_stand_for_very_many_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "SUSPICIOUS", 1 << 20)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a" * (1 << 23)))
    with pytest.raises(UserError, match=r"holds more than 200 times its .* bytes: such a file is made to fill disks"):
        read(tmp_path / "x.csv.gz")


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(ROWS))
    with pytest.raises(UserError, match=r"holds more than the 0 MiB that are free for it: set TMPDIR"):
        read(tmp_path / "x.csv.gz")

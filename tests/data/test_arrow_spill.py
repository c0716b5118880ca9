"""Large tables are the same on disk as in memory, and leave no file behind."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sentexp.config import load_config
from sentexp.data import arrow_spill, delimited
from sentexp.data.arrow_spill import concat_or_spill
from sentexp.data.splits import NAMES, load_examples
from sentexp.errors import UserError


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(arrow_spill, "LARGE", 2_000)
    monkeypatch.setattr(delimited, "BLOCK", 1_000)


def spilled():
    folder = Path(os.environ["SENTEXP_CACHE"]) / "spill"
    return list(folder.iterdir()) if folder.is_dir() else []


def pieces():
    for index in range(50):
        yield pa.table({"text": pa.array([f"text {index} {row}" for row in range(10)], pa.large_string())})


def test_pieces_are_one_table(small_memory, monkeypatch):
    before = pa.total_allocated_bytes()
    on_disk = concat_or_spill(pieces())
    assert pa.total_allocated_bytes() - before < 2_000  # its values are in the mapped file
    monkeypatch.setattr(arrow_spill, "LARGE", 1 << 28)
    assert on_disk.equals(concat_or_spill(pieces()))
    assert spilled() == []


def test_a_failure_leaves_no_file(small_memory):
    def failing():
        yield from pieces()
        raise UserError("a row")

    with pytest.raises(UserError):
        concat_or_spill(failing())
    assert spilled() == []


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_large_file_gives_the_same_examples(tmp_path, ending, request):
    rows = [(f" a film number {i}, as it were " if ending != "tsv" else f"film {i} ", i % 3) for i in range(500)]
    file = tmp_path / f"x.{ending}"
    match ending:
        case "csv":
            file.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
        case "tsv":
            file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
        case "jsonl":
            file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        case "parquet":
            texts, values = zip(*rows, strict=True)
            parquet.write_table(pa.table({"text": texts, "label": values}), file, row_group_size=50)
    data = load_config(
        "data=csv", f"data.path={file}", "data.labels={0: bad, 1: null, 2: good}", "data.train_subset=100"
    ).data
    plain = load_examples(data)
    request.getfixturevalue("small_memory")
    mapped = load_examples(data)
    assert mapped.digest() == plain.digest()
    assert (mapped.left_out, mapped.stripped) == (plain.left_out, plain.stripped)
    assert plain.left_out["train"] == {"left out by data.labels": 167}
    assert [mapped.split(name).num_rows for name in NAMES] == [plain.split(name).num_rows for name in NAMES]
    assert spilled() == []


def test_a_ragged_row_of_a_large_file_is_named(tmp_path, small_memory):
    (tmp_path / "x.csv").write_text("text,label\n" + "a film,1\n" * 700 + "b,1,2\n")
    with pytest.raises(UserError, match=r"Row 701 of .*x.csv has 3 of the 2 columns"):
        load_examples(load_config("data=csv", f"data.path={tmp_path / 'x.csv'}").data)

"""The output of `predict` on disk: whole or not there, by one process at a time, gone on with where it was left."""

import csv
import io

import pytest

from sentexp.errors import UserError
from sentexp.inference.row_formats import Chunk
from sentexp.inference.writers import FileOutput, TextRows

ADDED = ["label", "probability_a", "probability_b"]


def chunk(*texts):
    return Chunk(rows=[{"text": text} for text in texts], texts=list(texts))


def said(count):
    return [["a", 0.75, 0.25]] * count


@pytest.fixture
def opened(tmp_path):
    """Return a function that opens the output of a task; all are closed at the end."""
    outputs = []

    def make(task="t", form="csv", name="out.csv"):
        outputs.append(FileOutput(tmp_path / name, form, ["text"], ADDED, ",", task))
        return outputs[-1]

    yield make
    for output in outputs:
        output.close()


def test_one_process_writes_at_a_time(opened):
    first = opened()
    with pytest.raises(UserError, match=r"out.csv is being written by another process: wait for it"):
        opened()
    first.close()
    assert opened().rows == 0


def test_what_was_written_after_the_state_is_cut_off(opened, tmp_path):
    output = opened()
    output.write(chunk("one", None), [*said(1), [None, None, None]])
    output._part(1).write_text("three,a,0.75,0.25\nfour,a,0.75,0.25\nfi")  # longer than what is still to come
    output.close()
    again = opened()
    assert (again.rows, again.empty) == (2, 1)
    again.write(chunk("three"), said(1))
    again.finish()
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        f"text,{','.join(ADDED)}", "one,a,0.75,0.25", ",,,", "three,a,0.75,0.25",
    ]  # fmt: skip
    assert again.rows == 3


def test_what_a_spreadsheet_takes_for_a_formula_is_copied_as_it_is(opened, tmp_path):
    texts = ['=HYPERLINK("http://x")', "+1 from me", "-1", "@all", "'=1"]
    output = opened()
    output.write(chunk(*texts), said(len(texts)))
    output.finish()
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == texts


@pytest.mark.parametrize("damage", ["state", "partial", "task"])
def test_what_does_not_fit_together_begins_anew(damage, opened, tmp_path):
    output = opened()
    output.write(chunk("one"), said(1))
    output.close()
    if damage == "state":
        (tmp_path / "out.csv.partial" / "state.json").write_text("{")
    elif damage == "partial":
        (tmp_path / "out.csv.partial" / "0000000.csv").unlink()
    assert opened("other" if damage == "task" else "t").rows == 0


def test_without_a_task_nothing_is_gone_on_with(opened):
    output = opened(None)
    output.write(chunk("one"), said(1))
    output.close()
    assert opened(None).rows == 0


def test_a_part_that_was_not_counted_is_written_again(opened, tmp_path):
    output = opened(form="parquet", name="out.parquet")
    output.write(chunk("one"), said(1))
    (tmp_path / "out.parquet.partial" / "unfinished").write_bytes(b"half")
    (tmp_path / "out.parquet.partial" / "0000001.parquet").write_bytes(b"not counted")
    output.close()
    again = opened(form="parquet", name="out.parquet")
    assert again.rows == 1
    again.write(chunk("two"), said(1))
    again.finish()
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "out.parquet").column("text").to_pylist() == ["one", "two"]
    assert [path.name for path in tmp_path.iterdir() if "lock" not in path.name] == ["out.parquet"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_carriage_return_alone_ends_no_row(delimiter):
    texts = ["one\rtwo", "three\r", "plain"]
    rows = TextRows("csv", ["text"], ADDED, delimiter)
    written = rows.header() + rows.encode(chunk(*texts), said(3))
    read = list(csv.reader(io.StringIO(written.decode(), newline=""), delimiter=delimiter))
    assert [row[0] for row in read] == ["text", *texts]
    assert written.endswith(f"plain{delimiter}a{delimiter}0.75{delimiter}0.25\n".encode())
    with pytest.raises(UserError, match="which TSV cannot write"):
        TextRows("tsv", ["text"], ADDED, "\t").encode(chunk(*texts), said(3))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_columns_of_one_name_are_refused_before_anything_is_scored(form, tmp_path):
    with pytest.raises(UserError, match=r"has several columns named x, .* write output=<file>.csv"):
        FileOutput(tmp_path / f"out.{form}", form, ["text", "x", "x"], ADDED, ",", "t")
    FileOutput(tmp_path / "out.csv", "csv", ["text", "x", "x"], ADDED, ",", "t").close()

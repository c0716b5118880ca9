"""The input of `predict`: which column holds the texts, and chunks whose ends depend on the rows alone."""

import pytest

from sentexp.errors import UserError
from sentexp.inference import source as module
from sentexp.inference.readers import open_source
from sentexp.inference.row_formats import Chunk


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a CSV with this header and rows, and returns its name."""

    def write(header, *rows):
        file = tmp_path / "in.csv"
        file.write_text("\n".join([header, *rows]) + "\n")
        return str(file)

    return write


@pytest.mark.parametrize(
    ("header", "wanted", "usual", "chosen"),
    [
        ("sentence,text,body", "body", "sentence", "body"),
        ("sentence,text,body", None, "sentence", "sentence"),
        ("title,text,body", None, "sentence", "text"),
        ("body", None, "sentence", "body"),
        ("body", None, None, "body"),
    ],
)
def test_the_column_of_the_texts(header, wanted, usual, chosen, table):
    with open_source(table(header, ",".join("x" * len(header.split(","))))) as source:
        assert source.choose_text(wanted, usual) == chosen


def test_a_column_that_cannot_be_told_is_asked_for(table):
    with open_source(table("title,body", "a,b")) as source:
        with pytest.raises(UserError, match=r"has no column sentence or text: name the one .* columns are title, body"):
            source.choose_text(None, "sentence")
        with pytest.raises(UserError, match=r"text=x is not a column of"):
            source.choose_text("x", None)


def test_chunks_hold_every_row_once_in_order(table):
    rows = [f"{n},film {n}" for n in range(23)]
    with open_source(table("n,text", *rows), piece=2) as source:
        chunks = list(source.chunks("text", 5))
    assert [len(chunk.texts) for chunk in chunks] == [6, 6, 6, 5]
    assert [text for chunk in chunks for text in chunk.texts] == [f"film {n}" for n in range(23)]
    assert [n for chunk in chunks for n in chunk.rows.column("n").to_pylist()] == [str(n) for n in range(23)]
    assert source.rows == 23


def test_long_texts_end_a_chunk_sooner(table, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 1000)
    with open_source(table("text", *(["x" * 600] * 6)), piece=1) as source:
        assert [len(chunk.texts) for chunk in source.chunks("text", 100)] == [2, 2, 2]


def test_the_rest_of_a_chunk(table):
    with open_source(table("text", "a", "b", "c")) as source:
        (chunk,) = source.chunks("text", 10)
    rest = chunk.after(2)
    assert rest.texts == rest.rows.column("text").to_pylist() == ["c"]
    assert Chunk(rows=[{"text": "a"}, {"text": "b"}], texts=["a", "b"]).after(1).rows == [{"text": "b"}]

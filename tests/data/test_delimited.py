"""CSV and TSV files: gone through once, then read in blocks; sentences name the keys of who reads."""

import pytest

from sentexp.data import delimited
from sentexp.data.delimited import Delimited, Keys, TextFormat
from sentexp.errors import UserError

KEYS = Keys(encoding="encoding", ragged="name what divides columns with delimiter=<letter>", unquoted="save it as .tsv")


@pytest.fixture
def opened(tmp_path):
    """Return a function that writes a file and opens it."""

    def write(content, ending=".csv", **form):
        file = tmp_path / f"x{ending}"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Delimited(file, TextFormat(**form), ending, KEYS, "the input")

    return write


@pytest.mark.parametrize("content", ["a,b\n1,2\n\n3,4\n", 'a,b\r\n"1",2\r\n\r\n3,4', "\n\na,b\n1,2\n3,4"])
def test_rows_are_counted_before_they_are_read(opened, content):
    file = opened(content)
    assert (file.names, file.rows) == (["a", "b"], 2)
    assert [row for table in file.tables() for row in table.to_pylist()] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_blocks_follow_each_other(opened, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK", 64)
    file = opened("n,text\n" + "".join(f"{n},film {n}\n" for n in range(40)))
    tables = list(file.tables(["text"]))
    assert len(tables) > 1
    assert [text for table in tables for text in table.column("text").to_pylist()] == [f"film {n}" for n in range(40)]


def test_a_header_alone_has_no_rows(opened):
    assert list(opened("a,b\n").tables()) == []


@pytest.mark.parametrize(
    ("content", "ending", "sentence"),
    [
        ("a,b\n1,2\n\n3\n", ".csv", r"Row 2 of the input has 1 of the 2 columns .*: quote texts that hold ',', fix"),
        ("\na,b\n1,2,3\n", ".csv", r"Row 1 of the input has 3 of the 2 columns .* or name what divides columns"),
        ("a\tb\n1\n", ".tsv", r"Row 1 of the input has 1 of .* no text may hold '\\t', as the file does not quote"),
        (f"a,b\n1,{'x' * 200}\n2,{'y' * 200}\n", ".csv", r"the input has a row of more than"),
    ],
)
def test_what_does_not_fit_is_told_with_its_row(opened, monkeypatch, content, ending, sentence):
    monkeypatch.setattr(delimited, "BLOCK", 64)
    file = opened(content, ending)
    with pytest.raises(UserError, match=sentence):
        list(file.tables())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('a,b\n1,2\n"3,4\n', r"Row 2 of the input has a quotation mark that is not closed.*save it as .tsv"),
        ("", "the input has no header"),
        (
            "a\nとても良い\n".encode("cp932"),
            r"Line 2 of the input is not utf-8: name its encoding with encoding=<name>",
        ),
    ],
)
def test_what_is_wrong_is_told_when_it_is_opened(opened, content, sentence):
    with pytest.raises(UserError, match=sentence):
        opened(content)

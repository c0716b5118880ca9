"""The input of `predict`: which column holds the texts, and chunks whose ends depend on the rows alone."""

import pytest

from sentexp.errors import UserError
from sentexp.inference import source as module
from sentexp.inference.readers import input_files, open_source
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


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_files_of_a_pattern_are_one_input(tmp_path, ending):
    for number in range(3):
        lines = (
            [f'{{"n": {number}, "text": "film {number}"}}']
            if ending == ".jsonl"
            else ["n,text", f"{number},film {number}"]
        )
        (tmp_path / f"part-{number}{ending}").write_text("\n".join(lines) + "\n")
    with open_source(f"{tmp_path}/part-*{ending}") as source:
        assert source.rows == 3
        chunks = list(source.chunks(source.choose_text(None, None), 2))
    assert [chunk.texts for chunk in chunks] == [["film 0", "film 1"], ["film 2"]]
    assert [file.name for file in input_files(f"{tmp_path}/part-*{ending}")] == [f"part-{n}{ending}" for n in range(3)]
    with pytest.raises(UserError, match=r"input=.*other-\* matches no file: name a file, a folder, or a pattern"):
        input_files(f"{tmp_path}/other-*")
    (tmp_path / f"part-1{ending}").write_text('{"body": "x"}\n' if ending == ".jsonl" else "body\nx\n")
    with (
        pytest.raises(
            UserError, match=rf"part-1{ending} has the columns body .*, and .*part-0{ending} n, text .*: .* alike"
        ),
        open_source(f"{tmp_path}/part-*{ending}"),
    ):
        pass


def test_a_folder_of_texts_for_each_class_is_an_input(tmp_path):
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "1.txt").write_text(f"{split} {label}\nfilm")
    with open_source(str(tmp_path / "test")) as source:
        assert source.choose_text(None, None) == "text"
        (chunk,) = source.chunks("text", 9)
    assert chunk.texts == ["test neg\nfilm", "test pos\nfilm"]
    assert chunk.rows.column("label").to_pylist() == ["neg", "pos"]
    assert len(input_files(str(tmp_path / "test"))) == 2
    with (
        pytest.raises(UserError, match=r"input=.* has classes in its folders test, train: name one of these"),
        open_source(str(tmp_path)),
    ):
        pass

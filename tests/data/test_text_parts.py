"""Texts of several columns: the same in training and prediction, empty where every column is."""

import csv
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentexp.config import TextTemplate, load_config, text_template
from sentexp.data.sources import load_source
from sentexp.data.text_parts import join_columns
from sentexp.errors import UserError
from sentexp.inference.readers import open_source

ROWS = [("Fine", "a {warm} film"), ("", "no title"), ("Dull", ""), ("  ", " ")]
TEXTS = ["Fine. a {warm} film", ". no title", "Dull. "]


@pytest.fixture
def table(tmp_path):
    """Return a table with a title and a body, of which the last row has neither."""
    with (tmp_path / "x.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("title", "body", "label"), *((*row, n % 2) for n, row in enumerate(ROWS))])
    lines = [json.dumps({"title": title, "body": body}) + "\n" for title, body in ROWS]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    return tmp_path / "x.csv"


def own(table, *overrides):
    return load_source(load_config("data=csv", f"data.path={table}", "data.strip=false", *overrides).data)


def test_a_template_joins_columns_and_a_row_without_any_is_empty(table):
    with pytest.raises(UserError, match=r"Row 4 of .* has an empty text"):
        own(table, "data.text='{title}. {body}'")
    found = own(table, "data.text='{title}. {body}'", "data.on_bad_rows=skip").splits["train"]
    assert found.column("text").to_pylist() == TEXTS
    lines = own(table, "data.text=[title,body]", "data.on_bad_rows=skip").splits["train"]
    assert lines.column("text").to_pylist() == ["Fine\na {warm} film", "\nno title", "Dull\n"]
    again = own(table, "data.text='{title}{{{title}}}'", "data.on_bad_rows=skip").splits["train"]
    assert again.column("text").to_pylist() == ["Fine{Fine}", "Dull{Dull}"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_prediction_reads_the_texts_of_the_run(table, ending):
    with open_source(str(table.with_suffix(ending)), piece=2) as source:
        assert source.choose_text(None, "{title}. {body}") == "{title}. {body}"
        texts = [text for chunk in source.chunks("{title}. {body}", 2) for text in chunk.texts]
    assert texts == [*TEXTS, None]
    with open_source(str(table)) as source:
        assert source.choose_text(None, "body") == "body"
        with pytest.raises(UserError, match=r"has no column {year} {body} or text: name the one"):
            source.choose_text(None, "{year} {body}")
        with pytest.raises(
            UserError, match=r"text \({year}\)=year is not a column of .*: its columns are title, body, label"
        ):
            source.choose_text("{title} {year}", None)


def test_a_column_that_is_missing_is_named(table):
    with pytest.raises(
        UserError, match=r"data.text \({head}\)=head is not a column of .*: its columns are title, body"
    ):
        own(table, "data.text='{head}. {body}'")


@pytest.mark.parametrize(
    "value", ["'{title'", "'{}'", "'{title:>9}'", "'{title!r}'", "'a } b'", "'{{title}}'", "[]", "3"]
)
def test_what_is_no_template_is_reported(value):
    with pytest.raises(UserError, match=r"data.text=.* must be a column, a list of columns such as \[title,body\]"):
        load_config("data=csv", "data.path=x.csv", f"data.text={value}")


def test_a_template_is_typed_as_it_stands(table, command_line):
    code, output, errors = command_line(
        "audit", "model=tiny", "data=csv", f"data.path={table}", "data.text={title}. {body}", "tracking=none"
    )
    assert code == 1, output
    assert "Row 4 of" in errors
    assert "has an empty text" in errors


COLUMNS = st.lists(st.text("abc", min_size=1), min_size=1, max_size=3)


@given(COLUMNS, st.lists(st.text("{} x"), min_size=4, max_size=4))
def test_a_template_reads_what_it_writes(columns, literals):
    template = TextTemplate(tuple(columns), tuple(literals[: len(columns) + 1]))
    assert text_template("text", str(template)) == template


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1), st.tuples(st.text(), st.text(), st.text()))
def test_columns_are_joined_as_python_would(rows, literals):
    first, second = map(list, zip(*rows, strict=True))
    table = pa.table({"a": pa.array(first, pa.large_string()), "b": pa.array(second, pa.large_string())})
    joined = join_columns(table, TextTemplate(("a", "b"), literals)).to_pylist()
    one, two, three = literals
    for (a, b), text in zip(rows, joined, strict=True):
        assert text in (f"{one}{a}{two}{b}{three}", None)
        assert (text is None) <= (not (a + b).strip())

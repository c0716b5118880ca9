"""Tables: every format and every way in which files of people are broken."""

import json

import pyarrow as pa
import pytest
from generated import LABELS, pairs
from pyarrow import parquet

from sentexp.config import load_config
from sentexp.data.sources import load_source
from sentexp.data.tables import TextFormat, read_table
from sentexp.errors import UserError

WANTED = {"data.text": "text", "data.label": "label"}


def read(file, content=None, **form):
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(file, WANTED, TextFormat(**form))
    rows = zip(table.columns["text"].to_pylist(), table.columns["label"].to_pylist(), strict=True)
    return list(rows), table


FAITHFUL = [
    'he said "no", twice',
    "two\nlines",
    "=cmd|' /C calc'!A0",
    "שלום עולם \u202b",
    "👍🏽 great 🇩🇪",
    "a\0b",
    "NA",
    "[red]not markup[/red]",
    "\ufeff in the middle",
]


@pytest.mark.parametrize("text", FAITHFUL)
def test_texts_are_kept_faithfully_in_every_format(tmp_path, text):
    quoted = '"' + text.replace('"', '""') + '"'
    rows, _ = read(tmp_path / "x.csv", f"text,label\n{quoted},1\nplain,0\n")
    assert rows == [(text, "1"), ("plain", "0")]
    rows, _ = read(tmp_path / "x.jsonl", json.dumps({"text": text, "label": 1}) + "\n")
    assert rows == [(text, "1")]
    rows, _ = read(tmp_path / "x.json", json.dumps([{"text": text, "label": "1"}]))
    assert rows == [(text, "1")]
    parquet.write_table(pa.table({"label": [1], "text": [text]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")[0] == [(text, "1")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(tmp_path, end):
    assert read(tmp_path / "x.csv", end.join(["text,label", "a,1", "b,0", ""]))[0] == [("a", "1"), ("b", "0")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    assert read(tmp_path / "x.csv", "text,label\ncafé,1\n".encode(encoding))[0] == [("café", "1")]
    lines = '{"text": "café", "label": 1}\n'.encode(encoding)
    assert read(tmp_path / "x.jsonl", lines)[0] == [("café", "1")]


LATIN = "text,label\nplain,1\nle café était très agréable et la crème brûlée délicieuse,0\n".encode("latin-1")


def test_an_encoding_that_is_named_is_used(tmp_path):
    rows, table = read(tmp_path / "x.csv", LATIN, encoding="latin-1")
    assert rows[1][0].startswith("le café était")
    assert table.notes == []


def test_an_encoding_that_is_detected_is_reported(tmp_path):
    rows, table = read(tmp_path / "x.csv", LATIN)
    assert rows[1][0].startswith("le café était")
    assert "x.csv is not UTF-8 (line 3); read as cp1252, which was detected: 'le café" in table.notes[0]


@pytest.mark.parametrize("rows", [20, 60, 600])
@pytest.mark.parametrize("language", ["portuguese", "spanish", "italian", "french", "german"])
def test_western_languages_are_read_as_they_were_written(tmp_path, language, rows):
    texts = [text for label in LABELS for text in pairs(language, label, "; ")[: rows // 3 + 1]][:rows]
    assert len(texts) == rows
    quoted = ['"' + text.replace('"', '""') + '",1\n' for text in texts]
    found, _ = read(tmp_path / "x.csv", ("text,label\n" + "".join(quoted)).encode("cp1252"))
    assert [text for text, _ in found] == texts


def test_another_script_is_read_as_it_was_written(tmp_path):
    text = "Сегодня мы смотрели хороший фильм и нам очень понравилось"
    rows, _ = read(tmp_path / "x.csv", ("text,label\n" + f"{text},1\n" * 20).encode("cp1251"))
    assert rows[0][0] == text


def test_an_encoding_for_which_nothing_speaks_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"Line 2 of .* is not utf-8: name its encoding with data.encoding=<name>, or"):
        read(tmp_path / "x.csv", ("text,label\n" + "とても良い映画です,1\n" * 20).encode("cp932"))


def test_a_wrong_encoding_names_the_line_and_the_likely_one(tmp_path):
    with pytest.raises(UserError, match=r"Line 3 of .*x.csv is not utf-8: .*data.encoding=<name> \(cp1252 is likely\)"):
        read(tmp_path / "x.csv", LATIN, encoding="utf-8")
    with pytest.raises(UserError, match=r"Line 2 of .*x.jsonl is not utf-8"):
        read(tmp_path / "x.jsonl", b'{"text": "a", "label": 1}\n{"text": "\xe9", "label": 1}\n')


@pytest.mark.parametrize(
    ("content", "row"), [("text,label\na,1\nb,2,3\n", 2), ('text,label\n"a\nb",1\n\nc\n', 2), ("text,label\nx\n", 1)]
)
def test_a_ragged_row_is_named(tmp_path, content, row):
    with pytest.raises(
        UserError, match=rf"Row {row} of .*x.csv has \d of the 2 columns of its header .*on_bad_rows=skip"
    ):
        read(tmp_path / "x.csv", content)


def test_ragged_rows_are_left_out_and_counted_on_request(tmp_path):
    rows, table = read(tmp_path / "x.csv", "text,label\na,1\nb,2,3\nc\nd,0\n", skip_ragged=True)
    assert rows == [("a", "1"), ("d", "0")]
    assert table.skipped == 2
    assert "2 rows have not 2 columns and were left out" in table.notes[0]


def test_quoting_and_delimiter_can_be_named(tmp_path):
    assert read(tmp_path / "x.csv", 'text;label\n"a; b";1\n', delimiter=";")[0] == [("a; b", "1")]
    assert read(tmp_path / "x.csv", 'text,label\n"a,1\n', quoting=False)[0] == [('"a', "1")]
    assert read(tmp_path / "x.tsv", 'text\tlabel\n"a\tb"\t1\n', quoting=True)[0] == [("a\tb", "1")]
    assert read(tmp_path / "x.tsv", 'text\tlabel\n"a\t1\n')[0] == [('"a', "1")]


def test_a_value_that_is_missing_is_null(tmp_path):
    assert read(tmp_path / "x.jsonl", '{"text": "a"}\n{"text": null, "label": 1}\n\n{"text": NaN, "label": 1.0}\n')[
        0
    ] == [
        ("a", None),
        (None, "1"),
        (None, "1.0"),
    ]
    parquet.write_table(pa.table({"text": ["a", None], "label": [1.0, None]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet")[0] == [("a", "1"), (None, None)]


def test_other_columns_may_have_any_names(tmp_path):
    assert read(tmp_path / "x.csv", "a,text,a,,label\n1,good,2,3,1\n")[0] == [("good", "1")]


def test_a_very_long_text_is_a_text(tmp_path):
    text = "a long story, " * 100_000
    assert read(tmp_path / "x.csv", f'text,label\n"{text}",1\n')[0] == [(text, "1")]
    assert read(tmp_path / "x.tsv", f"text\tlabel\n{text}\t1\n")[0] == [(text, "1")]


def test_blank_lines_are_no_rows(tmp_path):
    assert read(tmp_path / "x.csv", "\n\ntext,label\n\ngood,1\n\n")[0] == [("good", "1")]


def test_a_file_without_a_header_is_read_by_the_names_that_are_given(tmp_path):
    names, content = ["label", "id", "text"], '0,1,"bad, really"\n\n4,2,fine\n'
    rows, table = read(tmp_path / "x.csv", content, columns=names)
    assert rows == [("bad, really", "0"), ("fine", "4")]
    assert table.columns.column_names == ["text", "label"]
    latin = '"0","1","caf\xe9"\n'.encode("latin-1")
    assert read(tmp_path / "y.csv", latin, columns=names, encoding="latin-1")[0] == [("caf\xe9", "0")]
    assert read(tmp_path / "z.tsv", "1\t2\tgood\n", columns=names)[0] == [("good", "1")]


def test_rows_without_a_header_are_counted_from_the_first(tmp_path):
    with pytest.raises(UserError, match=r"Row 2 of .*x.csv has 2 of the 3 columns of data.columns \("):
        read(tmp_path / "x.csv", "0,1,a\n4,2\n", columns=["label", "id", "text"])


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("0,1467810369,a long day at the office\n", r"data.columns=\[name1,name2,name3\]"),
        ("a long day at the office,4\n", r"data.columns=\[name1,name2\]"),
        ("-1.5,a long day\n", r"data.columns=\[name1,name2\]"),
    ],
)
def test_a_first_row_that_looks_like_data_is_reported(tmp_path, content, hint):
    with pytest.raises(UserError, match=rf"if that is the first row, name all columns in their order with {hint}"):
        read(tmp_path / "x.csv", content + content)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv", "", r"data.path=.*x.csv is empty"),
        ("x.csv", "text,label\n", r"x.csv has 0 rows: it must hold at least one row below its header"),
        (
            "x.csv",
            "text,text,label\na,b,1\n",
            r"data.text=text is the name of 2 columns of .*x.csv: rename all but one",
        ),
        ("x.csv", "body,label\na,1\n", r"data.text=text is not a column of .*x.csv: its columns are body, label\."),
        ("x.csv", ",".join(f"c{n}" for n in range(99)) + "\n" + 98 * ",", r"its columns are c0, .*, c29 and 69 more\."),
        ("x.csv", "text,label", r"x.csv has 0 rows"),
        ("x.csv", "\n\n", r"x.csv has no header"),
        ("x.csv", "text;label\na;1\n", r"its columns are text;label; pass \"data.delimiter=';'\" if that divides them"),
        ("x.csv", 'text,label\n"a",1\n"b,0\n"c",1\n', r"Row 2 of .*x.csv has a quotation mark that is not closed"),
        ("x.csv", 'text,label\n"a "b" c",1\n', r"Row 1 of .*or not doubled inside a text .*data.quoting=false"),
        (
            "x.jsonl",
            '{"text": "a", "label": 1}\n{"text": "\\ud83d", "label": 1}\n',
            r"Row 2 of .* half of a surrogate pair",
        ),
        ("x.jsonl", "", r"is empty"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text"\n', r"Line 2 of .*x.jsonl is not JSON"),
        ("x.jsonl", '{"text": "a", "label": 1}\n3\n', r"Row 2 of .*x.jsonl is not a JSON object"),
        (
            "x.jsonl",
            '{"body": "a", "label": 1}\n',
            r"data.text=text is not a column of .*: its columns are body, label",
        ),
        ("x.json", "[]", r"has 0 rows"),
        ("x.parquet", "garbage", r"x.parquet cannot be read as .parquet"),
        (
            "x.xls",
            "garbage",
            r"ending '.xls': it must be one of .csv, .tsv, .jsonl, .json, .parquet, .txt, .xlsx, .ods",
        ),
    ],
)
def test_what_cannot_be_read_is_reported(tmp_path, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / name, content)


def test_a_folder_with_the_name_of_a_file_is_reported(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(UserError, match=r"x.csv is a folder with the name of a file"):
        read(tmp_path / "x.csv")


def test_a_quotation_mark_that_is_never_closed_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"Row 2 of .* has a quotation mark that is not closed"):
        read(tmp_path / "x.csv", 'text,label\na,1\n"open,0\n' + "b,1\n" * 5000)


def test_a_column_of_lists_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": [["a"]], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"The column text of .* holds list.*: texts, numbers and words can be read"):
        read(tmp_path / "x.parquet")


def test_many_rows_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("sentexp.data.delimited.BLOCK", 1 << 12)
    rows = [(f"text number {index}", str(index % 3)) for index in range(3000)]
    assert read(tmp_path / "x.csv", "text,label\n" + "".join(f"{t},{v}\n" for t, v in rows))[0] == rows
    lines = "".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows)
    assert read(tmp_path / "x.jsonl", lines)[0] == rows


def test_names_for_a_file_that_has_a_header_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.columns names the columns of .*x.csv, whose first line does so already"):
        read(tmp_path / "x.csv", "label,text\n1,a\n", columns=["label", "text"])


def test_columns_that_are_not_read_may_have_one_name(tmp_path):
    (tmp_path / "x.csv").write_text("1,a,good,pos\n2,b,bad,neg\n")
    words = ("data=csv", f"data.path={tmp_path / 'x.csv'}")
    found = load_source(load_config(*words, "data.columns=[_,_,text,label]").data)
    assert found.splits["train"].column("text").to_pylist() == ["good", "bad"]
    with pytest.raises(UserError, match=r"data.text=text is the name of 2 columns of .*x.csv: rename all but one"):
        load_source(load_config(*words, "data.columns=[_,text,text,label]").data)

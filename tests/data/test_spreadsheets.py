"""Spreadsheets: what pandas and office programs write comes back, and what would fill memory or disk is refused."""

import datetime as dt
import sys
import zipfile

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentexp.config import load_config
from sentexp.data import open_document, spreadsheets
from sentexp.data.sources import load_source
from sentexp.data.tables import TextFormat, read_table
from sentexp.errors import UserError
from sentexp.inference.readers import open_source

pytest.importorskip("openpyxl")
pytest.importorskip("odf")
WANTED = {"data.text": "text", "data.label": "label"}
ENDINGS = (".xlsx", ".ods")


def read(file, **form):
    table = read_table(file, WANTED, TextFormat(**form))
    rows = zip(table.columns["text"].to_pylist(), table.columns["label"].to_pylist(), strict=True)
    return list(rows), table


def write(file, rows, **options):
    target = file if isinstance(file, pd.ExcelWriter) else str(file)  # pandas looks at the ending of strings only
    pd.DataFrame(rows, columns=["text", "label"]).to_excel(target, index=False, **options)
    return file


TEXTS = [
    'he said "no", twice',
    "two\nlines and a\ttab",
    "-cmd|' /C calc'!A0",
    "שלום עולם \u202b",
    "👍🏽 great 🇩🇪",
    "NA",
    "a  few   blanks",
    "<text:p>&amp;</text:p>",
]
NO_CONTROLS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
WRITTEN = st.text(st.one_of(NO_CONTROLS, st.sampled_from("\n\t\"'=")), min_size=1).filter(
    lambda text: text.strip() and not text.startswith("=") and "x005F_" not in text and "_x000D_" not in text
)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(WRITTEN, min_size=1, max_size=6), labels=st.data())
def test_what_pandas_writes_comes_back(tmp_path, ending, texts, labels):
    kinds = st.one_of(st.integers(-5, 5), st.sampled_from(["good", "bad", "NA", "naïve"]))
    given_labels = labels.draw(st.lists(kinds, min_size=len(texts), max_size=len(texts)))
    rows, _ = read(write(tmp_path / f"x{ending}", list(zip(texts, given_labels, strict=True))))
    assert rows == [(text, str(label)) for text, label in zip(texts, given_labels, strict=True)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_odd_texts_come_back(tmp_path, ending):
    file = write(tmp_path / f"x{ending}", [(text, 1) for text in TEXTS])
    assert [text for text, _ in read(file)[0]] == TEXTS
    with open_source(str(file)) as source:
        assert source.choose_text(None, None) == "text"
        assert [text for chunk in source.chunks("text", 3) for text in chunk.texts] == TEXTS


@pytest.mark.parametrize("ending", ENDINGS)
def test_values_that_are_no_texts_are_written_as_in_csv(tmp_path, ending):
    values = [(4, 1.0), (4.5, True), ("7", None), (dt.datetime(2024, 5, 1), False)]
    rows, _ = read(write(tmp_path / f"x{ending}", pd.DataFrame(values, dtype=object).to_numpy()))
    assert [(text[:10], label) for text, label in rows] == [
        ("4", "1"),
        ("4.5", "true"),
        ("7", None),
        ("2024-05-01", "false"),
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_long_text_and_many_rows_come_back(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(spreadsheets, "BLOCK_ROWS", 16)
    rows = [(f"text number {number}", str(number % 3)) for number in range(100)] + [("long " * 6_000, "1")]
    assert read(write(tmp_path / f"x{ending}", rows))[0] == rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sheet_is_chosen_by_its_name(tmp_path, ending):
    file = tmp_path / f"x{ending}"
    with pd.ExcelWriter(str(file)) as writer:
        for name in ("first", "second"):
            write(writer, [(f"{name} text", 1)], sheet_name=name)
    assert read(file, sheet="second")[0] == [("second text", "1")]
    with pytest.raises(UserError, match=r"x\..* has 2 sheets \(first, second\): name one with data.sheet=<name>"):
        read(file)
    with pytest.raises(UserError, match=r"data.sheet=third is not a sheet of .*: it has first, second"):
        read(file, sheet="third")
    with (
        pytest.raises(UserError, match=r"has 2 sheets \(first, second\): name one with sheet=<name>"),
        open_source(str(file)),
    ):
        pass
    with open_source(str(file), text_format=TextFormat(sheet="first")) as source:
        assert [text for chunk in source.chunks("text", 3) for text in chunk.texts] == ["first text"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sheet_trains_by_the_keys_of_any_table(tmp_path, ending):
    rows = [(f"text {number}", "good" if number % 2 else "bad") for number in range(4)]
    file = write(tmp_path / f"x{ending}", rows, sheet_name="reviews")
    found = load_source(load_config("data=csv", f"data.path={file}", "data.sheet=reviews").data)
    assert (found.labels, found.splits["train"].column("label").to_pylist()) == (["bad", "good"], [0, 1, 0, 1])


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sheet_without_a_header_is_read_by_the_names_that_are_given(tmp_path, ending):
    file = tmp_path / f"x{ending}"
    pd.DataFrame([["fine", 1], ["dull", 0]]).to_excel(str(file), index=False, header=False)
    assert read(file, columns=["text", "label"])[0] == [("fine", "1"), ("dull", "0")]
    with pytest.raises(UserError, match=r"its columns are fine, 1; if that is the first row, .*=\[name1,name2\]"):
        read(file)
    with pytest.raises(UserError, match=r"data.columns names 1 columns, and the first row of .* has 2"):
        read(file, columns=["text"])
    with pytest.raises(UserError, match=r"names the columns of .*, whose first row does so already"):
        read(write(tmp_path / f"y{ending}", [("a", 1)]), columns=["text", "label"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_blank_rows_are_no_rows_and_rows_that_are_too_long_are_named(tmp_path, ending):
    file = tmp_path / f"x{ending}"
    table = [
        [None] * 3,
        ["text", "label", None],
        ["fine", 1, None],
        [None] * 3,
        ["dull", 0, "more"],
        ["so so", 1, None],
    ]
    pd.DataFrame(table, dtype=object).to_excel(str(file), index=False, header=False)
    with pytest.raises(UserError, match=r"Row 2 of .* has 3 values, and there are 2 columns: fix .*on_bad_rows=skip"):
        read(file)
    rows, found = read(file, skip_ragged=True)
    assert (rows, found.skipped) == ([("fine", "1"), ("so so", "1")], 1)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([], r"has 0 rows"), (None, r"has no header: the first row of its sheet must name the columns")],
)
def test_a_sheet_without_rows_is_reported(tmp_path, ending, rows, sentence):
    file = tmp_path / f"x{ending}"
    if rows is None:
        pd.DataFrame().to_excel(str(file), index=False, header=False)
    else:
        write(file, rows)
    with pytest.raises(UserError, match=sentence):
        read(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_spreadsheet_is_reported(tmp_path, ending):
    file = tmp_path / f"x{ending}"
    file.write_bytes(b"no zip")
    with pytest.raises(UserError, match=rf"x{ending} cannot be read as {ending} \(.*\): save it again, or as CSV"):
        read(file)
    write(file, [("fine", 1)])
    damage(file, lambda text: text[: len(text) // 2])
    with pytest.raises(UserError, match=rf"x{ending} cannot be read as {ending} \("):
        read(file)


def damage(file, change, **more):
    """Change the sheet of a spreadsheet."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "content.xml" if file.suffix == ".ods" else "xl/worksheets/sheet1.xml"
    parts[sheet] = change(parts[sheet].decode()).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (parts | more).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_few_bytes_that_stand_for_very_many_are_refused(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(spreadsheets, "LARGEST", 1 << 20)
    file = write(tmp_path / f"x{ending}", [("fine", 1)])
    damage(file, lambda text: text, **{"more.xml": "a" * (1 << 22)})
    assert file.stat().st_size < 1 << 16
    with pytest.raises(UserError, match=r"holds 4 MiB, unpacked, of at most 1: save the sheet as CSV"):
        read(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_entities_are_refused(tmp_path, ending):
    file = write(tmp_path / f"x{ending}", [("fine", 1)])
    entity = '<!DOCTYPE a [<!ENTITY one "very many"><!ENTITY two "&one;&one;">]>'

    def declare(text):
        head = text.index("?>") + 2 if text.startswith("<?xml") else 0
        return text[:head] + entity + text[head:].replace("fine", "&two;")

    damage(file, declare)
    with pytest.raises(UserError, match=r"x.*cannot be read as .* \((it declares a document type|EntitiesForbidden)"):
        read(file)


CELL = '<table:table-cell office:value-type="string"{}><text:p>{}</text:p></table:table-cell>'


def test_repeated_cells_of_a_document_are_bounded(tmp_path, monkeypatch):
    def repeat(text, times):
        return text.replace("<table:table-row>", f'<table:table-row table:number-rows-repeated="{times}">')

    file = write(tmp_path / "x.ods", [("fine " * 100, 1)])
    damage(file, lambda text: repeat(text, 3))
    assert len(read(file)[0]) == 5  # the header is repeated as well
    monkeypatch.setattr(spreadsheets, "LARGEST", 1 << 16)
    damage(file, lambda text: text.replace('repeated="3"', 'repeated="4000"'))
    with pytest.raises(UserError, match=r"rows of more than .* characters: save the sheet as CSV"):
        read(file)
    monkeypatch.setattr(spreadsheets, "MOST_ROWS", 50)
    with pytest.raises(UserError, match=r"holds more than 50 rows"):
        read(file)


def test_blanks_and_lines_are_read_as_office_programs_write_them(tmp_path, monkeypatch):
    file = write(tmp_path / "x.ods", [("here", 1)])
    inner = (
        '<office:annotation><text:p>a note</text:p></office:annotation><text:p>a<text:s text:c="3"/><text:span>b'
        "<text:tab/></text:span><text:line-break/>c</text:p><text:p>d</text:p>"
    )

    def replace(text):
        return text.replace(' office:string-value="here"', "").replace("<text:p>here</text:p>", inner)

    damage(file, replace)
    assert read(file)[0] == [("a   b\t\nc\nd", "1")]
    monkeypatch.setattr(open_document, "LARGEST", 1000)
    damage(file, lambda text: text.replace('text:c="3"', 'text:c="50000"'))
    with pytest.raises(UserError, match="larger than any sheet"):
        read(file)


def test_a_carriage_return_is_read_as_excel_writes_it(tmp_path):
    file = write(tmp_path / "x.xlsx", [("one_x000D_\ntwo", 1)])
    assert read(file)[0] == [("one\r\ntwo", "1")]


def test_a_workbook_under_another_name_is_read(tmp_path):
    pd.DataFrame({"text": ["fine"], "label": [1]}).to_excel(
        tmp_path / "x.ods", index=False
    )  # what pandas makes of a path
    assert zipfile.is_zipfile(tmp_path / "x.ods")
    assert read(tmp_path / "x.ods")[0] == [("fine", "1")]


def test_what_is_missing_for_excel_is_reported(tmp_path, monkeypatch):
    file = write(tmp_path / "x.xlsx", [("fine", 1)])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"Reading .xlsx needs openpyxl: pip install -c constraints.txt '.\[excel\]'"):
        read(file)

"""`python -m sentexp predict`: every format, row for row; killed and gone on with; one sentence for what is wrong."""

import csv
import io
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sentexp.inference import predict as module
from sentexp.tracking.predictions import file_name, read_predictions

ROWS = [
    {"id": "007", "sentence": "a warm and funny film"},
    {"id": "1", "sentence": 'she said "never, again"'},
    {"id": "2", "sentence": " wasted\ntwo hours "},
    {"id": "3", "sentence": ""},
    {"id": "4", "sentence": "größe 🎬 " * 40},
    {"id": "5", "sentence": "fine"},
]
ADDED = ["label", "probability_negative", "probability_positive"]


@pytest.fixture
def result(finished):
    return finished("peft=lora")


@pytest.fixture
def sentexp(command_line, result, capsys):
    """Return the command line of the command for the run; nothing is recorded."""
    capsys.readouterr()  # what the training has printed
    return lambda *words: command_line("predict", f"run={result.weights}", "tracking=none", *words)


def write(file, rows):
    """Write rows in the format of the file's ending; TSV cannot hold all of them."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys(), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


def read(file):
    """Return rows; probabilities as numbers, and None where they are empty."""
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    elif file.suffix == ".parquet":
        rows = parquet.read_table(file).to_pylist()
    else:
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ","))
    for row in rows:
        row["label"] = row["label"] or None
        row |= {name: float(row[name]) if row[name] not in ("", None) else None for name in ADDED[1:]}
    return rows


@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("target", ["csv", "jsonl", "parquet"])
def test_every_format_keeps_the_rows_and_adds_what_the_run_says(source, target, sentexp, tmp_path):
    write(tmp_path / f"in.{source}", ROWS)
    code, output, errors = sentexp(f"input=in.{source}", f"output=out.{target}", "chunk_rows=2")
    assert code == 0, errors
    assert output == ""
    assert "1 row has no text: its label" in errors
    rows = read(tmp_path / f"out.{target}")
    assert [{key: row[key] for key in ("id", "sentence")} for row in rows] == ROWS
    assert list(rows[0]) == ["id", "sentence", *ADDED]
    assert all(row[name] is None for row in rows[3:4] for name in ADDED)
    for row in rows[:3] + rows[4:]:
        assert row["probability_negative"] + row["probability_positive"] == pytest.approx(1, abs=1e-5)
        assert row["label"] == ("positive" if row["probability_positive"] > 0.5 else "negative")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in.{source}", f"out.{target}"]


@pytest.mark.parametrize("words", [("peft=lora",), ("task=causal_lm", "peft=lora", "task.calibration=batch")])
def test_probabilities_are_those_of_the_runs_test_rows(words, finished, command_line, reviews, tmp_path):
    result = finished(*words)
    run = f"run={result.folder}"
    rest = [f"input={reviews / 'test.tsv'}", "output=out.csv", "prefix=said_", "tracking=none"]
    code, _, errors = command_line("predict", run, *rest)
    assert code == 0, errors
    assert "texts in the column sentence" in errors
    said = read_predictions(result.folder / file_name("test"))
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = [[float(row[f"said_probability_{label}"]) for label in said.labels] for row in rows]
    np.testing.assert_allclose(found, said.probabilities, atol=1e-5)
    assert [row["sentence"] for row in rows] == [line.split("\t")[0] for line in lines(reviews / "test.tsv")]


def lines(file):
    return file.read_text().splitlines()[1:]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_kill_in_the_middle_costs_no_row_and_no_byte(form, sentexp, tmp_path, monkeypatch):
    rows = [{"number": f"{n}", "text": f"{'good ' * (n * 7 % 13)}film {n}"} for n in range(23)]
    write(tmp_path / f"in.{form}", rows)
    words = [f"input=in.{form}", "chunk_rows=4"]
    assert sentexp(*words, f"output=whole.{form}")[0] == 0
    original, calls = module.score_chunk, []

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "score_chunk", killed)
        code, _, errors = sentexp(*words, f"output=out.{form}")
        assert code == 130
        assert "the same command resumes" in errors
    assert not (tmp_path / f"out.{form}").exists()
    partial = tmp_path / f"out.{form}.partial"
    (partial / "unfinished").write_bytes(b"half a chu")  # that was being written when the process was killed
    calls.clear()
    monkeypatch.setattr(module, "score_chunk", lambda *a, **o: calls.append(a) or original(*a, **o))
    code, _, errors = sentexp(*words, f"output=out.{form}")
    assert code == 0, errors
    assert "Resuming after row 12" in errors
    assert len(calls) == 3
    assert (tmp_path / f"out.{form}").read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    assert [row["number"] for row in read(tmp_path / f"out.{form}")] == [row["number"] for row in rows]
    assert not list(tmp_path.glob("*.partial"))


def test_another_input_or_other_keys_begin_anew(sentexp, tmp_path, monkeypatch):
    write(tmp_path / "in.csv", ROWS)
    original = module.score_chunk
    for change in (lambda: write(tmp_path / "in.csv", ROWS[:5]), lambda: None):
        calls = []

        def killed(*arguments, calls=calls, **options):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, "score_chunk", killed)
            assert sentexp("input=in.csv", "output=out.csv", "chunk_rows=2")[0] == 130
        change()
        code, _, errors = sentexp("input=in.csv", "output=out.csv", "chunk_rows=2", "calibrated=true")
        assert code == 0, errors
        assert "Going on" not in errors
        (tmp_path / "out.csv").unlink()


def test_standard_input_and_output(sentexp, monkeypatch, tmp_path):
    text = "text,stars\na warm film,5\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, output, errors = sentexp("input=-", "output=-")
    assert code == 0, errors
    head, row = output.splitlines()
    assert head == f"text,stars,{','.join(ADDED)}"
    assert row.startswith("a warm film,5,")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a warm film", "n": [1, 2]}\n')))
    code, output, errors = sentexp("input=-", "output=-")
    assert json.loads(output)["n"] == [1, 2]
    assert list(json.loads(output)) == ["text", "n", *ADDED]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sentence", ["a {warm} film, isn't = it? ${x} \\ [1", "fine", "-h"])
def test_one_sentence(sentence, sentexp, finished):
    code, output, errors = sentexp("--text", sentence)
    assert code == 0, errors
    shown = [float(part) for line in output.splitlines() for part in line.split() if part.startswith("0.")]
    assert sum(shown) == pytest.approx(1, abs=2e-4)
    assert "positive" in output
    assert output == sentexp(f"--text={sentence}")[1]


def test_two_sentences_are_one_too_many(sentexp):
    code, output, errors = sentexp("--text", "fine", "--text=dull")
    assert (code, output) == (1, "")
    assert errors.startswith("sentexp: --text is given more than once")


def test_an_empty_table_and_surrounding_names(sentexp, tmp_path):
    (tmp_path / "in.csv").write_text("\ufefftext,a\r\n", encoding="utf-8")
    assert sentexp("input=in.csv", "output=out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text() == f"text,a,{','.join(ADDED)}\n"
    assert sentexp("input=in.csv", "output=out.parquet")[0] == 0
    assert parquet.read_table(tmp_path / "out.parquet").column_names == ["text", "a", *ADDED]


def test_texts_that_a_spreadsheet_takes_for_formulas_are_counted(sentexp, tmp_path):
    write(tmp_path / "in.csv", [{"text": text} for text in ("=1+1", "a good film", "@SUM(A1)", "-1, dull")])
    for name, found in (("out.csv", True), ("out.jsonl", False)):
        code, _, errors = sentexp("input=in.csv", f"output={name}")
        assert code == 0, errors
        assert (f"2 texts begin as a formula does: import {name} into a spreadsheet as text." in errors) is found


def test_other_encodings_and_delimiters(sentexp, tmp_path):
    (tmp_path / "in.csv").write_bytes("body;n\nsüß;1\n".encode("latin-1"))
    words = ["input=in.csv", "output=out.csv", "text=body", "encoding=latin-1", "delimiter=';'"]
    code, _, errors = sentexp(*words)
    assert code == 0, errors
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("süß;1;")
    (tmp_path / "wide.csv").write_text("text,n\nsüß,1\n", encoding="utf-16")
    assert sentexp("input=wide.csv", "output=wide_said.csv")[0] == 0
    assert (tmp_path / "wide_said.csv").read_text().splitlines()[1].startswith("süß,1,")


def test_an_encoding_is_detected_and_told_as_in_training(sentexp, tmp_path):
    (tmp_path / "in.csv").write_bytes(
        "text\nle café était très agréable et la crème brûlée délicieuse\n".encode("cp1252")
    )
    code, _, errors = sentexp("input=in.csv", "output=out.csv")
    assert code == 0, errors
    assert "in.csv is not UTF-8 (line 2); read as cp1252, which was detected: 'le café" in errors
    assert "name its encoding with encoding." in errors
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("le café était")


def test_a_json_array_is_read_too(sentexp, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(ROWS))
    code, _, errors = sentexp("input=in.json", "output=out.jsonl", "chunk_rows=2")
    assert code == 0, errors
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == [row["id"] for row in ROWS]
    code, _, errors = sentexp("input=in.json", "output=out.json")
    assert "output=out.json has the ending '.json': it must be one of .csv, .tsv, .jsonl, .parquet" in errors


def test_parquet_comes_by_standard_input_too(sentexp, monkeypatch, tmp_path):
    parquet.write_table(pa.table({"text": ["a warm film"], "n": [3]}), tmp_path / "in.parquet")
    content = io.BytesIO((tmp_path / "in.parquet").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    code, output, errors = sentexp("input=-", "output=-")
    assert code == 0, errors
    assert json.loads(output)["n"] == 3


@pytest.fixture
def found_as(tmp_path):
    """Return a function that writes two texts in a form that is only read, and returns the name."""

    def build(form):
        import datasets
        import pandas as pd

        table = {"sentence": ["a warm film", "two  hours\nwasted"], "id": ["007", "1"]}
        if form == "txt":
            (tmp_path / "in.txt").write_text("__label__1 a warm film\n\ntwo  hours wasted\n")
        elif form == "saved":
            datasets.disable_progress_bars()
            datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "in.saved")
        else:
            pytest.importorskip("openpyxl" if form == "xlsx" else "odf")
            pd.DataFrame(table).to_excel(str(tmp_path / f"in.{form}"), index=False, sheet_name="films")
        return f"in.{form}"

    return build


@pytest.mark.parametrize("form", ["xlsx", "ods", "saved", "txt"])
def test_whatever_trains_is_predicted(form, found_as, sentexp, tmp_path):
    name = found_as(form)
    code, _, errors = sentexp(f"input={name}", "output=out.jsonl", *(["sheet=films"] if form == "xlsx" else []))
    assert code == 0, errors
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    if form == "txt":
        assert [(row["text"], row["label"]) for row in rows] == [("a warm film", "1"), ("two  hours wasted", None)]
    else:
        assert [(row["sentence"], row["id"]) for row in rows] == [("a warm film", "007"), ("two  hours\nwasted", "1")]
    assert {row.get("predicted_label", row["label"]) for row in rows} <= {"negative", "positive"}
    assert "is there already" in sentexp(f"input={name}", "output=out.jsonl")[2]


def test_files_of_a_pattern_are_predicted_into_one(sentexp, tmp_path):
    for number in range(2):
        write(tmp_path / f"part-{number}.csv", ROWS[number : number + 1])
    code, _, errors = sentexp("input=part-*.csv", "output=out.csv")
    assert code == 0, errors
    assert [row["sentence"] for row in read(tmp_path / "out.csv")] == [row["sentence"] for row in ROWS[:2]]
    assert "is the input" in sentexp("input=part-*.csv", "output=part-1.csv", "overwrite=true")[2]


def test_an_unfinished_prediction_of_a_saved_data_set_goes_on(found_as, sentexp, tmp_path, monkeypatch):
    name, original = found_as("saved"), module.score_chunk
    words = [f"input={name}", "output=out.csv", "chunk_rows=1"]

    def killed(scorer, chunk, *rest):
        if "warm" not in chunk.texts[0]:
            raise KeyboardInterrupt
        return original(scorer, chunk, *rest)

    monkeypatch.setattr(module, "score_chunk", killed)
    assert sentexp(*words)[0] == 130
    monkeypatch.setattr(module, "score_chunk", original)
    code, _, errors = sentexp(*words)
    assert code == 0, errors
    assert "Resuming after row 1" in errors


def test_an_output_that_is_there_is_refused_or_replaced_when_it_is_whole(sentexp, tmp_path):
    write(tmp_path / "in.csv", ROWS)
    (tmp_path / "out.csv").write_text("mine")
    code, _, errors = sentexp("input=in.csv", "output=out.csv")
    assert code == 1
    assert "output=out.csv is there already: name another file, or replace it with overwrite=true." in errors
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert sentexp("input=in.csv", "output=out.csv", "overwrite=true")[0] == 0
    assert len(read(tmp_path / "out.csv")) == len(ROWS)


def test_a_text_of_a_million_characters(sentexp, tmp_path):
    write(tmp_path / "in.csv", [{"text": "warm " * 200_000}, {"text": "warm " * 1000}])
    code, _, errors = sentexp("input=in.csv", "output=out.jsonl")
    assert code == 0, errors
    long, short = read(tmp_path / "out.jsonl")
    assert len(long["text"]) == 1_000_000
    assert long["probability_positive"] == pytest.approx(short["probability_positive"], abs=1e-6)


BAD = {
    "missing": (None, "input=in.csv does not exist: name a file, or - for standard input."),
    "empty": (b"", "input=in.csv is empty"),
    "no text column": (b"a,b\n1,2\n", "has no column sentence or text: name the one that holds the texts with "
                       "text=<column>; its columns are a, b."),
    "utf-8": ("text\nfine\nとても良い映画です\n".encode("cp932"), "Line 3 of in.csv is not utf-8: name its"),
    "ragged": (b"text,b\nfine,1\nfine\n", "Row 2 of in.csv has 1 of the 2 columns of its header ("),
    "quotes": (b'text,b\nfine,1\n"fine,2\n', "Row 2 of in.csv has a quotation mark that is not closed, or"),
    "label": (b"text,label,predicted_label\nfine,1,2\n", "in.csv has a column predicted_label already, and predict "
              "never replaces one: give prefix=<another beginning of the new names>."),
    "twice": (b"text,text\nfine,1\n", "text=text is the name of 2 columns of in.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_csv_is_one_sentence(name, sentexp, tmp_path):
    content, said = BAD[name]
    if content is not None:
        (tmp_path / "in.csv").write_bytes(content)
    code, output, errors = sentexp("input=in.csv", "output=out.jsonl")
    assert code == 1
    assert said in errors
    assert "Traceback" not in output + errors
    assert not list(tmp_path.glob("*out*"))


def test_columns_of_the_input_stay_beside_the_predicted_ones(sentexp, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"text,label\na warm film,1\ndull,0\n")
    code, _, errors = sentexp("input=in.csv", "output=out.csv")
    assert code == 0, errors
    assert "in.csv has a column label, which stays: the new ones begin with predicted_." in errors.replace("\n", " ")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1", "0"]
    assert {row["predicted_label"] for row in rows} <= {"negative", "positive"}
    assert "predicted_probability_positive" in rows[0]


def test_a_file_without_a_header_is_predicted_by_the_names_that_are_given(sentexp, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"4,a warm film\n0,dull\n")
    code, _, errors = sentexp("input=in.csv", "output=out.jsonl", "columns=[stars,text]")
    assert code == 0, errors
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["a warm film", "dull"]


def test_a_first_row_that_looks_like_data_is_reported(sentexp, tmp_path):
    (tmp_path / "in.csv").write_bytes(b"4,a warm film,x\n0,dull,y\n")
    code, _, errors = sentexp("input=in.csv", "output=out.csv")
    assert code == 1
    assert "if that is the first row, name all columns in their order with columns=[name1,name2,name3]" in errors


BAD_LINES = {
    b'{"text": "a"}\nnonsense\n': "Line 2 of in.jsonl is not JSON",
    b'{"text": "a"}\n[1]\n': "Row 2 of in.jsonl is not a JSON object",
    b'{"text": "a \\ud800"}\n': "Row 1 of in.jsonl holds half of a surrogate pair",
    b"\n\n": "in.jsonl has no rows",
}


@pytest.mark.parametrize("content", BAD_LINES)
def test_bad_json_lines_are_one_sentence(content, sentexp, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(content)
    code, _, errors = sentexp("input=in.jsonl", "output=out.csv")
    assert code == 1
    assert BAD_LINES[content] in errors
    assert "Traceback" not in errors


def test_values_that_a_format_cannot_hold_are_reported(sentexp, tmp_path):
    write(tmp_path / "in.jsonl", [{"text": "a"}, {"text": None}, {"text": "c\td", "more": 1}])
    code, _, errors = sentexp("input=in.jsonl", "output=out.tsv")
    assert code == 1
    assert "A value holds a tab or a line break ('c\\td'), which TSV cannot write" in errors
    code, _, errors = sentexp("input=in.jsonl", "output=out.csv", "chunk_rows=1")
    assert "A row has the name 'more', which the first rows lack" in errors
    assert sentexp("input=in.jsonl", "output=out.jsonl")[0] == 0


def test_parquet_that_is_none_or_has_no_texts_is_reported(sentexp, tmp_path):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no more")
    assert "in.parquet cannot be read as .parquet" in sentexp("input=in.parquet", "output=out.csv")[2]
    write(tmp_path / "in.parquet", [{"text": [1, 2]}])
    assert "text=text holds list" in sentexp("input=in.parquet", "output=out.csv")[2]
    bad = pa.array([b"fine", b"s\xfc\xdf"], pa.binary())
    broken = pa.StringArray.from_buffers(2, *bad.buffers()[1:], bad.buffers()[0])
    parquet.write_table(pa.table({"text": broken}), tmp_path / "in.parquet")
    assert "Row 2 of in.parquet holds a text that is not UTF-8" in sentexp("input=in.parquet", "output=out.csv")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], 'predict takes input=<file> or --text "a sentence": give one of them.'),
        (["input=in.csv"], "output is missing: name a file, or - for standard output."),
        (["input=in.csv", "output=out.xlsx"], "output=out.xlsx has the ending '.xlsx': it must be one of .csv, .tsv,"),
        (["input=in.xls", "output=out.csv"], "input=in.xls has the ending '.xls': it must be one of .csv, .tsv,"),
        (["input=in.csv", "output=none/out.csv"], "there is no folder none: make it first."),
        (["input=in.csv", "output=in.csv", "overwrite=true"], "output=in.csv is the input: name another file."),
        (["input=in.csv", "output=out.csv", "text=body"], "text=body is not a column of in.csv: its columns are id,"),
        (
            ["input=in.csv", "output=out.csv", "encoding=klingon"],
            "encoding=klingon is not an encoding that Python knows",
        ),
        (["--text", " "], "--text is empty: give it a sentence."),
        (["input=in.csv", "output=out.csv", "peft.r=8"], "peft.r: the configuration has no key 'peft'"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, sentexp, tmp_path):
    write(tmp_path / "in.csv", ROWS)
    shutil.copy(tmp_path / "in.csv", tmp_path / "in.xls")
    code, output, errors = sentexp(*words)
    assert code == 1
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in output + errors


@pytest.mark.slow
def test_a_sentence_is_predicted_without_what_trains_or_draws(result, in_a_process):
    code, loaded, errors = in_a_process("predict", f"run={result.folder}", "--text", "a warm film", "tracking=none")
    assert code == 0, errors
    assert {"torch", "transformers", "peft"} <= loaded
    assert not {"lightning", "torchmetrics", "matplotlib", "datasets", "sklearn", "mlflow", "bitsandbytes"} & loaded

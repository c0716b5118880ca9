"""`python -m sentexp compare`: what it prints and writes, and one sentence for what is wrong."""

import csv
import json
import re

import pytest

from sentexp.tracking.store import open_store


@pytest.fixture
def sentexp(store, command_line):
    """Return the command line of the command over the store."""
    return lambda *words: command_line("compare", *words, f"tracking.uri={store}", "resamples=200")


def test_the_latest_sweep_is_ranked_and_written(sentexp, sweep, tmp_path, comparing):
    code, output, errors = sentexp()
    assert code == 0, errors
    assert "sweep r=2,4,8 seed=1,2: 60 test rows" in output
    assert output.index("r=8") < output.index("r=2 ")
    assert "1 of 6 runs did not finish and are left out: r=8 seed=2" in output
    assert "loses most on" in output
    assert max(map(len, output[: output.index("1 of 6")].splitlines())) <= 80
    files = {"leaderboard.md", "leaderboard.csv", "leaderboard.json", "slices.csv", "report.html"}
    assert {file.name for file in (tmp_path / "comparison").iterdir()} == files
    rows = list(csv.DictReader((tmp_path / "comparison" / "leaderboard.csv").read_text().splitlines()))
    facts = json.loads((tmp_path / "comparison" / "leaderboard.json").read_text())
    assert [row["configuration"] for row in rows] == [row["configuration"] for row in facts["rows"]]
    assert float(rows[0]["accuracy"]) == facts["rows"][0]["accuracy"]
    assert facts["rows"][0]["to_best"] == 0
    assert "| r=2 |" in (tmp_path / "comparison" / "leaderboard.md").read_text()
    rest = output.partition("Report: comparison/report.html\n")[2]
    assert f"MLflow UI: http://127.0.0.1:5000/#/experiments/1/runs/{sweep} once `" in rest
    first, second, third = rest.partition("Next, for instance:\n")[2].splitlines()
    assert re.search(r"compare 'runs=\[\w{8}(,\w{8}){2,3}\]' tracking.uri=", first)
    assert " register run=best name=" in second
    assert " predict run=" in third
    artifact = open_store(comparing().tracking).artifact(sweep, "comparison/report.html")
    assert artifact.read_text() == (tmp_path / "comparison" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "drawn"), [(["compare", "resamples=200"], True), (["runs"], False)], ids=["compare", "runs"]
)
def test_runs_are_looked_at_without_the_libraries_that_take_longest(words, drawn, sweep, store, in_a_process):
    code, loaded, errors = in_a_process(*words, f"tracking.uri={store}")
    assert code == 0, errors
    libraries = {"torch", "transformers", "mlflow", "sqlalchemy", "sklearn", "scipy.stats", "statsmodels", "datasets"}
    assert not libraries & loaded
    assert drawn == ("pandas" in loaded) == ("matplotlib" in loaded)


@pytest.mark.parametrize("metric", ["accuracy", "qwk"])
def test_two_runs_are_set_against_each_other(sentexp, record, metric):
    first, second = record("a", 0.4, **{"peft.r": 1}), record("b", 2.0, **{"peft.r": 2})
    code, output, errors = sentexp(f"runs=[{first[:8]},{second[:8]}]", "rows=3", f"metric={metric}")
    assert code == 0, errors
    assert "a against b: both right" in output
    assert "McNemar's exact test p" in output
    assert f"permutation test of {metric} p" in output
    rows, _, proposed = output[output.index("only b is right") :].partition("Next, for instance:")
    assert 1 <= rows.count("film") <= 3
    assert f"predict run={second[:8]} tracking.uri=" in proposed


def test_brackets_in_names_are_no_markup(sentexp, record):
    first, second = record("m=[q_proj]", 0.4, **{"peft.r": 1}), record("m=[/k]", 2.0, **{"peft.r": 2})
    code, output, errors = sentexp(f"runs=[{first[:8]},{second[:8]}]", f"base={first[:8]}")
    assert code == 0, errors
    assert "to m=[q_proj]" in output
    assert "only m=[/k] is right" in output


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("runs=[12345e67,00501234]", "runs=12345e67 is not a run"),
        ("runs=[00501234]", "runs=00501234 is not a run"),
        ("sweep=12345e67", "sweep=12345e67 is not a sweep"),
        ("base=1_000", "base=1_000 "),
        ("sweep=null", "0 errors"),
    ],
)
def test_an_id_that_reads_as_a_number_stays_an_id(sentexp, sweep, word, named):
    code, _, errors = sentexp(word)
    assert named in (errors if code else "0 errors")


def test_all_runs_of_an_mlflow_experiment_are_ranked(sentexp, sweep):
    code, output, errors = sentexp("experiment_name=sentexp")
    assert code == 0, errors
    assert "experiment sentexp: 60 test rows" in output


def test_a_file_is_no_folder_for_the_report(sentexp, sweep, tmp_path):
    (tmp_path / "taken").write_text("")
    code, output, errors = sentexp("output=taken")
    assert code == 1
    assert output == ""
    assert "output=taken cannot be written (File exists): name a folder" in errors


def test_slices_are_printed_by_their_column(sentexp, sweep):
    code, output, errors = sentexp("by=language", "metric=f1_macro")
    assert code == 0, errors
    assert "f1_macro by language" in output
    assert output.count("│ en") == 3
    assert output.count("│ de") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metric=speed"], "metric=speed must be one of loss, accuracy"),
        (["sweep=a", "filter=b"], "sweep and filter both say what to compare: give one of them."),
        (["runs=[]"], "runs=[] names no run"),
        (["confidence=95"], "confidence=95.0 must be above 0 and below 1"),
        (["peft.r=8"], "peft.r: the configuration has no key 'peft': its keys are tracking, sweep, runs"),
        (["split=train"], "split=train: Invalid value 'train', expected one of [validation, test]"),
        (["by=colour"], "by=colour is not a slice of these rows: it must be one of language, length"),
        (["base=llama"], "base=llama is not among what is compared"),
        (["split=validation"], "holds no predictions for the validation split"),
        (["sweep=missing"], "sweep=missing is not a sweep in experiment sentexp"),
        (["tracking=none"], "compare reads what MLflow holds, so tracking=none has nothing to compare"),
    ],
)
def test_what_is_wrong_is_one_sentence(sentexp, sweep, words, said):
    code, output, errors = sentexp(*words)
    assert code == 1
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in output + errors

"""`python -m sentexp evaluate`: its own metrics on its own rows, a child of its MLflow run, labels by name."""

import json
import shutil

import numpy as np
import pytest
from mlflow import MlflowClient

from sentexp.config import load_config
from sentexp.run.train import train
from sentexp.tracking.predictions import file_name, read_predictions
from sentexp.tracking.store import PARENT

RUNS = {"lora": ["peft=lora"], "answers": ["task=causal_lm", "peft=lora", "task.calibration=batch"]}


@pytest.fixture(scope="module")
def recorded(quick_words, tmp_path_factory, empty_store):
    """Return the store, the folder and the results of finished runs."""
    folder = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    words = [*quick_words, f"tracking.uri={uri}", "tracking.system_metrics=false", f"output_dir={folder}"]
    return uri, folder, {name: train(load_config(*words, *own)) for name, own in RUNS.items()}


@pytest.fixture
def sentexp(command_line, recorded, capsys):
    """Return the command line of the command over the store."""
    uri, folder, _ = recorded
    capsys.readouterr()
    return lambda *words: command_line("evaluate", *words, f"tracking.uri={uri}", f"output_dir={folder}")


@pytest.fixture
def table(tmp_path, reviews):
    """Return a table of all sentences, with labels of other names in another order, and their source."""
    rows = [
        line.rpartition("\t")
        for name in ("train", "validation", "test")
        for line in (reviews / f"{name}.tsv").read_text().splitlines()[1:]
    ]
    named = {"1": "Positive", "0": "negative"}
    lines = [f"{text},{named[label]},{'ab'[number % 2]}" for number, (text, _, label) in enumerate(rows)]
    (tmp_path / "mine.csv").write_text("\n".join(["body,feeling,place", *lines]) + "\n")
    words = [f"data.path={tmp_path / 'mine.csv'}", "data.text=body", "data.label=feeling", "data.slices=place"]
    return ["data=csv", *words, "data.labels=[Positive,negative]", "split=all"]


def evaluations(recorded):
    client = MlflowClient(recorded[0])
    return client.search_runs(["1"], "tags.evaluation != ''")


@pytest.mark.parametrize("name", RUNS)
def test_its_own_test_rows_give_its_own_metrics(name, recorded, sentexp, reviews):
    _, folder, results = recorded
    result = results[name]
    words = [f"run={result.identity[:8]}", "data=sst2", f"data.path={reviews}", "data.splits.validation=validation"]
    code, output, errors = sentexp(*words, "data.splits.test=test")
    assert code == 0, errors
    (found,) = [one for one in evaluations(recorded) if one.data.tags[PARENT] == result.run_id]
    assert found.info.status == "FINISHED"
    assert found.info.run_name.endswith(f" on {reviews.name}")
    assert found.data.tags["evaluation"] == reviews.name
    assert "identity" not in found.data.tags
    own = {key: value for key, value in result.metrics.items() if key.startswith("test/")}
    assert own.keys() == {key for key in found.data.metrics if key.startswith("test/")}
    for key, value in own.items():
        assert found.data.metrics[key] == pytest.approx(value, abs=1e-5), key
    assert "own test split" in output
    assert "test/" not in output
    said = read_predictions(folder / f"evaluation-{found.data.tags['evaluation.identity']}" / file_name("test"))
    wanted = read_predictions(result.folder / file_name("test"))
    assert (said.ids == wanted.ids).all()
    np.testing.assert_allclose(said.probabilities, wanted.probabilities, atol=1e-5)


def test_a_second_evaluation_returns_the_first(recorded, sentexp, table):
    result = recorded[2]["lora"]
    assert sentexp(f"run={result.run_id}", *table)[0] == 0
    before = len(evaluations(recorded))
    code, output, errors = sentexp(f"run={result.run_id}", *table)
    assert code == 0, errors
    assert "is recorded: this is its result" in output
    assert "place/a" in output
    assert len(evaluations(recorded)) == before


@pytest.mark.slow
def test_evaluations_on_the_same_rows_are_compared(recorded, sentexp, table, command_line, tmp_path):
    for result in recorded[2].values():
        assert sentexp(f"run={result.identity}", *table)[0] == 0
    found = [one for one in evaluations(recorded) if one.data.tags["evaluation"] == "mine"]
    assert len(found) == 2
    ids = ",".join(one.info.run_id[:8] for one in found)
    code, output, errors = command_line("compare", f"runs=[{ids}]", f"tracking.uri={recorded[0]}", "resamples=100")
    assert code == 0, errors
    assert "48 test rows" in output
    code, output, errors = command_line(
        "compare", "filter=\"tags.evaluation = 'mine'\"", f"tracking.uri={recorded[0]}", "resamples=100"
    )
    assert code == 0, errors
    code, output, errors = command_line("compare", "experiment_name=sentexp", f"tracking.uri={recorded[0]}")
    assert "8 test rows are too few" in errors  # those of the runs: evaluations are not among them
    code, output, errors = command_line("runs", f"tracking.uri={recorded[0]}")
    assert " on mine" not in output


def test_labels_go_by_their_names(recorded, sentexp, table):
    result = recorded[2]["lora"]
    assert sentexp(f"run={result.identity}", *table)[0] == 0
    (found,) = [
        one
        for one in evaluations(recorded)
        if one.data.tags["evaluation"] == "mine" and one.data.tags[PARENT] == result.run_id
    ]
    file = recorded[1] / f"evaluation-{found.data.tags['evaluation.identity']}"
    said = read_predictions(file / file_name("test"))
    assert said.labels == ["negative", "positive"]
    assert said.targets.tolist()[:4] == [1, 0, 1, 0]
    right = (said.probabilities.argmax(1) == said.targets).mean()
    assert json.loads((file / "evaluation.json").read_text())["metrics"]["test/accuracy"] == pytest.approx(right)
    assert found.data.metrics["test/place/a/rows"] == 24


def test_a_label_that_the_run_does_not_know_is_refused(recorded, sentexp, table):
    words = [word for word in table if not word.startswith("data.labels")]
    identity = recorded[2]["lora"].identity
    code, _, errors = sentexp(f"run={identity}", *words, "data.labels=[good,bad]", "data.label=place")
    assert code == 1
    code, _, errors = sentexp(f"run={identity}", *words, "data.labels={Positive: happy, negative: negative}")
    assert code == 1
    assert f"data=csv has rows of the label happy, and run {identity} knows negative, positive: name them" in errors
    assert len(errors.strip().splitlines()) == 1


def test_without_mlflow_the_folder_keeps_the_result(finished, command_line, table, tmp_path):
    result = finished("peft=head")
    words = [f"run={result.folder}", *table, "tracking=none", f"output_dir={tmp_path}"]
    code, output, errors = command_line("evaluate", *words)
    assert code == 0, errors
    assert "recorded nowhere" in output
    assert "is recorded: this is its result" in command_line("evaluate", *words)[1]
    (file,) = tmp_path.glob("evaluation-*/evaluation.json")
    assert json.loads(file.read_text())["run_id"] is None


def test_a_few_rows_of_one_class_are_enough_for_all_of_them(finished, command_line, tmp_path):
    (tmp_path / "few.csv").write_text("text,label\na warm film,positive\nanother,positive\n")
    data = ["data=csv", f"data.path={tmp_path / 'few.csv'}", "data.labels=[negative,positive]", "tracking=none"]
    words = [f"run={finished('peft=head').folder}", *data, f"output_dir={tmp_path}"]
    code, output, errors = command_line("evaluate", *words, "split=all")
    assert code == 0, errors
    assert "on 2 rows of few (all)" in output
    code, _, errors = command_line("evaluate", *words, "split=validation")
    assert code == 1
    assert "data=csv has no rows in the validation split" in errors


def test_a_run_that_is_not_in_the_store_cannot_have_a_child(finished, sentexp, table):
    code, _, errors = sentexp(f"run={finished('peft=head').folder}", *table)
    assert code == 1
    assert "evaluate records its result under the MLflow run of" in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=", "data=csv", "data.path=x.csv"], "run= is empty: name a run, or leave it out for the latest"),
        (["run=abcdef"], "evaluate needs a data set: give data=<one of the group data>"),
        (["run=abcdef", "data=nope"], "data=nope is not an option of data: it must be one of amazon_reviews, csv"),
        (["run=abcdef", "data=csv", "data.path=x.csv", "split=train"], "split=train: "),
        (["run=abcdef", "data=csv", "data.path=x.csv"], "run=abcdef is not a run in "),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, sentexp):
    code, output, errors = sentexp(*words)
    assert code == 1
    assert said in errors
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in output + errors

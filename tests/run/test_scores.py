"""Runs that predict scores: numbers from the training to the report, and one sentence where classes are needed."""

import csv
import json
import math
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from finished_runs import base_words, checked_here, exported, finished, quick_words  # noqa: F401 (fixtures)
from sklearn.metrics import root_mean_squared_error
from starlette.testclient import TestClient

from sentexp.config import ServeConfig, TrackingBackend, TrackingConfig, from_conf
from sentexp.config import load_config as load
from sentexp.errors import UserError
from sentexp.export import verify
from sentexp.export.mlflow_model import read_model, save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.metrics import target
from sentexp.models.saved import read_trained
from sentexp.run.train import train
from sentexp.serving.serve import build_app
from sentexp.tracking.predictions import file_name, read_predictions

ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
OWN = ["task.loss=regression", "data.labels=null"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Return a table of 300 texts with scores from 100 to 200, and the words that name it."""
    file = tmp_path_factory.mktemp("scored") / "scores.csv"
    chance = np.random.default_rng(0)
    with file.open("w", newline="") as stream:
        values = chance.uniform(100, 200, 300)
        rows = [(f"{'abcdefghij'[int((v - 100) / 10)] * 4} film {n}", f"{v:.2f}") for n, v in enumerate(values)]
        csv.writer(stream).writerows([("text", "label"), *rows])
    return file, ["data=csv", f"data.path={file}", "data.validation_fraction=0.2", "data.test_fraction=0.2"]


@pytest.fixture(scope="module")
def trained(scores, finished):  # noqa: F811
    """Return a function that trains a run on the scores, once."""
    own = [*scores[1], *OWN, "data.splits.validation=null", "data.splits.test=null", "data.max_length=60"]
    return lambda *words: finished(*own, "optim.lr=3e-3", "trainer.max_epochs=4", *words)


def test_a_run_learns_scores_and_is_drawn(trained):
    result = trained("peft=lora", "plots=true", "baseline=true")
    rows = result.predictions()
    assert rows["label"].dtype == np.float64
    rmse = root_mean_squared_error(rows["label"], rows["predicted"])
    assert result.metrics["test/rmse"] == pytest.approx(rmse, rel=1e-4)
    assert result.metrics["test/loss"] < 0.5
    assert 100 < rows["predicted"].mean() < 200
    assert result.confusion == []
    assert set(result.plots()) == {"data_audit", "learning_curve", "scores"}
    assert set(result.baselines) == {"majority", "tfidf", "linear_probe"}
    mean = result.baselines["majority"].metrics
    assert mean["test/rmse"] == pytest.approx(rows["label"].std(), rel=0.05)
    assert "test/pearson" not in mean
    assert result.baselines["tfidf"].metrics["test/rmse"] < mean["test/rmse"]
    assert result.metrics["difference/majority/rmse"] == pytest.approx(rmse - mean["test/rmse"], rel=1e-4)
    card = (result.weights / "README.md").read_text()
    assert "output: a score" in card
    assert "one of score" not in card


def test_a_correlation_that_is_never_defined_chooses_nothing_and_fails_nothing(scores, monkeypatch, tmp_path):
    measure = target.score_metrics
    kept = ("rmse", "mae", "spearman")
    monkeypatch.setattr(target, "score_metrics", lambda *rows: {name: measure(*rows)[name] for name in kept})
    own = ["model=tiny", "tracking=none", "trainer.max_steps=2", "trainer.progress_bar=false", f"output_dir={tmp_path}"]
    result = train(load(*scores[1], *OWN, *own, "trainer.monitor=validation/pearson", "data.max_length=60"))
    assert math.isnan(result.objective)
    assert math.isfinite(result.metrics["test/rmse"])


def test_predictions_are_what_was_tested(trained, scores, command_line, tmp_path):
    result = trained("peft=lora")
    said = read_predictions(result.folder / file_name("test"))
    texts = result.predictions()["text"].tolist()
    scorer = Scorer(read_trained(result.weights), None, "cpu")
    np.testing.assert_allclose(scorer.probabilities(texts), said.probabilities, rtol=1e-4)
    pd.DataFrame({"text": [*texts, None]}).to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    for output in ("out.csv", "out.parquet"):
        words = [f"run={result.folder}", "tracking=none", "input=in.jsonl", f"output={output}"]
        code, _, errors = command_line("predict", *words)
        assert code == 0, errors
        assert "1 row has no text: its score is empty" in errors
    found = [pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")]
    for table in found:
        assert list(table.columns) == ["text", "score"]
        np.testing.assert_allclose(table["score"][:-1], said.probabilities[:, 0], rtol=1e-4)
        assert table["score"].isna().tolist()[-1]
    code, output, _ = command_line("predict", f"run={result.folder}", "tracking=none", "--text", texts[0])
    assert f"score {said.probabilities[0, 0]:.2f}" in output
    code, _, errors = command_line("predict", *words, "calibrated=true", "overwrite=true")
    assert code == 1
    assert "calibrated=true corrects probabilities of classes, and run" in errors


def test_an_evaluation_measures_scores(trained, scores, command_line, tmp_path):
    result = trained("peft=lora")
    place = ["tracking=none", f"output_dir={tmp_path}", "data.labels=null"]
    code, _, errors = command_line("evaluate", f"run={result.folder}", *scores[1], *place)
    assert code == 0, errors
    (file,) = tmp_path.glob("evaluation-*/evaluation.json")
    metrics = json.loads(file.read_text())["metrics"]
    names = [f"test/{name}" for name in ("loss", "rmse", "mae", "pearson", "spearman")]
    assert [metrics[name] for name in names] == pytest.approx([result.metrics[name] for name in names], rel=1e-3)


def test_what_an_export_says_are_scores(monkeypatch):
    monkeypatch.setattr(verify, "_read_in_a_fresh_process", lambda _, texts: np.ones((len(texts), 1)))
    assert "its scores of 2 rows differ" in str(verify.verify_export(np.ones((2, 1)), [], ["a", "b"], 0.1))
    monkeypatch.setattr(verify, "_read_in_a_fresh_process", lambda _, texts: np.ones((len(texts), 2)))
    assert "its probabilities of 2 rows differ" in str(verify.verify_export(np.ones((2, 2)), [], ["a", "b"], 0.1))


@pytest.mark.parametrize("form", ["peft", "merged", pytest.param("onnx", marks=(ONNX, pytest.mark.slow))])
@pytest.mark.parametrize("kind", ["decoder", "bert"])
def test_an_export_says_what_the_run_says(kind, form, trained, base_words, exported):  # noqa: F811
    folder, found, wanted = exported(trained("peft=lora", *base_words(kind)), form, ["cccc film 7", "jjjj film 8"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    card = (folder / "README.md").read_text()
    assert "| rmse | " in card
    assert "| accuracy | " not in card
    assert "neither" not in card


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_the_lines_of_a_card_give_the_score(method, trained, monkeypatch):
    result = trained(f"peft={method}", "trainer.max_epochs=1")
    monkeypatch.chdir(result.weights)
    code = (result.weights / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(["a warm and funny film"])[0, 0]
    assert float(names["score"].detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_an_mlflow_model_and_a_server_give_scores(trained, tmp_path):
    result = trained("peft=lora")
    save_model(resolve_run(str(result.folder), NONE, "outputs"), tmp_path / "model")
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(["cccc film 7"])
    np.testing.assert_allclose(read_model(tmp_path / "model")(["cccc film 7"]), wanted, rtol=1e-4)
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder))
    with TestClient(build_app(tmp_path / "model", config, "my run")) as client:
        said = client.post("/invocations", json={"inputs": ["cccc film 7"]})
        assert said.json()["predictions"] == [{"score": pytest.approx(float(wanted[0, 0]), rel=1e-4)}]
        asked = client.post("/invocations", json={"inputs": ["x"], "params": {"calibrated": True}})
        assert (asked.status_code, "predicts scores" in asked.json()["message"]) == (400, True)
        assert "It answers with a score" in client.get("/").text


@pytest.mark.slow
def test_a_sweep_is_compared_by_its_errors(scores, store, command_line, tmp_path):
    quick = ["model=tiny", "trainer.max_steps=4", "trainer.progress_bar=false", "tracking.system_metrics=false"]
    record = [f"tracking.uri={store}", f"output_dir={tmp_path / 'runs'}"]
    code, output, errors = command_line(
        "--multirun", *quick, *scores[1], *OWN, *record, "optim.lr=1e-9,1e-2", "seed=1,2"
    )
    assert code == 0, errors
    assert "mean score" in (next(tmp_path.glob("multirun/*/*/leaderboard.md"))).read_text()
    words = [f"tracking.uri={store}", "output=report", "resamples=200"]
    code, output, errors = command_line("compare", *words)
    assert code == 0, errors
    assert "Degrees of freedom" not in errors
    board = list(csv.DictReader((tmp_path / "report" / "leaderboard.csv").read_text().splitlines()))
    assert {"rmse", "rmse_low", "rmse_high", "mae", "pearson", "spearman"} <= set(board[0])
    assert float(board[0]["rmse"]) < float(board[1]["rmse"])
    html = (tmp_path / "report" / "report.html").read_text()
    assert "its largest errors" in html
    assert "Predicted over true scores" in html
    assert "ROC" not in html
    code, _, errors = command_line("compare", "metric=accuracy", *words)
    assert code == 1
    assert "metric=accuracy measures classes, and these runs predict scores: use rmse" in errors
    code, output, _ = command_line("runs", *record)
    assert "rmse " in output


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.class_weights=balanced", "data.class_weights=balanced is for classes"),
        ("data.sampling=balanced_labels", "data.sampling=balanced_labels is for classes"),
        ("task.focal_gamma=2", "task.focal_gamma=2.0 is for classes"),
        ("task.label_smoothing=0.1", "task.label_smoothing=0.1 is for classes"),
        ("task.r_drop=1", "task.r_drop=1.0 is for classes"),
        ("data.ordered=true", "data.ordered=True is for classes"),
        ("trainer.monitor=validation/accuracy", "trainer.monitor=validation/accuracy measures classes"),
        ("task.head_init=label_words", "task.head_init=label_words gives each class a row"),
    ],
)
def test_what_is_for_classes_is_refused(word, sentence, scores):
    with pytest.raises(UserError, match=sentence):
        load(*scores[1], *OWN, word)
    with pytest.raises(UserError, match=r"validation/rmse measures scores: set task.loss=regression"):
        load(*scores[1], "trainer.monitor=validation/rmse")

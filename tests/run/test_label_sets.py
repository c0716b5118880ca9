"""Runs that give a text any number of labels, from the training to the report, and what they refuse."""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from finished_runs import base_words, checked_here, exported, finished, quick_words  # noqa: F401 (fixtures)
from rounding import drift, rounding
from sklearn.metrics import f1_score, hamming_loss
from starlette.testclient import TestClient

from sentexp.config import ServeConfig, TargetKind, TrackingBackend, TrackingConfig, from_conf
from sentexp.config import load_config as load
from sentexp.data.splits import load_examples
from sentexp.errors import UserError
from sentexp.export.mlflow_model import read_model, save_model
from sentexp.inference.run_lookup import resolve_run
from sentexp.inference.scorer import Scorer
from sentexp.metrics.label_set_metrics import best_thresholds
from sentexp.models.saved import read_trained
from sentexp.run.plotting import plots_of
from sentexp.serving.serve import build_app
from sentexp.tracking.predictions import file_name, read_predictions

ONNX = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra export")
NONE = from_conf(TrackingConfig, backend=TrackingBackend.none)
EPS = 1e-2
"""Of AdamW: it does not make whole steps of rounding."""
LABELS = ["anger", "fear", "joy"]
OWN = ["task.loss=multi_label", "data.labels=null"]
TEXTS = ["aaaa film 7", "aaaa bbbb film 8"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return a table of 300 texts whose letters say their labels, and the words that name it."""
    file, chance = tmp_path_factory.mktemp("labelled") / "sets.jsonl", np.random.default_rng(0)
    held = chance.random((300, 3)) < (0.4, 0.15, 0.5)
    with file.open("w") as stream:
        for number, row in enumerate(held.tolist()):
            letters = [letter * 4 for letter, has in zip("abc", row, strict=True) if has]
            labels = [label for label, has in zip(LABELS, row, strict=True) if has]
            stream.write(json.dumps({"text": " ".join([*letters, f"film {number}"]), "label": labels}) + "\n")
    return file, ["data=csv", f"data.path={file}", "data.validation_fraction=0.2", "data.test_fraction=0.2"]


@pytest.fixture(scope="module")
def trained(sets, finished):  # noqa: F811
    """Return a function that trains a run on the sets, once."""
    own = [*sets[1], *OWN, "data.splits.validation=null", "data.splits.test=null", "data.max_length=60"]
    return lambda *words: finished(*own, "optim.lr=3e-3", "trainer.max_epochs=2", *words)


def members(lists):
    """Return 1 where a list has a label, shape (rows, labels)."""
    return np.array([[label in labels for label in LABELS] for labels in lists], int)


def test_a_run_learns_sets_and_is_drawn(trained):
    result = trained("peft=lora", "plots=true", "baseline=true")
    rows = result.predictions()
    true, said = members(rows["label"]), members(rows["predicted"])
    assert result.metrics["test/f1_macro"] == pytest.approx(f1_score(true, said, average="macro"), abs=1e-5)
    assert result.metrics["test/hamming"] == pytest.approx(hamming_loss(true, said), abs=1e-5)
    assert result.metrics["test/auroc_macro"] > 0.7
    assert {"test/f1_joy", "test/ap_fear", "test/auroc_anger"} <= set(result.metrics)
    assert result.metrics["test/duplicate_free/f1_macro"] == result.metrics["test/f1_macro"]  # all texts are different
    assert "temperature" in result.metrics
    assert "test/accuracy" not in result.metrics
    assert result.objective == result.metrics["best/f1_macro"]
    assert result.kind is TargetKind.label_sets
    missed, right = (np.array(result.confusion)[:, place] for place in (2, 3))
    np.testing.assert_array_equal(missed + right, true.sum(0))
    assert set(result.plots()) == {"data_audit", "learning_curve", "labels"}
    assert {f"{name}.png" for name in result.plots()} == set(plots_of(result.kind))
    assert set(result.baselines) == {"majority", "tfidf", "linear_probe"}
    card = (result.weights / "README.md").read_text()
    assert "any of anger, fear, joy, or none" in card
    assert f"holds from a threshold on, which is anger {result.thresholds[0]:.4f}" in card


def test_thresholds_are_those_that_validation_rows_choose(trained):
    result = trained("peft=lora", "plots=true", "baseline=true")
    said = read_predictions(result.folder / file_name("validation"))
    wanted = best_thresholds(torch.tensor(said.probabilities), torch.tensor(said.targets))
    assert result.thresholds == said.thresholds == read_trained(result.weights).thresholds
    assert result.thresholds == pytest.approx(wanted, abs=1e-6)
    assert result.metrics["best/f1_macro"] == pytest.approx(
        f1_score(said.targets, said.probabilities >= np.array(wanted), average="macro"), abs=1e-5
    )
    assert len(set(result.thresholds)) == 3
    rows = read_predictions(result.folder / file_name("test"))
    assert ((rows.probabilities >= 0.5) != (rows.probabilities >= np.array(wanted))).any(), "0.5 would do as well"


def test_the_baselines_are_a_constant_set_and_regressions(trained, sets):
    result = trained("peft=lora", "plots=true", "baseline=true")
    titles = {name: one.title for name, one in result.baselines.items()}
    assert titles["majority"] == "most frequent set"
    assert titles["tfidf"] == "TF-IDF + logistic regressions"
    config = load(*sets[1], *OWN, "data.splits.validation=null", "data.splits.test=null")
    examples = load_examples(config.data, kind=TargetKind.label_sets)
    kinds, counts = np.unique(examples.targets("train"), axis=0, return_counts=True)
    majority, tfidf = (result.baselines[name].metrics for name in ("majority", "tfidf"))
    right = (examples.targets("test") == kinds[counts.argmax()]).all(1)
    assert majority["test/subset_accuracy"] == pytest.approx(right.mean())
    assert majority["test/auroc_macro"] == pytest.approx(0.5)
    frequency = examples.targets("train").mean(0)
    loss = -(examples.targets("test") * np.log(frequency) + (1 - examples.targets("test")) * np.log(1 - frequency))
    assert majority["test/loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert tfidf["test/f1_macro"] > 0.9  # the words say the labels
    assert result.metrics["difference/majority/f1_macro"] == pytest.approx(
        result.metrics["test/f1_macro"] - majority["test/f1_macro"], abs=1e-6
    )


def test_predictions_are_what_was_tested(trained, command_line, tmp_path):
    result = trained("peft=lora")
    said, rows = read_predictions(result.folder / file_name("test")), result.predictions()
    texts, lists = rows["text"].tolist(), [list(labels) for labels in rows["predicted"]]
    np.testing.assert_allclose(
        Scorer(read_trained(result.weights), None, "cpu").probabilities(texts), said.probabilities, rtol=1e-4
    )
    pd.DataFrame({"text": [*texts, None]}).to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    for output in ("out.csv", "out.jsonl", "out.parquet"):
        words = [f"run={result.folder}", "tracking=none", "input=in.jsonl", f"output={output}"]
        code, _, errors = command_line("predict", *words)
        assert code == 0, errors
        assert "1 row has no text: its labels and probabilities are empty" in errors
    columns = ["text", "labels", *(f"probability_{label}" for label in LABELS)]
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found.columns) == columns
    assert [json.loads(cell) for cell in found["labels"][:-1]] == lists
    np.testing.assert_allclose(found[columns[2:]][:-1], said.probabilities, rtol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [*lists, None]
    parquet = pd.read_parquet(tmp_path / "out.parquet")
    assert [list(labels) for labels in parquet["labels"][:-1]] == lists
    assert parquet["labels"][len(texts)] is None
    code, output, _ = command_line("predict", f"run={result.folder}", "tracking=none", "--text", texts[0])
    assert (", ".join(lists[0]) or "no label") in output
    assert f"{result.thresholds[0]:.4f}" in output
    code, _, errors = command_line("predict", *words, "calibrated=true", "overwrite=true")
    assert code == 1
    assert "calibrated=true corrects probabilities of classes, and run" in errors


def test_what_was_predicted_is_data_again(trained, command_line, tmp_path):
    result = trained("peft=lora")
    result.predictions()[["text"]].to_csv(tmp_path / "in.csv", index=False)
    words = [f"run={result.folder}", "tracking=none"]
    assert command_line("predict", *words, "input=in.csv", "output=out.csv")[0] == 0
    own = ["data=csv", "data.path=out.csv", "data.label=labels", "split=all", f"output_dir={tmp_path}"]
    code, _, errors = command_line("evaluate", *words, *own)
    assert code == 0, errors
    (file,) = tmp_path.glob("evaluation-*/evaluation.json")
    assert json.loads(file.read_text())["metrics"]["test/subset_accuracy"] == 1


def test_an_evaluation_takes_labels_by_their_names(trained, sets, command_line, tmp_path):
    result = trained("peft=lora")
    rows = result.predictions()
    table = pd.DataFrame({"text": rows["text"]}).assign(
        JOY=members(rows["label"])[:, 2], anger=members(rows["label"])[:, 0]
    )
    table.to_csv(tmp_path / "columns.csv", index=False)
    place = [f"run={result.folder}", "tracking=none", "data=csv", f"output_dir={tmp_path}", "split=all"]
    code, output, errors = command_line("evaluate", *place, "data.path=columns.csv", "data.label=[JOY,anger]")
    assert code == 0, errors
    assert "labels of the test split" in output
    (file,) = tmp_path.glob("evaluation-*/evaluation.json")
    metrics = json.loads(file.read_text())["metrics"]
    for label in ("joy", "anger"):
        assert metrics[f"test/f1_{label}"] == pytest.approx(result.metrics[f"test/f1_{label}"], abs=1e-6)
    assert "test/f1_fear" not in metrics
    table.rename(columns={"JOY": "awe"}).to_csv(tmp_path / "columns.csv", index=False)
    code, _, errors = command_line("evaluate", *place, "data.path=columns.csv", "data.label=[awe,anger]")
    assert code == 1
    assert "has rows of the label awe, and run" in errors


@pytest.mark.parametrize("form", ["peft", "merged", pytest.param("onnx", marks=(ONNX, pytest.mark.slow))])
@pytest.mark.parametrize("kind", ["decoder", pytest.param("bert", marks=pytest.mark.slow)])
def test_an_export_says_what_the_run_says(kind, form, trained, base_words, exported):  # noqa: F811
    result = trained("peft=lora", *base_words(kind))
    folder, found, wanted = exported(result, form, TEXTS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    card = (folder / "README.md").read_text()
    assert "| f1_macro | " in card
    assert "| accuracy | " not in card
    assert "It gives a text any of anger, fear, joy, or none" in card
    if form == "onnx":
        assert json.loads((folder / "thresholds.json").read_text()) == result.thresholds


def test_plain_transformers_reads_a_merged_model(trained, exported, monkeypatch):  # noqa: F811
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    result = trained("peft=lora")
    folder, _, wanted = exported(result, "merged", TEXTS)
    config = AutoConfig.from_pretrained(folder)
    assert config.problem_type == "multi_label_classification"
    assert config.sentexp_thresholds == result.thresholds
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits.sigmoid().numpy(), wanted, rtol=1e-4)
    monkeypatch.chdir(folder)
    card = (folder / "README.md").read_text()
    code = card.split("## Use\n")[1].split("\nEach label")[0]
    names = {}
    exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), names)
    by_label = {one["label"]: one["score"] for one in names["outputs"][0]}
    own = Scorer(read_trained(result.weights), None, "cpu").probabilities(["a warm and funny film"])[0]
    assert [by_label[label] for label in LABELS] == pytest.approx(own.tolist(), rel=1e-4)
    held = [label for label, p, t in zip(LABELS, own, result.thresholds, strict=True) if p >= t]
    assert sorted(names["labels"]) == held


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_the_lines_of_a_card_give_probabilities_and_labels(method, trained, monkeypatch):
    result = trained(f"peft={method}", "trainer.max_epochs=1")
    monkeypatch.chdir(result.weights)
    names = {}
    exec((result.weights / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(["a warm and funny film"])[0]
    np.testing.assert_allclose(names["probabilities"].detach().numpy(), wanted, rtol=1e-4)
    assert names["labels"].tolist() == (wanted >= np.array(result.thresholds)).tolist()


def test_an_mlflow_model_and_a_server_give_lists(trained, tmp_path):
    result = trained("peft=lora")
    save_model(resolve_run(str(result.folder), NONE, "outputs"), tmp_path / "model")
    wanted = Scorer(read_trained(result.weights), None, "cpu").probabilities(TEXTS)
    np.testing.assert_allclose(read_model(tmp_path / "model")(TEXTS), wanted, rtol=1e-4)
    held = [[n for n, p, t in zip(LABELS, row, result.thresholds, strict=True) if p >= t] for row in wanted]
    config = from_conf(ServeConfig, tracking=NONE, run=str(result.folder))
    with TestClient(build_app(tmp_path / "model", config, "my run")) as client:
        said = client.post("/invocations", json={"inputs": TEXTS}).json()["predictions"]
        assert [row["labels"] for row in said] == held
        assert said[0]["probability_joy"] == pytest.approx(float(wanted[0, 2]), rel=1e-4)
        asked = client.post("/invocations", json={"inputs": ["x"], "params": {"calibrated": True}})
        assert (asked.status_code, "predicts sets of labels" in asked.json()["message"]) == (400, True)
        assert "It answers with any of: anger, fear, joy" in client.get("/").text


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_undisturbed_one(sets, tmp_path, monkeypatch):
    from sentexp.run import fitting
    from sentexp.run.train import train

    own = [*sets[1], *OWN, "model=tiny", "tracking=none", "trainer.max_steps=6", "trainer.progress_bar=false"]
    own += ["data.max_length=60", "trainer.save_steps=2"]
    alone = train(load(*own, f"output_dir={tmp_path / 'a'}"))
    evaluate = fitting.evaluate
    monkeypatch.setattr(fitting, "evaluate", lambda *_: 1 / 0)  # killed before its test
    with pytest.raises(ZeroDivisionError):
        train(load(*own, f"output_dir={tmp_path / 'b'}"))
    monkeypatch.setattr(fitting, "evaluate", evaluate)
    resumed = train(load(*own, f"output_dir={tmp_path / 'b'}"))
    assert resumed.thresholds == alone.thresholds
    assert resumed.metrics["test/f1_macro"] == alone.metrics["test/f1_macro"]


@pytest.mark.slow
def test_a_sweep_trains_together_and_is_compared(sets, store, command_line, tmp_path):
    quick = ["model=tiny", "trainer.max_steps=4", "trainer.progress_bar=false", "tracking.system_metrics=false"]
    quick += ["trainer.precision=fp32", f"optim.eps={EPS}"]  # numbers that no order of sums changes
    record = [f"tracking.uri={store}", f"output_dir={tmp_path / 'runs'}"]
    swept = ["optim.lr=1e-9,1e-2", "seed=1,2"]
    code, output, errors = command_line("--multirun", *quick, *sets[1], *OWN, *record, *swept)
    assert code == 0, errors
    assert "4 runs train together over one backbone" in output + errors
    assert "most frequent set" in (next(tmp_path.glob("multirun/*/*/leaderboard.md"))).read_text()
    together = sorted(tmp_path.glob("runs/*/predictions/test.parquet"))
    words = [f"tracking.uri={store}", "output=report", "resamples=200"]
    code, output, errors = command_line("compare", *words)
    assert code == 0, errors
    board = list(csv.DictReader((tmp_path / "report" / "leaderboard.csv").read_text().splitlines()))
    assert {"f1_macro", "f1_macro_low", "f1_micro", "hamming_high", "subset_accuracy"} <= set(board[0])
    html = (tmp_path / "report" / "report.html").read_text()
    assert "its largest errors" in html
    assert "ROC" not in html
    code, _, errors = command_line("compare", "metric=hamming", *words)
    assert code == 0, errors
    code, _, errors = command_line("compare", "metric=accuracy", *words)
    assert code == 1
    assert "metric=accuracy measures classes, and these runs predict sets of labels: use f1_macro" in errors
    code, output, _ = command_line("runs", *record)
    assert "f1_macro " in output
    best, worst = (row["run_ids"].split()[0] for row in (board[0], board[1]))
    named = [f"tracking.uri={store}", f"output_dir={tmp_path / 'runs'}", "name=emotions", "resamples=200"]
    assert command_line("register", f"run={worst}", *named)[0] == 0
    code, output, errors = command_line("register", f"run={best}", *named)
    assert "f1_macro on the same 60 validation rows" in output + errors
    alone = ["tracking=none", f"output_dir={tmp_path / 'alone'}", "optim.lr=1e-2", "seed=2", "baseline=false"]
    assert command_line(*quick, *sets[1], *OWN, *alone)[0] == 0
    (single,) = tmp_path.glob("alone/*/predictions/test.parquet")
    wanted = read_predictions(single)
    (same,) = [file for file in together if file.parents[1].name == single.parents[1].name]
    found = read_predictions(same)
    tolerance = rounding() + drift(1e-2, 4, EPS)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.targets, wanted.targets)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "data.class_weights=balanced",
            "data.class_weights=balanced is for classes, and task.loss=multi_label learns sets",
        ),
        ("data.sampling=balanced_labels", "data.sampling=balanced_labels is for classes"),
        ("task.focal_gamma=2", "task.focal_gamma=2.0 is for classes"),
        ("task.label_smoothing=0.1", "task.label_smoothing=0.1 is for classes"),
        ("task.r_drop=1", "task.r_drop=1.0 is for classes"),
        ("data.ordered=true", "data.ordered=True is for classes"),
        ("trainer.monitor=validation/accuracy", "accuracy measures classes, and task.loss=multi_label learns sets of"),
        ("trainer.monitor=validation/rmse", "rmse measures scores, and task.loss=multi_label learns sets of labels"),
        ("task.head_init=label_words", "task.head_init=label_words gives each class a row"),
    ],
)
def test_what_is_for_classes_is_refused(word, sentence, sets):
    with pytest.raises(UserError, match=sentence):
        load(*sets[1], *OWN, word)


def test_other_tasks_are_refused(sets, command_line):
    with pytest.raises(UserError, match=r"validation/f1_micro measures sets of labels: set task.loss=multi_label"):
        load(*sets[1], "trainer.monitor=validation/f1_micro")
    with pytest.raises(
        UserError, match=r"validation/ap_macro measures sets of labels, and task.loss=regression learns"
    ):
        load(*sets[1], "task.loss=regression", "trainer.monitor=validation/ap_macro")
    code, _, errors = command_line("task=causal_lm", *sets[1], "task.loss=multi_label")
    assert code == 1
    assert errors.count("\n") == 1
    assert "task.loss=multi_label" in errors
    assert "use task=seq_cls for the losses of a head" in errors


def test_the_monitor_is_the_metric_that_is_looked_at_first(sets):
    assert load(*sets[1], *OWN).trainer.monitor == "validation/f1_macro"
    assert load(*sets[1], "task.loss=regression").trainer.monitor == "validation/rmse"
    assert load(*sets[1]).trainer.monitor == "validation/accuracy"
    assert load(*sets[1], *OWN, "trainer.monitor=validation/ap_macro").trainer.monitor == "validation/ap_macro"

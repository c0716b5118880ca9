"""Baselines: each is what its library says, computed once, found again, and shown beside the result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from rounding import rounding, smooth
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from sentexp.compare.metric_sums import measured
from sentexp.run import baselines
from sentexp.run.baseline_models import regression
from sentexp.run.train import train
from sentexp.tracking.predictions import read_predictions, read_rows

ANSWERING = ["task=causal_lm", "task.template=auto", "task.label_words=[bad,good]"]


@pytest.fixture
def recorded(config, store):
    """Return a function that runs an answering configuration and returns its result and the MLflow runs."""

    def build(*overrides):
        result = train(
            config(*ANSWERING, "tracking=mlflow", "tracking.system_metrics=false", f"tracking.uri={store}", *overrides)
        )
        runs = MlflowClient(store).search_runs(["1"])
        return result, runs

    return build


def kinds(runs):
    return sorted(run.data.tags["baseline"] for run in runs if "baseline" in run.data.tags)


def test_the_base_is_measured_once_and_stands_beside_every_result(recorded):
    first, runs = recorded("peft.r=4", "optim.lr=1e-2")
    assert kinds(runs) == ["majority", "tfidf", "untuned"]
    second, runs = recorded("peft.r=8", "optim.lr=1e-2", "seed=7")
    assert kinds(runs) == ["majority", "tfidf", "untuned"]
    for result in (first, second):
        for name, baseline in result.baselines.items():
            assert baseline.run_id == first.baselines[name].run_id
            for metric in ("accuracy", "auroc_macro", "f1_macro"):
                theirs = baseline.metrics[f"test/{metric}"]
                assert result.metrics[f"baseline/{name}/{metric}"] == theirs
                difference = result.metrics[f"test/{metric}"] - theirs
                assert result.metrics[f"difference/{name}/{metric}"] == pytest.approx(difference)
    (mine,) = [item for item in runs if item.info.run_id == second.run_id]
    assert mine.data.metrics["difference/untuned/accuracy"] == second.metrics["difference/untuned/accuracy"]
    written = json.loads((second.folder / "result.json").read_text())
    assert written["baselines"]["untuned"]["run_id"] == second.baselines["untuned"].run_id


def test_what_the_baselines_said_of_every_row_is_kept(recorded, store):
    result, _ = recorded("optim.lr=1e-2")
    places = {name: baseline.run_id for name, baseline in result.baselines.items()} | {"": result.run_id}
    assert set(places) == {"majority", "tfidf", "untuned", ""}
    for name, run_id in places.items():
        file = Path(MlflowClient(store).download_artifacts(run_id, "predictions/test.parquet"))
        found = read_predictions(file)
        metrics = result.baselines[name].metrics if name else result.metrics
        wanted = {metric: metrics[f"test/{metric}"] for metric in ("loss", "brier")}
        whole = measured(found.targets, found.probabilities).whole()
        assert smooth(whole) == pytest.approx(wanted, abs=rounding())
        rows = read_rows(file, range(len(found.ids))).to_pylist()
        if name in ("untuned", ""):
            mean = sum(row["off_label_mass"] for row in rows) / len(rows)
            assert mean == pytest.approx(metrics["test/off_label_mass"], abs=rounding())
            assert sum(row["irregular"] for row in rows) == metrics["test/irregular_outputs"]


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_base_beside_a_result_is_the_run_without_training(recorded, method):
    storage = ["peft.quantization=nf4"] if method == "qlora" else []
    untuned, _ = recorded("peft=none", *storage, "baseline=false")
    tuned, _ = recorded(f"peft={method}", "optim.lr=1e-2")
    base = tuned.baselines["untuned"].metrics
    limit = rounding(untuned.metrics["test/loss"])
    assert base["test/loss"] == pytest.approx(untuned.metrics["test/loss"], abs=limit)
    assert base["test/off_label_mass"] == pytest.approx(untuned.metrics["test/off_label_mass"], abs=rounding())
    assert tuned.metrics["test/loss"] != pytest.approx(base["test/loss"], abs=10 * limit)


@pytest.mark.slow
def test_a_run_of_the_untuned_base_is_the_base_of_later_runs(recorded):
    untuned, _ = recorded("peft=none")
    assert set(untuned.baselines) == {"majority", "tfidf"}
    tuned, runs = recorded()
    assert tuned.baselines["untuned"].run_id == untuned.run_id
    assert kinds(runs) == ["majority", "tfidf"]


@pytest.mark.slow
def test_what_changes_the_base_measures_it_again(recorded):
    measured = [recorded()[0].baselines["untuned"].run_id]
    for change in (
        "task.system='Say {labels}.'",
        "task.length_normalization=true",
        "task.calibration=contextual",
        "task.calibration=batch",
        "task.generate=true",
        "task.shots=2",
        "trainer.precision=bf16",
        "data.max_length=9",
        "task.label_words=[down,up]",
    ):
        result, runs = recorded(change)
        assert result.baselines["untuned"].run_id not in measured, change
        measured.append(result.baselines["untuned"].run_id)
    assert kinds(runs) == ["majority", "tfidf", *["untuned"] * len(measured)]


@pytest.mark.slow
def test_what_does_not_change_the_base_does_not(recorded):
    before, _ = recorded()
    for change in ("data.train_subset=16", "task.loss=full", "trainer.max_epochs=2", "peft.bias=all", "peft=full"):
        after, _ = recorded(change)
        assert after.baselines["untuned"].run_id == before.baselines["untuned"].run_id, change
        same = after.baselines["tfidf"].run_id == before.baselines["tfidf"].run_id
        assert same == (change != "data.train_subset=16")


@pytest.mark.slow
def test_a_finished_run_is_compared_with_baselines_that_are_asked_for_later(recorded, capsys):
    alone, _ = recorded("baseline=false")
    assert alone.baselines == {}
    capsys.readouterr()
    compared, runs = recorded()
    assert compared.run_id == alone.run_id
    assert set(compared.baselines) == {"majority", "tfidf", "untuned"}
    assert "untuned base" in capsys.readouterr().out
    ours = next(run for run in runs if run.info.run_id == alone.run_id)
    assert ours.info.status == "FINISHED"
    assert ours.data.metrics["difference/untuned/accuracy"] == compared.metrics["difference/untuned/accuracy"]
    again, _ = recorded()
    assert again.metrics == compared.metrics


@pytest.mark.slow
def test_shots_are_for_the_base_only(recorded, store):
    result, _ = recorded("task.shots=2")
    assert result.baselines["untuned"].title == "untuned base (2 shots)"
    prompt = json.loads((result.weights / "sentexp.json").read_text())["prompt"]
    assert prompt["head"] == "Text: "
    shown, _ = recorded("task.shots=2", "peft=none")
    prompt = json.loads((shown.weights / "sentexp.json").read_text())["prompt"]
    assert prompt["head"].count("Sentiment: good") == 1
    assert prompt["head"].count("Sentiment: bad") == 1
    assert shown.run_id != result.baselines["untuned"].run_id
    loss = result.baselines["untuned"].metrics["test/loss"]
    assert shown.metrics["test/loss"] == pytest.approx(loss, abs=rounding(loss))


def test_an_unfinished_baseline_is_not_taken(recorded, store, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the roof fell in"):
        patch.setattr(baselines, "evaluate", lambda *_: (_ for _ in ()).throw(RuntimeError("the roof fell in")))
        recorded()
    failed = [run for run in MlflowClient(store).search_runs(["1"]) if run.data.tags.get("baseline") == "untuned"]
    assert [run.info.status for run in failed] == ["FAILED"]
    result, runs = recorded()
    assert result.baselines["untuned"].run_id == failed[0].info.run_id  # begun again, as after a kill
    assert [run.info.status for run in runs if run.data.tags.get("baseline") == "untuned"] == ["FINISHED"]


def test_without_a_store_baselines_are_kept_in_their_folders(config, capsys):
    first = train(config(*ANSWERING))
    assert capsys.readouterr().out.count("Baseline: ") == 3
    second = train(config(*ANSWERING, "seed=7"))
    assert "Baseline: " not in capsys.readouterr().out
    assert second.baselines == first.baselines
    assert [baseline.run_id for baseline in second.baselines.values()] == [None] * 3


def test_a_head_stands_beside_a_linear_probe_where_that_is_asked_for(config):
    assert train(config("peft=lora")).baselines == {}
    result = train(config("peft=lora", "baseline=true"))
    assert set(result.baselines) == {"majority", "tfidf", "linear_probe"}
    assert all(
        f"test/{m}" in b.metrics
        for b in result.baselines.values()
        for m in ("accuracy", "ece", "f1_good"[:2] + "_macro")
    )


@pytest.mark.slow
def test_measuring_baselines_does_not_change_the_training(config, tmp_path):
    for task in ([], ANSWERING):
        with_them = train(config("peft.dropout=0.3", "baseline=true", f"output_dir={tmp_path / 'a'}", *task))
        without = train(config("peft.dropout=0.3", "baseline=false", f"output_dir={tmp_path / 'b'}", *task))
        assert with_them.metrics["test/loss"] == without.metrics["test/loss"]
        assert with_them.identity == without.identity


def test_the_majority_class_is_that_of_train(config, reviews, tmp_path):
    rows = [f"text number {i},{'good' if i % 4 else 'bad'}" for i in range(80)]
    (tmp_path / "x.csv").write_text("body,stars\n" + "\n".join(rows) + "\n")
    words = ["data.text=body", "data.label=stars", "data.labels=[bad,good]", "data.splits.validation=null"]
    result = train(
        config(
            f"data.path={tmp_path / 'x.csv'}",
            *words,
            "data.splits.test=null",
            "data.validation_fraction=0.1",
            "baseline=true",
        )
    )
    metrics = result.baselines["majority"].metrics
    assert metrics["test/accuracy"] == pytest.approx(0.75)
    assert metrics["test/auroc_macro"] == pytest.approx(0.5)
    assert metrics["test/recall_bad"] == 0
    assert metrics["test/ece"] == pytest.approx(0, abs=0.02)


def test_tfidf_is_scikit_learns(config):
    result = train(config("baseline=true", "peft=none"))
    from sentexp.data.splits import load_examples

    examples = load_examples(config().data)
    texts = {name: examples.split(name).column("text").to_pylist() for name in ("train", "validation", "test")}
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(texts["train"])
    losses, scores = [], []
    for strength in baselines.TFIDF_STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(features, examples.targets("train"))
        likely = fitted.predict_log_proba(vectorizer.transform(texts["validation"]))
        losses.append(-likely[np.arange(8), examples.targets("validation")].mean())
        scores.append(
            -fitted.predict_log_proba(vectorizer.transform(texts["test"]))[
                np.arange(8), examples.targets("test")
            ].mean()
        )
    assert result.baselines["tfidf"].metrics["test/loss"] == pytest.approx(scores[int(np.argmin(losses))], rel=1e-3)


def test_a_penalty_is_chosen_on_validation():
    side = np.array([[-1.0], [1.0]] * 10, dtype=np.float32)
    targets = np.array([0, 1] * 10)
    turned = {"train": targets, "validation": 1 - targets, "test": targets}  # validation wants the strongest penalty
    found = regression(dict.fromkeys(turned, side), turned, (0.01, 1.0, 100.0), 2)["test"]
    mild = LogisticRegression(C=0.01, max_iter=1000).fit(side, targets).predict_log_proba(side)
    torch.testing.assert_close(found, torch.tensor(mild).float(), atol=1e-4, rtol=0)


def test_a_language_without_blanks_has_words(config):
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=baselines.WORD).build_tokenizer()
    assert words("好い film だ") == ["好", "い", "film", "だ"]


def test_a_class_that_train_lacks_has_no_chance_and_no_error():
    features = {name: np.eye(6, dtype=np.float32)[:4] for name in ("train", "validation", "test")}
    targets = {"train": np.array([0, 2, 0, 2]), "validation": np.array([0, 2, 1, 0]), "test": np.zeros(4, int)}
    found = regression(features, targets, (1.0,), 3)["test"]
    assert found.shape == (4, 3)
    assert torch.isfinite(found).all()
    assert (found.argmax(-1) != 1).all()


def test_the_probe_reads_the_rows_in_their_order(config, monkeypatch):
    """The features of a split are sorted by length while they are computed."""
    seen = {}
    none = {"validation": torch.zeros(8, 2), "test": torch.zeros(8, 2)}
    monkeypatch.setattr(
        baselines, "regression", lambda features, targets, *_: seen.update(f=features, t=targets) or none
    )
    train(config("baseline=true", "peft=none", "trainer.eval_batch_size=3"))
    from sentexp.data.splits import load_examples

    examples = load_examples(config().data)
    for split in ("train", "validation", "test"):
        assert seen["t"][split].tolist() == examples.targets(split).tolist()
        assert len(seen["f"][split]) == len(seen["t"][split])

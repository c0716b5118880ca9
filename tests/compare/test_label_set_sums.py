"""Metrics of several labels a text on resamples are those of the rows that are drawn."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as reference

from sentexp.compare import areas, error_analysis
from sentexp.compare.bootstrap import weights
from sentexp.compare.error_analysis import confident_errors, head_to_head
from sentexp.compare.label_sets import errors_of_sets, label_table
from sentexp.compare.leaderboard import leaderboard
from sentexp.compare.metric_sums import measured, resampled
from sentexp.config import TargetKind
from sentexp.config.metric_names import LABEL_SET_METRICS
from sentexp.errors import UserError

THRESHOLDS = [0.5, 0.3, 0.6]


def wanted(true, said):
    """Return what scikit-learn says of rows."""
    decided = said.astype(np.float64) >= np.array(THRESHOLDS)
    return {
        "f1_macro": reference.f1_score(true, decided, average="macro"),
        "f1_micro": reference.f1_score(true, decided, average="micro"),
        "subset_accuracy": reference.accuracy_score(true, decided),
        "hamming": reference.hamming_loss(true, decided),
        "auroc_macro": reference.roc_auc_score(true, said, average="macro"),
        "precision_macro": reference.precision_score(true, decided, average="macro", zero_division=0),
        "recall_macro": reference.recall_score(true, decided, average="macro"),
        "loss": np.mean([reference.log_loss(true[:, n], said[:, n].astype(float), labels=[0, 1]) for n in range(3)]),
    }


@pytest.fixture
def rows():
    """Return sets of labels of 150 texts, and probabilities."""
    chance = np.random.default_rng(1)
    true = (chance.random((150, 3)) < (0.6, 0.3, 0.2)).astype(np.uint8)
    return true, (1 / (1 + np.exp(-(2.0 * true - 1 + 1.5 * chance.normal(size=(150, 3)))))).astype(np.float32)


def test_they_are_those_of_the_rows(rows):
    true, said = rows
    run = measured(true, said, LABEL_SET_METRICS, THRESHOLDS)
    assert run.whole() == pytest.approx(wanted(true, said), abs=1e-5)
    drawn = next(weights(150, 20, 0))
    found = resampled([run, run], drawn)
    for number, counts in enumerate(drawn.astype(int)):
        picked = np.repeat(np.arange(150), counts)
        each = {name: found[name][1, number] for name in LABEL_SET_METRICS}
        assert each == pytest.approx(wanted(true[picked], said[picked]), abs=1e-4)
    without = run.without_each()
    left = wanted(np.delete(true, 7, 0), np.delete(said, 7, 0))
    for name in set(LABEL_SET_METRICS) - {"auroc_macro"}:
        assert without[name][7] == pytest.approx(left[name], abs=1e-5)


def test_an_area_of_many_rows_leaves_the_pairs_out(rows, monkeypatch):
    true, said = rows
    monkeypatch.setattr(areas, "FEW_ROWS", 1)
    run = measured(true, said, ["auroc_macro"], THRESHOLDS)
    assert run.pairs == []
    assert run.whole()["auroc_macro"] == pytest.approx(wanted(true, said)["auroc_macro"], abs=1e-5)


def labelled(comparison):
    """Make the comparison one of sets of labels; later configurations know less."""
    comparison.labels = ["joy", "anger", "fear"]
    chance = np.random.default_rng(2)
    count = len(comparison.targets)
    comparison.targets = (chance.random((count, 3)) < (0.6, 0.3, 0.2)).astype(np.uint8)
    for noise, one in enumerate(comparison.configurations, start=1):
        for run in one.runs:
            logits = 2.0 * comparison.targets - 1 + noise * chance.normal(size=(count, 3))
            run.probabilities, run.thresholds = (1 / (1 + np.exp(-logits))).astype(np.float32), THRESHOLDS
    return comparison


def test_the_leaderboard_ranks_sets_of_labels(simulate):
    comparison = labelled(simulate([("r=1", 1, 1), ("r=2", 1, 1)]))
    assert comparison.kind is TargetKind.label_sets
    for metric in ("f1_macro", "hamming", "subset_accuracy"):
        board = leaderboard(comparison, metric, resamples=200)
        assert board.metrics == LABEL_SET_METRICS
        assert board.short == ("f1_macro", "f1_micro", "subset_accuracy")
        assert board.table["configuration"].tolist() == ["r=1", "r=2"]
        assert board.table["rank"].tolist() == [1, 2]
        first = board.table.iloc[0]
        said = comparison.configurations[0].runs[0].probabilities
        assert first[metric] == pytest.approx(wanted(comparison.targets, said)[metric], abs=1e-5)
        assert first[f"{metric}_low"] < first[metric] < first[f"{metric}_high"]
    assert np.array_equal(board.evidence.right[0], ((said >= THRESHOLDS) == comparison.targets).all(1))


def test_labels_and_the_worst_rows_have_tables(simulate, monkeypatch):
    comparison = labelled(simulate([("r=1", 2, 1)]))
    table = label_table(comparison, ["r=1"])
    assert table["rows"].tolist() == sorted(comparison.targets.sum(0).tolist(), reverse=True)
    runs = comparison.configurations[0].runs
    place = comparison.labels.index(table["label"][0])
    each = [
        reference.f1_score(comparison.targets[:, place], run.probabilities[:, place] >= THRESHOLDS[place])
        for run in runs
    ]
    assert table["r=1 F1"][0] == pytest.approx(np.mean(each))
    texts = [f"film {number}" for number in range(len(comparison.targets))]
    monkeypatch.setattr(error_analysis, "read_rows", lambda _, numbers: pa.table({"text": texts}).take(numbers))
    errors = errors_of_sets(comparison, "r=1", most=5)
    decided = runs[0].probabilities >= np.array(THRESHOLDS)
    assert errors["wrong"][0] == (decided != comparison.targets).sum(1).max()
    assert errors["wrong"].is_monotonic_decreasing
    row = texts.index(errors["text"][0])
    names = np.array(comparison.labels)
    assert errors["predicted"][0] == ", ".join(names[decided[row]])
    assert errors["label"][0] == ", ".join(names[comparison.targets[row] > 0])


def test_what_counts_classes_is_refused(simulate):
    comparison = labelled(simulate([("r=1", 1, 1), ("r=2", 1, 1)]))
    with pytest.raises(
        UserError, match=r"metric=accuracy measures classes, and these runs predict sets of labels: use"
    ):
        leaderboard(comparison, "accuracy")
    with pytest.raises(UserError, match=r"confident_errors counts classes, .* sets of labels: use errors_of_sets"):
        confident_errors(comparison, "r=1")
    with pytest.raises(UserError, match=r"head_to_head counts classes"):
        head_to_head(comparison, "r=1", "r=2")
    classes = simulate([("r=1", 1, 1)])
    with pytest.raises(UserError, match=r"metric=hamming measures sets of labels, and these runs predict classes"):
        leaderboard(classes, "hamming")
    with pytest.raises(UserError, match=r"label_table looks at sets of labels, and these runs predict classes"):
        label_table(classes, ["r=1"])

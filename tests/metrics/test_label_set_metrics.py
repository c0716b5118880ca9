"""Metrics of several labels a text equal scikit-learn's, and thresholds are the best that validation rows show."""

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from sentexp.config.metric_names import RUN_LABEL_SET_METRICS
from sentexp.metrics.label_set_metrics import best_thresholds, decide, label_counts, label_set_metrics
from sentexp.metrics.slice_metrics import slice_metrics
from sentexp.metrics.target import LabelSets

LABELS = ["joy", "anger", "fear"]
THRESHOLDS = [0.5, 0.3, 0.8]


@pytest.fixture
def rows():
    """Return logits and sets of labels of 200 texts."""
    chance = np.random.default_rng(0)
    targets = (chance.random((200, 3)) < (0.6, 0.3, 0.1)).astype(np.float32)
    return torch.tensor(2 * targets - 1 + chance.normal(size=(200, 3)) * 1.5).float(), torch.tensor(targets)


def test_they_equal_scikit_learns(rows):
    logits, targets = rows
    found = label_set_metrics(LABELS, logits, targets, THRESHOLDS, per_label=True)
    said = logits.sigmoid().numpy()
    decided, true = said >= np.array(THRESHOLDS), targets.numpy()
    wanted = {
        "f1_macro": reference.f1_score(true, decided, average="macro"),
        "f1_micro": reference.f1_score(true, decided, average="micro"),
        "subset_accuracy": reference.accuracy_score(true, decided),
        "hamming": reference.hamming_loss(true, decided),
        "auroc_macro": reference.roc_auc_score(true, said, average="macro"),
        "precision_macro": reference.precision_score(true, decided, average="macro"),
        "recall_macro": reference.recall_score(true, decided, average="macro"),
        "loss": np.mean([reference.log_loss(true[:, n], said[:, n].astype(float)) for n in range(3)]),
        "ap_macro": reference.average_precision_score(true, said, average="macro"),
    }
    assert list(wanted) == list(RUN_LABEL_SET_METRICS) == list(found)[: len(wanted)]
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    each = reference.average_precision_score(true, said, average=None)
    assert [found[f"ap_{label}"] for label in LABELS] == pytest.approx(each, abs=1e-5)
    assert found["f1_fear"] == pytest.approx(reference.f1_score(true[:, 2], decided[:, 2]), abs=1e-5)


def test_a_label_that_no_row_has_enters_no_mean(rows):
    logits, targets = rows
    targets = targets.clone()
    targets[:, 1] = 0
    found = label_set_metrics(LABELS, logits, targets, THRESHOLDS, per_label=True)
    others = [name for name in LABELS if name != "anger"]
    for name in ("f1", "precision", "recall", "auroc", "ap"):
        assert found[f"{name}_macro"] == pytest.approx(
            np.mean([found[f"{name}_{label}"] for label in others]), abs=1e-6
        )
        assert f"{name}_anger" not in found
    every = torch.ones_like(targets)
    assert "auroc_macro" not in label_set_metrics(LABELS, logits, every, THRESHOLDS)  # nothing to be above


def test_thresholds_are_the_best_of_all(rows):
    logits, targets = rows
    said = logits.sigmoid()
    for label, threshold in enumerate(best_thresholds(said, targets)):
        true = targets[:, label].numpy()
        tried = [reference.f1_score(true, said[:, label].numpy() >= t) for t in np.linspace(0, 1, 201)]
        mine = reference.f1_score(true, said[:, label].numpy() >= threshold)
        assert mine >= max(tried) - 1e-9
        assert np.abs(said[:, label].numpy() - threshold).min() > 0  # no row is on it, so that rounding decides nothing


@pytest.mark.parametrize(
    ("said", "true", "threshold"),
    [
        ([0.2, 0.8], [0, 1], 0.5),
        ([0.1, 0.2], [0, 1], 0.15),
        ([0.3, 0.3, 0.3], [0, 1, 1], 0.15),  # all alike: all have it
        ([0.2, 0.7], [0, 0], 0.5),  # no row has it: the usual one
        ([1.0, 1.0, 0.0], [1, 0, 0], 0.5),
        ([0.0, 0.0], [1, 0], 0.0),
    ],
)
def test_a_threshold_lies_between_two_rows(said, true, threshold):
    found = best_thresholds(torch.tensor(said)[:, None], torch.tensor(true)[:, None])
    assert found == [pytest.approx(threshold, abs=1e-6)]


def test_labels_are_counted_by_what_they_are_and_are_said_to_be():
    logits = torch.tensor([[2.0, -2], [2, -2], [-2, -2], [-2, 2]])
    targets = torch.tensor([[1.0, 1], [0, 0], [1, 0], [0, 1]])
    assert label_counts(logits, targets, [0.5, 0.5]) == [[1, 1, 1, 1], [2, 0, 1, 1]]
    assert decide(logits.sigmoid(), [0.5, 0.01]).tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]


def test_a_target_measures_with_what_it_has_chosen(rows):
    logits, targets = rows
    target = LabelSets(LABELS)
    assert target.thresholds == [0.5] * 3
    before = target.measure(logits, targets)["f1_macro"]
    target.choose(logits, targets)
    assert target.thresholds == best_thresholds(logits.sigmoid(), targets)
    assert target.measure(logits, targets)["f1_macro"] > before
    assert target.confusion(logits, targets) == label_counts(logits, targets, target.thresholds)
    assert (target.temperature(logits, targets), target.calibrated(logits, targets, 1.0)) == (1.0, {})
    mask = torch.arange(200) < 50
    some = slice_metrics(target, logits, targets, {"some": mask})
    assert some["some/f1_micro"] == pytest.approx(target.measure(logits[:50], targets[:50])["f1_micro"])

"""Metrics equal scikit-learn's, on ragged batches and with classes that are missing (law 5)."""

import math

import numpy as np
import pytest
import torch
from rounding import rounding
from sklearn import metrics as reference

from sentexp.metrics.slice_metrics import slice_metrics
from sentexp.metrics.split_metrics import SplitMetrics
from sentexp.metrics.target import Classes


def computed(logits, targets, labels, batch=7):
    metrics = SplitMetrics(labels)
    for start in range(0, len(targets), batch):
        metrics.update(logits[start : start + batch], targets[start : start + batch])
    return metrics.compute(per_class=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_equal_scikit_learns_on_a_ragged_last_batch(classes):
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(classes, (101,), generator=generator)
    logits = torch.randn(101, classes, generator=generator) + torch.nn.functional.one_hot(targets, classes)
    labels = ["negative", "positive", "neutral"][:classes]
    values = computed(logits, targets, labels)
    probabilities, predicted = logits.softmax(-1).numpy(), logits.argmax(-1).numpy()
    truth = targets.numpy()
    area = reference.roc_auc_score(truth, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr")
    expected = {
        "loss": reference.log_loss(truth, probabilities),
        "accuracy": reference.accuracy_score(truth, predicted),
        "auroc_macro": area,
        "f1_macro": reference.f1_score(truth, predicted, average="macro"),
        "precision_macro": reference.precision_score(truth, predicted, average="macro"),
        "recall_macro": reference.recall_score(truth, predicted, average="macro"),
        "f1_positive": reference.f1_score(truth, predicted, average=None)[1],
        "precision_negative": reference.precision_score(truth, predicted, average=None)[0],
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=rounding(terms=101, sums=1)), name


def test_a_class_that_the_split_lacks_stays_out_of_every_mean():
    targets = torch.tensor([0, 1, 0, 1, 1])
    logits = torch.tensor([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [1, 2, 0], [0, 3, 1]])  # the third row predicts class 2
    values = computed(logits, targets, ["a", "b", "c"])
    predicted = logits.argmax(-1).numpy()
    for name, score in (("f1", reference.f1_score), ("recall", reference.recall_score)):
        expected = score(targets.numpy(), predicted, labels=[0, 1], average="macro")
        assert values[f"{name}_macro"] == pytest.approx(expected), name
    probabilities = logits.softmax(-1).numpy()
    areas = [reference.roc_auc_score(targets.numpy() == label, probabilities[:, label]) for label in (0, 1)]
    assert values["auroc_macro"] == pytest.approx(np.mean(areas))
    assert "f1_c" not in values


def test_the_area_of_a_split_with_one_class_is_not_a_number():
    values = computed(torch.randn(5, 2), torch.zeros(5, dtype=torch.long), ["a", "b"])
    assert math.isnan(values["auroc_macro"])
    assert not math.isnan(values["accuracy"])


def test_probabilities_are_float32():
    targets = torch.tensor([0, 1])
    logits = torch.tensor([[2.5, -1.0], [-1.5, 2.0]])
    low, full = computed(logits.bfloat16(), targets, ["a", "b"]), computed(logits, targets, ["a", "b"])
    assert low["loss"] == pytest.approx(full["loss"], rel=1e-3)
    assert low["loss"] > 0


def test_slices_are_measured_by_themselves():
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(2, (60,), generator=generator)
    logits = torch.randn(60, 2, generator=generator)
    first, single = torch.arange(60) < 40, targets == 1
    masks = {"place/first": first, "place/nobody": torch.zeros(60, dtype=torch.bool), "only_b": single}
    values = slice_metrics(Classes(["a", "b"]), logits, targets, masks)
    assert values["place/first/rows"] == 40
    assert values["place/first/accuracy"] == pytest.approx(
        reference.accuracy_score(targets[first], logits[first].argmax(-1))
    )
    assert values["place/first/f1_macro"] == pytest.approx(
        reference.f1_score(targets[first], logits[first].argmax(-1), average="macro")
    )
    assert values["place/nobody/rows"] == 0
    assert "place/nobody/accuracy" not in values
    assert "only_b/auroc_macro" not in values  # one class has no rest
    assert "only_b/accuracy" in values

"""Metrics of ordered classes equal scikit-learn's, for whole rows and for resampled ones."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from sentexp.compare.metric_sums import measured
from sentexp.config.metric_names import METRICS, ORDERED_METRICS
from sentexp.metrics.ordered_metrics import ordered_metrics
from sentexp.metrics.split_metrics import split_metrics


@pytest.fixture(params=[(200, 5), (60, 3), (40, 2)], ids=str)
def rows(request):
    """Return targets and logits that are near to them."""
    count, classes = request.param
    chance = np.random.default_rng(count)
    targets = chance.integers(0, classes, count)
    logits = chance.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), np.clip(targets + chance.integers(-1, 2, count), 0, classes - 1)] += 2
    return targets, logits


def expected(targets, predicted):
    return {
        "mae": reference.mean_absolute_error(targets, predicted),
        "qwk": reference.cohen_kappa_score(targets, predicted, weights="quadratic"),
        "within_one": float(np.mean(np.abs(targets - predicted) <= 1)),
    }


def test_they_equal_scikit_learns(rows):
    targets, logits = rows
    found = ordered_metrics(logits.shape[1], torch.tensor(logits).argmax(-1), torch.tensor(targets))
    assert found == pytest.approx(expected(targets, logits.argmax(1)), abs=1e-6)
    labels = [str(number) for number in range(logits.shape[1])]
    whole = split_metrics(labels, torch.tensor(logits), torch.tensor(targets), ordered=True)
    assert {name: whole[name] for name in ORDERED_METRICS} == pytest.approx(found)
    assert not set(ORDERED_METRICS) & set(split_metrics(labels, torch.tensor(logits), torch.tensor(targets)))


def test_rows_of_one_class_have_no_kappa():
    ones = torch.ones(4, dtype=torch.long)
    found = ordered_metrics(3, ones, ones)
    assert (found["mae"], found["within_one"]) == (0, 1)
    assert math.isnan(found["qwk"])
    logits = torch.nn.functional.one_hot(ones, 3).float()
    assert "qwk" not in split_metrics(["a", "b", "c"], logits, ones, ordered=True)


def test_resamples_of_rows_have_those_of_their_rows(rows):
    targets, logits = rows
    run = measured(targets, torch.tensor(logits).softmax(-1).numpy(), (*METRICS, *ORDERED_METRICS))
    assert {name: run.whole()[name] for name in ORDERED_METRICS} == pytest.approx(
        expected(targets, logits.argmax(1)), abs=1e-6
    )
    drawn = np.random.default_rng(1).integers(0, len(targets), (20, len(targets)))
    weights = np.stack([np.bincount(each, minlength=len(targets)) for each in drawn]).astype(np.float32)
    found = run(weights)
    for number, each in enumerate(drawn):
        wanted = expected(targets[each], logits[each].argmax(1))
        assert {name: float(found[name][number]) for name in wanted} == pytest.approx(wanted, abs=1e-5)
    without = run.without_each()
    rest = np.arange(len(targets)) != 7
    wanted = expected(targets[rest], logits[rest].argmax(1))
    assert {name: float(without[name][7]) for name in wanted} == pytest.approx(wanted, abs=1e-6)
    alone = measured(targets, torch.tensor(logits).softmax(-1).numpy(), ["qwk"])
    assert alone(weights)["qwk"] == pytest.approx(found["qwk"], abs=1e-6)

"""Metrics of weighted rows: those of torchmetrics, of the rows as they are, resampled, and without one."""

import numpy as np
import pytest
import torch
from rounding import rounding

from sentexp.compare import areas
from sentexp.compare.metric_sums import measured
from sentexp.metrics.split_metrics import split_metrics

ROWS = rounding(terms=200, sums=1)
"""What a mean over as many rows is rounded by."""


@pytest.fixture(params=[(200, 2), (150, 3), (40, 5)], ids=str)
def rows(request):
    """Return targets and logits, many of them tied."""
    count, classes = request.param
    chance = np.random.default_rng(count)
    targets = chance.integers(0, classes, count)
    logits = chance.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), targets] += 1
    return targets, torch.tensor(np.round(logits, 1))


def expected(targets, logits):
    labels = [str(number) for number in range(logits.shape[1])]
    return split_metrics(labels, logits, torch.tensor(targets))


def test_the_rows_as_they_are(rows):
    targets, logits = rows
    assert measured(targets, logits.softmax(-1).numpy()).whole() == pytest.approx(expected(targets, logits), abs=ROWS)


def test_resampled_rows(rows):
    targets, logits = rows
    run = measured(targets, logits.softmax(-1).numpy())
    drawn = np.random.default_rng(1).integers(0, len(targets), (20, len(targets)))
    weights = np.stack([np.bincount(each, minlength=len(targets)) for each in drawn]).astype(np.float32)
    found = run(weights)
    for number, each in enumerate(drawn):
        wanted = expected(targets[each], logits[each])
        assert {name: float(values[number]) for name, values in found.items()} == pytest.approx(wanted, abs=ROWS)


def test_what_is_not_wanted_costs_nothing_and_changes_nothing(rows):
    targets, logits = rows
    probabilities = logits.softmax(-1).numpy()
    weights = np.random.default_rng(3).multinomial(len(targets), np.full(len(targets), 1 / len(targets)), 20)
    whole = measured(targets, probabilities)
    everything, without = whole(weights.astype(np.float32)), whole.without_each()
    for name in everything:
        run = measured(targets, probabilities, [name])
        assert run.whole() == {name: pytest.approx(whole.whole()[name], abs=ROWS)}
        assert run(weights.astype(np.float32))[name] == pytest.approx(everything[name], abs=ROWS)
        assert run.without_each()[name] == pytest.approx(without[name], rel=1e-9)
        assert set(run.without_each()) == {name}


def test_without_each_row(rows):
    targets, logits = rows
    found = measured(targets, logits.softmax(-1).numpy()).without_each()
    for number in (0, len(targets) - 1):
        rest = np.arange(len(targets)) != number
        wanted = expected(targets[rest], logits[rest])
        assert {name: float(values[number]) for name, values in found.items()} == pytest.approx(wanted, abs=ROWS)


def test_many_rows_leave_out_a_remainder_that_does_not_matter(rows, monkeypatch):
    targets, logits = rows
    weights = np.random.default_rng(2).multinomial(len(targets), np.full(len(targets), 1 / len(targets)), 500)
    exact = measured(targets, logits.softmax(-1).numpy())(weights.astype(np.float32))["auroc_macro"]
    monkeypatch.setattr(areas, "FEW_ROWS", 1)
    quick = measured(targets, logits.softmax(-1).numpy())
    assert quick.pairs == []
    found = quick(weights.astype(np.float32))["auroc_macro"]
    assert np.std(found) == pytest.approx(np.std(exact), rel=0.1)
    assert np.abs(found - exact).max() > 0


def test_a_class_without_rows_enters_no_mean():
    """Law 5."""
    targets = np.array([0, 1, 0, 1])
    probabilities = np.array([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]], np.float32)
    found = measured(targets, probabilities).whole()
    assert found["recall_macro"] == pytest.approx(0.5)
    assert found["precision_macro"] == pytest.approx((1 + 0.5) / 2)
    assert found["auroc_macro"] == pytest.approx((1 + 0.625) / 2)  # of class 1 two wins, a tie, a loss


def test_one_class_alone_has_no_area():
    found = measured(np.zeros(3, int), np.full((3, 2), 0.5, np.float32)).whole()
    assert np.isnan(found["auroc_macro"])
    assert found["recall_macro"] == 1

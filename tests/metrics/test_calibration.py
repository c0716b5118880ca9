"""Calibration: the temperature that data were made with is found, and bins are those of the definition."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import nn

from sentexp.config.metric_names import BINS
from sentexp.metrics.calibration import fit_temperature, reliability
from sentexp.metrics.split_metrics import split_metrics

LABELS = ["negative", "neutral", "positive"]


def drawn(scale, rows=4000):
    """Return logits that are `scale` times too large for the labels that are drawn from them."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, 3, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return scale * logits, targets


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_that_data_were_made_with_is_found(scale):
    assert fit_temperature(*drawn(scale)) == pytest.approx(scale, rel=0.06)


def test_the_temperature_has_the_least_loss():
    logits, targets = drawn(3.0, rows=200)
    found = fit_temperature(logits, targets)
    losses = [float(nn.functional.cross_entropy(logits / t, targets)) for t in (found, 0.97 * found, 1.03 * found)]
    assert losses[0] == min(losses)


def test_rows_that_are_all_right_have_the_smallest_temperature():
    assert fit_temperature(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]), torch.tensor([0, 1])) < 0.1


def test_a_temperature_heals_probabilities_that_are_too_sure():
    logits, targets = drawn(4.0)
    before = split_metrics(LABELS, logits, targets)
    after = split_metrics(LABELS, logits / fit_temperature(logits, targets), targets)
    assert after["ece"] < 0.25 * before["ece"]
    assert after["brier"] < before["brier"]
    assert after["accuracy"] == before["accuracy"]


def test_the_brier_score_is_that_of_scikit_learn():
    logits, targets = drawn(1.5, rows=300)
    expected = brier_score_loss(
        targets.numpy(), logits.double().softmax(-1).numpy(), labels=[0, 1, 2], scale_by_half=False
    )
    assert split_metrics(LABELS, logits, targets)["brier"] == pytest.approx(expected, abs=1e-5)


def test_the_calibration_error_is_that_of_the_diagram():
    logits, targets = drawn(2.0, rows=777)
    bins = reliability(logits, targets)
    assert sum(rows for _, _, rows in bins) == 777
    error = sum(rows * abs(confidence - accuracy) for confidence, accuracy, rows in bins) / 777
    assert split_metrics(LABELS, logits, targets)["ece"] == pytest.approx(error, abs=1e-5)


def test_the_bins_are_even_and_hold_the_rows_of_their_confidence():
    logits = torch.tensor([[0.95, 0.05], [0.94, 0.06], [0.55, 0.45], [1.0, 1e-30]]).log()
    bins = reliability(logits, torch.tensor([0, 1, 0, 0]))
    assert [(round(confidence, 3), round(accuracy, 3), rows) for confidence, accuracy, rows in bins] == [
        (0.55, 1.0, 1),
        (round(float(np.mean([0.95, 0.94, 1.0])), 3), 0.667, 3),
    ]
    assert BINS == 15

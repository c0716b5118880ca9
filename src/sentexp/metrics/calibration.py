"""Calibration: one temperature for all logits, fitted on validation rows, and how well probabilities then hold."""

import math

import torch
from torch import Tensor, nn

from sentexp.config.metric_names import BINS

HOTTEST = 100.0


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the T in [0.01, 100] at which softmax(logits / T) has the least cross-entropy (Guo et al. 2017, eq. 9).

    Args:
        logits: of validation rows, float32, shape (rows, classes).
        targets: class indices, shape (rows,).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(nn.functional.cross_entropy(logits.double() / math.exp(log_temperature), targets))

    limit = math.log(HOTTEST)
    return math.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x)


def reliability(logits: Tensor, targets: Tensor) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, rows) of each bin of the largest probability that has rows."""
    confidence, predicted = logits.softmax(-1).max(-1)
    right = (predicted == targets).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    return [
        (float(confidence[bins == n].mean()), float(right[bins == n].mean()), int((bins == n).sum()))
        for n in torch.unique(bins).tolist()
    ]

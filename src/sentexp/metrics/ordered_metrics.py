"""Metrics of classes that have an order, such as ratings: how far an answer is from the truth, in steps of classes."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_cohen_kappa
from torchmetrics.functional.regression import mean_absolute_error


def ordered_metrics(classes: int, predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of rows by name.

    `mae` is the mean distance to the true class, `qwk` the kappa that weights a disagreement by its squared distance
    (Cohen 1968), and `within_one` the share of rows whose answer is the true class or one beside it. Where answers and
    truth are one and the same class everywhere, there is no chance to agree by, and `qwk` is not a number.

    Args:
        classes: how many.
        predicted: class indices, shape (rows,).
        targets: class indices, shape (rows,).
    """
    distances = (predicted - targets).abs()
    is_constant = len(torch.unique(torch.cat([predicted, targets]))) == 1
    kappa = math.nan if is_constant else float(multiclass_cohen_kappa(predicted, targets, classes, weights="quadratic"))
    return {
        "mae": float(mean_absolute_error(predicted.float(), targets.float())),
        "qwk": kappa,
        "within_one": float((distances <= 1).float().mean()),
    }

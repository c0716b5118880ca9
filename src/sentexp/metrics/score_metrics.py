"""Metrics of scores, from torchmetrics: how far predicted numbers are from true ones, and whether they go together."""

import math
import warnings

import torch
from torch import Tensor
from torchmetrics.functional.regression import (
    mean_absolute_error,
    mean_squared_error,
    pearson_corrcoef,
    spearman_corrcoef,
)


def score_metrics(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics of rows by name; a correlation is left out where one side is constant, as it has none.

    Args:
        predicted: scores, shape (rows,).
        targets: true scores, shape (rows,).
    """
    said, true = predicted.double(), targets.double()
    values = {
        "rmse": float(mean_squared_error(said, true, squared=False)),
        "mae": float(mean_absolute_error(said, true)),
    }
    if min(len(torch.unique(said)), len(torch.unique(true))) > 1:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The variance of predictions or target is close to zero")
            values["pearson"] = float(pearson_corrcoef(said, true))
        values["spearman"] = float(spearman_corrcoef(said, true))
    return {name: value for name, value in values.items() if math.isfinite(value)}

"""Metrics of a split, from torchmetrics; a class that is not there never enters a mean (law 5)."""

import math
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from sentexp.config.metric_names import BINS, safe_classes
from sentexp.metrics.ordered_metrics import ordered_metrics

ALONE: dict[str, Any] = {"sync_on_compute": False}
"""Of every metric: the rows of all processes are here already, and torchmetrics would count them once per process."""


class SplitMetrics(nn.Module):
    """Loss, accuracy, AUROC, F1, precision, recall and calibration over the rows of a split.

    `auroc_macro` is the mean of the one-against-rest areas; for two classes that is the area of either class. `ece` is
    the expected calibration error over 15 bins of the largest probability (Guo et al. 2017, eq. 3), `brier` the mean of
    the summed squared errors of the probabilities, from 0 to 2 (Brier 1950).

    Args:
        labels: class names, in the order of the probabilities.
    """

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        classes = len(labels)
        self.labels = labels
        self.loss = MeanMetric(**ALONE)
        self.accuracy = MulticlassAccuracy(classes, average="micro", **ALONE)
        self.ece = MulticlassCalibrationError(classes, n_bins=BINS, norm="l1", **ALONE)
        self.brier = MeanMetric(**ALONE)
        self.confusion = MulticlassConfusionMatrix(classes, **ALONE)
        self.per_class = nn.ModuleDict(
            {
                "auroc": MulticlassAUROC(classes, average="none", **ALONE),
                "f1": MulticlassF1Score(classes, average="none", **ALONE),
                "precision": MulticlassPrecision(classes, average="none", **ALONE),
                "recall": MulticlassRecall(classes, average="none", **ALONE),
            }
        )

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add rows.

        Args:
            logits: float32, shape (rows, classes).
            targets: class indices, shape (rows,).
        """
        probabilities = logits.float().softmax(-1)
        self.loss.update(nn.functional.cross_entropy(logits.float(), targets, reduction="none"))
        errors = probabilities - nn.functional.one_hot(targets, len(self.labels))
        self.brier.update(errors.square().sum(-1))
        for metric in (self.accuracy, self.confusion, self.ece, *self._each()):
            metric.update(probabilities, targets)

    def compute(self, per_class: bool = False) -> dict[str, float]:
        """Return the metrics by name; with `per_class` also `f1_<class>` and so on for each that is present."""
        safe = safe_classes(self.labels)
        support = self.confusion.compute().sum(1)
        present = [index for index in range(len(self.labels)) if support[index] > 0]
        values = {"loss": float(self.loss.compute()), "accuracy": float(self.accuracy.compute())}
        for name, metric in zip(self.per_class, self._each(), strict=True):
            scores = self._auroc(metric, len(present)) if name == "auroc" else metric.compute()
            values[f"{name}_macro"] = float(scores[present].mean())
            if per_class and name != "auroc":
                values |= {f"{name}_{safe[self.labels[index]]}": float(scores[index]) for index in present}
        return values | {"ece": float(self.ece.compute()), "brier": float(self.brier.compute())}

    def _each(self) -> list[Metric]:
        return cast("list[Metric]", list(self.per_class.values()))

    def _auroc(self, metric: Metric, present: int) -> Tensor:
        """Return the area of each class; not a number when only one class is present, as it has no rest."""
        if present == 1:
            return torch.full((len(self.labels),), float("nan"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples in targets")
            return metric.compute()  # type: ignore[no-any-return]


def split_metrics(
    labels: list[str], logits: Tensor, targets: Tensor, per_class: bool = False, ordered: bool = False
) -> dict[str, float]:
    """Return the metrics of all rows of a split at once (see `SplitMetrics`); if wanted those of ordered classes."""
    metrics = SplitMetrics(labels)
    metrics.update(logits, targets)
    distances = ordered_metrics(len(labels), logits.argmax(-1), targets) if ordered else {}
    return metrics.compute(per_class) | {name: value for name, value in distances.items() if math.isfinite(value)}


def confusion_matrix(labels: list[str], logits: Tensor, targets: Tensor) -> list[list[int]]:
    """Return counts of true labels (rows) against predicted labels (columns)."""
    metric = MulticlassConfusionMatrix(len(labels), **ALONE)
    return metric(logits, targets).int().tolist()  # type: ignore[no-any-return]

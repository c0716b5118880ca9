"""Metrics of a split and of its slices, from torchmetrics; a class that is not there never enters a mean (law 5)."""

import math
import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

SLICE_METRICS = ("accuracy", "f1_macro", "auroc_macro")


class SplitMetrics(nn.Module):
    """Loss, accuracy, AUROC, F1, precision and recall over all rows of a split, ragged last batch included.

    `auroc_macro` is the mean of the one-against-rest areas; for two classes that is the area of either class.

    Args:
        labels: class names, in the order of the probabilities.
    """

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        classes = len(labels)
        self.labels = labels
        self.loss = MeanMetric()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.confusion = MulticlassConfusionMatrix(classes)
        self.per_class = nn.ModuleDict(
            {
                "auroc": MulticlassAUROC(classes, average="none"),
                "f1": MulticlassF1Score(classes, average="none"),
                "precision": MulticlassPrecision(classes, average="none"),
                "recall": MulticlassRecall(classes, average="none"),
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
        for metric in (self.accuracy, self.confusion, *self._each()):
            metric.update(probabilities, targets)

    def compute(self, per_class: bool = False) -> dict[str, float]:
        """Return the metrics by name; with `per_class` also `f1_<label>` and so on for each class that is present."""
        support = self.confusion.compute().sum(1)
        present = [index for index in range(len(self.labels)) if support[index] > 0]
        values = {"loss": float(self.loss.compute()), "accuracy": float(self.accuracy.compute())}
        for name, metric in zip(self.per_class, self._each(), strict=True):
            scores = self._auroc(metric, len(present)) if name == "auroc" else metric.compute()
            values[f"{name}_macro"] = float(scores[present].mean())
            if per_class and name != "auroc":
                values |= {f"{name}_{self.labels[index]}": float(scores[index]) for index in present}
        return values

    def reset(self) -> None:
        """Forget all rows."""
        for metric in (self.loss, self.accuracy, self.confusion, *self._each()):
            metric.reset()

    def _each(self) -> list[Metric]:
        return cast("list[Metric]", list(self.per_class.values()))

    def _auroc(self, metric: Metric, present: int) -> Tensor:
        """Return the area of each class; not a number when only one class is present, as it has no rest."""
        if present == 1:
            return torch.full((len(self.labels),), float("nan"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples in targets")
            return metric.compute()  # type: ignore[no-any-return]


def slice_metrics(labels: list[str], logits: Tensor, targets: Tensor, slices: Mapping[str, Tensor]) -> dict[str, float]:
    """Return `<slice>/rows`, `<slice>/accuracy` and so on for each slice; what a slice cannot tell is left out.

    Args:
        labels: class names, in the order of the logits.
        logits: float32, shape (rows, classes).
        targets: class indices, shape (rows,).
        slices: by name, the mask of its rows, shape (rows,).
    """
    values: dict[str, float] = {}
    for name, mask in slices.items():
        values[f"{name}/rows"] = float(mask.sum())
        if mask.any():
            metrics = SplitMetrics(labels)
            metrics.update(logits[mask], targets[mask])
            computed = metrics.compute()
            values |= {f"{name}/{key}": computed[key] for key in SLICE_METRICS if math.isfinite(computed[key])}
    return values

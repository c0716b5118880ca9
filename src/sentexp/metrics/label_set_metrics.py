"""Metrics of several labels a text, from torchmetrics; a label that is not there never enters a mean (law 5)."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_confusion_matrix,
    multilabel_exact_match,
    multilabel_f1_score,
    multilabel_hamming_distance,
    multilabel_precision,
    multilabel_recall,
)

from sentexp.config.metric_names import RUN_LABEL_SET_METRICS, safe_classes

USUAL = 0.5
"""The threshold of a label that no validation row has."""


def best_thresholds(probabilities: Tensor, targets: Tensor) -> list[float]:
    """Return for each label the probability from which it holds, where its F1 is largest.

    It lies in the middle between two probabilities that are there, so that rounding moves no decision; of several that
    are as good it is the nearest to 0.5, and that is also the threshold of a label without rows.

    Args:
        probabilities: of validation rows, shape (rows, labels).
        targets: 1 where a row has a label, shape (rows, labels).
    """
    columns = zip(probabilities.double().T.numpy(), targets.T.numpy(), strict=True)
    return [_best_threshold(said, true > 0) for said, true in columns]


def _best_threshold(said: NDArray[Any], true: NDArray[Any]) -> float:
    if not true.any():
        return USUAL
    order = np.argsort(-said, kind="stable")
    values = np.concatenate([[1.0], said[order], [0.0]])
    middles = (values[1:] + values[:-1]) / 2  # the threshold under which the first 0, 1, 2, ... rows have the label
    differs = values[1:] < values[:-1]
    differs[[0, -1]] = True
    hits = np.concatenate([[0], np.cumsum(true[order])])
    f1 = 2 * hits / (np.arange(len(hits)) + true.sum())
    best = np.flatnonzero(differs & (f1 == f1[differs].max()))
    return float(middles[best[np.abs(middles[best] - USUAL).argmin()]])


def decide(probabilities: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return 1 where a label holds, as integers, shape (rows, labels).

    Args:
        probabilities: shape (rows, labels).
        thresholds: from which each label holds.
    """
    return (probabilities.double() >= torch.tensor(thresholds, dtype=torch.float64)).long()


def label_set_metrics(
    labels: Sequence[str], logits: Tensor, targets: Tensor, thresholds: Sequence[float], per_label: bool = False
) -> dict[str, float]:
    """Return the metrics of rows by name; what the rows cannot tell is left out.

    Args:
        labels: names, in the order of the logits.
        logits: float32, shape (rows, labels).
        targets: 1 where a row has a label, shape (rows, labels).
        thresholds: from which each label holds.
        per_label: also those of each label that is present, such as `f1_<label>`.
    """
    probabilities, true = logits.float().sigmoid(), targets.long()
    decided, count = decide(probabilities, thresholds), len(labels)
    values = {
        "loss": float(nn.functional.binary_cross_entropy_with_logits(logits.float(), targets.float())),
        "f1_micro": float(multilabel_f1_score(decided, true, count, average="micro")),
        "subset_accuracy": float(multilabel_exact_match(decided, true, count)),
        "hamming": float(multilabel_hamming_distance(decided, true, count, average="micro")),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (positive|negative) samples in targets")
        warnings.filterwarnings("ignore", message="No positive samples found in target")
        each = {
            "f1": multilabel_f1_score(decided, true, count, average="none"),
            "precision": multilabel_precision(decided, true, count, average="none"),
            "recall": multilabel_recall(decided, true, count, average="none"),
            "auroc": multilabel_auroc(probabilities, true, count, average="none"),
            "ap": multilabel_average_precision(probabilities, true, count, average="none"),
        }
    of_labels: dict[str, float] = {}
    held = true.bool().any(0)
    divided = held & (true == 0).any(0)  # an area needs rows with and without the label
    safe = safe_classes(labels)
    for name, scores in each.items():
        present = divided if name == "auroc" else held
        values[f"{name}_macro"] = float(scores[present].mean())
        if per_label:
            numbers = torch.nonzero(present).flatten().tolist()
            of_labels |= {f"{name}_{safe[labels[number]]}": float(scores[number]) for number in numbers}
    return {name: values[name] for name in RUN_LABEL_SET_METRICS if math.isfinite(values[name])} | of_labels


def label_counts(logits: Tensor, targets: Tensor, thresholds: Sequence[float]) -> list[list[int]]:
    """Return for each label the rows that lack it and are said to lack it, to have it; that have it, and the same.

    Args:
        logits: shape (rows, labels).
        targets: 1 where a row has a label, shape (rows, labels).
        thresholds: from which each label holds.
    """
    decided = decide(logits.float().sigmoid(), thresholds)
    counts: list[list[int]] = multilabel_confusion_matrix(decided, targets.long(), len(thresholds)).flatten(1).tolist()
    return counts

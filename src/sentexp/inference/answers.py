"""What a run says of a text, as columns: a label and probabilities, a list of labels and probabilities, or a score."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.config import TargetKind
from sentexp.config.metric_names import SCORE
from sentexp.models.saved import Trained
from sentexp.tracking.predictions import holds

LABEL, LABELS, PROBABILITY = "label", "labels", "probability_"
"""Names of the columns of predictions; the last precedes each label."""


def output_columns(trained: Trained) -> list[str]:
    """Return the columns of a run's predictions."""
    if trained.kind is TargetKind.scores:
        return [SCORE]
    first = LABELS if trained.kind is TargetKind.label_sets else LABEL
    return [first, *(PROBABILITY + label for label in trained.labels)]


def answers(trained: Trained, probabilities: NDArray[Any]) -> list[list[Any]]:
    """Return what comes before the probabilities of each row: its label, a list of labels, or nothing for a score.

    Args:
        trained: the run.
        probabilities: shape (rows, labels).
    """
    match trained.kind:
        case TargetKind.scores:
            return [[] for _ in probabilities]
        case TargetKind.label_sets:
            assert trained.thresholds is not None
            held = holds(probabilities, trained.thresholds)
            return [[_names(trained.labels, np.flatnonzero(row))] for row in held]
    return [[trained.labels[best]] for best in probabilities.argmax(1)]


def _names(labels: Sequence[str], numbers: NDArray[Any]) -> list[str]:
    return [labels[number] for number in numbers.tolist()]


def what_is_missing(trained: Trained) -> str:
    """Return what a row without a text lacks, and its verb."""
    return {
        TargetKind.scores: "score is",
        TargetKind.classes: "label and probabilities are",
        TargetKind.label_sets: "labels and probabilities are",
    }[trained.kind]

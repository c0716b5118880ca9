"""What rows with any number of labels add to the sums that metrics are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.tracking.predictions import holds


def label_set_parts(
    members: NDArray[Any], probabilities: NDArray[Any], thresholds: Sequence[float]
) -> dict[str, NDArray[Any]]:
    """Return what each row adds, by the kind of the sum: see `sentexp.compare.metric_sums`.

    Args:
        members: whether a row has a label, shape (rows, labels).
        probabilities: same shape.
        thresholds: from which each label holds.
    """
    decided = holds(probabilities, thresholds)
    wrong = (decided != members).mean(1)[:, None]
    return {
        "loss": _losses(members, probabilities)[:, None],
        "support": members,
        "said": decided,
        "right": members & decided,
        "wrong": wrong,
        "exact": wrong == 0,
    }


def _losses(members: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return the binary cross-entropy of each row, its mean over the labels, shape (rows,)."""
    said = np.where(members, probabilities, 1 - probabilities.astype(np.float64))
    losses: NDArray[Any] = -np.log(np.maximum(said, np.finfo(np.float32).tiny)).mean(1)
    return losses

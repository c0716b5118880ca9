"""Imbalance: weights of classes in the loss, and of rows in the order of an epoch."""

from typing import Any

import numpy as np

from sentexp.config import DataConfig, Sampling
from sentexp.data.splits import Examples
from sentexp.data.text_hash import Numbers
from sentexp.errors import require


def class_weights(data: DataConfig, examples: Examples) -> list[float] | None:
    """Return the weight of each class in the loss, or None for none.

    `balanced` is scikit-learn's: rows / (classes * rows of the class), so that the mean over the training rows is 1. A
    class without training rows has the weight 0, and classes that are there share the rows.

    Raises:
        UserError: a list of another length than the classes have.
    """
    given: Any = data.class_weights
    if given is None:
        return None
    if isinstance(given, list):
        require(
            len(given) == len(examples.labels),
            f"data.class_weights={given} has {len(given)} numbers for the {len(examples.labels)} classes "
            f"{', '.join(examples.labels)}: give one number for each.",
        )
        return [float(weight) for weight in given]
    counts = np.bincount(examples.targets("train"), minlength=len(examples.labels))
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 0.0).tolist()  # type: ignore[no-any-return]


def row_weights(data: DataConfig, examples: Examples) -> Numbers | None:
    """Return the chance of each training row to be drawn, up to a factor, shape (rows,); None takes each once."""
    if data.sampling is Sampling.natural:
        return None
    if data.sampling is Sampling.balanced_labels:
        kinds = [examples.targets("train") == label for label in range(len(examples.labels))]
    else:
        columns = examples.slices("train").values()
        kinds = [np.ones(examples.train.num_rows, bool)]
        for masks in columns:  # several columns: each combination of their values is as frequent as any other
            kinds = [kind & mask for kind in kinds for mask in masks.values()]
    weights = np.zeros(examples.train.num_rows)
    for kind in kinds:
        weights[kind] = 1 / max(1, kind.sum())
    return weights

"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def doubted_rows(labels: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return the rows whose label is probably wrong, those first whose label is the least probable.

    A class is confidently said of a row if its probability reaches the mean that it has on the rows labelled so. A row
    is doubted where the likeliest of such classes is another than its label, and the label is not the likeliest of all.

    Args:
        labels: class numbers, shape (rows,).
        probabilities: of a model that was not trained on these rows, shape (rows, classes).
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    rows = np.bincount(labels, minlength=probabilities.shape[1])
    means = np.bincount(labels, of_label, len(rows)) / np.maximum(rows, 1)
    confident = (probabilities >= means - 1e-6) & (rows > 0)
    said = np.where(confident, probabilities, -1.0).argmax(1)
    doubted = np.flatnonzero(confident.any(1) & (said != labels) & (probabilities.argmax(1) != labels))
    first: NDArray[Any] = doubted[np.argsort(of_label[doubted], kind="stable")]
    return first

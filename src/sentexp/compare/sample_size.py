"""How certain a share of rows is, and how small a difference of two classifiers they can show."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHA, POWER = 0.05, 0.8


def standard_error(accuracy: float, rows: int) -> float:
    """Return the standard error of an accuracy that is measured on some rows (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / rows)


def wilson(
    right: NDArray[Any] | float, rows: NDArray[Any] | float, confidence: float = 0.95
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the ends of the interval of a share (Wilson 1927).

    Args:
        right: how many rows are; runs that answer the same rows can be averaged.
        rows: of how many.
        confidence: of the interval.
    """
    from scipy.special import ndtri

    square = ndtri((1 + confidence) / 2) ** 2
    share, room = np.asarray(right) / rows, 1 + square / rows
    middle = (share + square / (2 * rows)) / room
    half = np.sqrt(square * (share * (1 - share) / rows + square / (4 * rows**2))) / room
    return middle - half, middle + half


def rows_needed(difference: float, disagreement: float) -> float:
    """Return the rows on which McNemar's test, two-sided at `ALPHA`, finds a difference of accuracies with `POWER`.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43.

    Args:
        difference: of the two accuracies, at most `disagreement`.
        disagreement: the share of rows on which one is right and the other is wrong.
    """
    from scipy.special import ndtri

    chance, miss = ndtri(1 - ALPHA / 2), ndtri(POWER)
    spread = chance * math.sqrt(disagreement) + miss * math.sqrt(disagreement - difference**2)
    return float((spread / difference) ** 2)


def detectable(rows: int, disagreement: float) -> float:
    """Return the smallest difference that so many rows show; `disagreement` itself where they show none."""
    from scipy.optimize import brentq

    if disagreement == 0 or rows_needed(disagreement, disagreement) >= rows:
        return disagreement
    return float(brentq(lambda difference: rows_needed(difference, disagreement) - rows, 1e-6, disagreement))

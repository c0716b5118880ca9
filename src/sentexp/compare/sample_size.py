"""How small a difference a number of rows can show, where two classifiers are compared on the same rows."""

import math

ALPHA, POWER = 0.05, 0.8


def standard_error(accuracy: float, rows: int) -> float:
    """Return the standard error of an accuracy that is measured on some rows (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / rows)


def rows_needed(difference: float, disagreement: float) -> float:
    """Return the rows on which McNemar's test, two-sided at `ALPHA`, finds a difference of accuracies with `POWER`.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43.

    Args:
        difference: of the two accuracies, at most `disagreement`.
        disagreement: the share of rows on which one is right and the other is wrong.
    """
    from scipy.stats import norm

    chance, miss = norm.ppf(1 - ALPHA / 2), norm.ppf(POWER)
    spread = chance * math.sqrt(disagreement) + miss * math.sqrt(disagreement - difference**2)
    return float((spread / difference) ** 2)


def detectable(rows: int, disagreement: float) -> float:
    """Return the smallest difference that so many rows show; `disagreement` itself where they show none."""
    from scipy.optimize import brentq

    if rows_needed(disagreement, disagreement) >= rows:
        return disagreement
    return float(brentq(lambda difference: rows_needed(difference, disagreement) - rows, 1e-6, disagreement))

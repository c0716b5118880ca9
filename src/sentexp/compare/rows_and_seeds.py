"""Errors from two sources: rows, whose variance the bootstrap knows, and seeds, whose variance few runs estimate.

Where the variance `s^2` between seeds was found with `f` degrees of freedom, the true one is `f s^2 / chi^2(f)`. An
error is then the sum of a normal variable and of one of Student's (Fisher 1935, "The fiducial argument in statistical
inference", Annals of Eugenics 6: the problem of Behrens and Fisher, one of whose variances is known here). That test
does not reject too often, however much of the variance is that of the seeds; Student's test at Satterthwaite's degrees
of freedom rejects in up to 8 % of the cases at 5 % where `f` is 2.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.sample_size import ALPHA, POWER

FEWEST, DENSITY, TAIL = 48, 3, 1e-12
"""Points at which the logarithm of a chi-squared variable is taken: at least, in each unit, and the chance beyond."""
SHARES = 257
"""Parts of the variance that seeds may have, from 0 to 1, for which a quantile is computed."""


def p_value(
    difference: NDArray[Any] | float, by_rows: NDArray[Any] | float, by_seeds: NDArray[Any] | float, freedom: int
) -> NDArray[Any]:
    """Return the p-value of a difference, two-sided; 1 where it has no variance.

    Args:
        difference: of two means over seeds, any shape.
        by_rows: its variance over resamples of the rows.
        by_seeds: its variance between seeds, as it was found.
        freedom: degrees of freedom of `by_seeds`.
    """
    from scipy.special import ndtr  # scipy.stats takes longer to import than a comparison

    larger, weights = _true_variance(freedom)
    error = np.sqrt(np.asarray(by_rows)[..., None] + np.asarray(by_seeds)[..., None] * larger)
    certain = error == 0
    beyond = 2 * ndtr(-np.abs(difference)[..., None] / np.where(certain, 1, error))
    p: NDArray[Any] = np.where(certain, 1, beyond) @ weights
    return p


def half_width(
    by_rows: NDArray[Any] | float, by_seeds: NDArray[Any] | float, freedom: int, confidence: float
) -> NDArray[Any]:
    """Return half the width of the interval of a mean over seeds, for new rows and new seeds; see `p_value`."""
    total = np.add(by_rows, by_seeds)
    share = by_seeds / np.where(total == 0, 1, total)
    quantile = np.interp(share, np.linspace(0, 1, SHARES), _quantiles(freedom, confidence))
    return np.asarray(quantile * np.sqrt(total))


def detectable(by_rows: float, by_seeds: float, freedom: int) -> float:
    """Return the smallest true difference that another test at `ALPHA` finds with the chance `POWER`.

    It has as many rows and seeds. Neither the true variance of the seeds is known nor the one that it will find: the
    chance is over both.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    larger, weights = _true_variance(freedom)
    true = by_seeds * larger
    needed = half_width(by_rows, true[:, None] / larger, freedom, 1 - ALPHA)
    error = np.sqrt(by_rows + true)[:, None]
    largest = start = float(np.sqrt(by_rows + by_seeds))
    if not start > 0:  # or not a number
        return start

    def lacking(difference: float) -> float:
        return float(weights @ ndtr((difference - needed) / error) @ weights) - POWER

    while lacking(largest) < 0:
        largest *= 2
    return float(brentq(lacking, 0, largest, xtol=1e-6 * start))


@cache
def _true_variance(freedom: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how many times the true variance may be the one that was found, and how likely each is; sums to 1."""
    from scipy.special import gammainccinv, gammaincinv

    if freedom == 0:
        return np.ones(1), np.ones(1)
    half = freedom / 2
    low, high = np.log(gammaincinv(half, TAIL)), np.log(gammainccinv(half, TAIL))  # of chi^2(f) / 2
    logs = np.linspace(low, high, max(FEWEST, round(DENSITY * (high - low))))
    density = np.exp(half * (logs - np.log(half)) - np.exp(logs) + half)
    return half / np.exp(logs), density / density.sum()


@cache
def _quantiles(freedom: int, confidence: float) -> NDArray[Any]:
    """Return the quantiles of an absolute error of variance 1, by the share that seeds have of it, shape (SHARES,)."""
    share = np.linspace(0, 1, SHARES)
    low, high = np.zeros(SHARES), np.ones(SHARES)
    while (beyond := p_value(high, 1 - share, share, freedom) > 1 - confidence).any():
        high[beyond] *= 2
    for _ in range(40):
        middle = (low + high) / 2
        beyond = p_value(middle, 1 - share, share, freedom) > 1 - confidence
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return high

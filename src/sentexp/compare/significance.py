"""Tests of differences on the same rows, their correction for many comparisons, and ranks that ties share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.bootstrap import CELLS
from sentexp.compare.metric_sums import Measured, from_sums
from sentexp.compare.sample_size import ALPHA

TOLERANCE = 1e-6
"""Differences that are the same apart from rounding in float32."""


def mcnemar(right: NDArray[Any]) -> NDArray[Any]:
    """Return the p-values of McNemar's exact test for every two runs, shape (runs, runs) (McNemar 1947).

    Under the null hypothesis a row that one run gets right and the other wrong falls to either with the same chance.

    Args:
        right: whether each run is right on each row, bool, shape (runs, rows).
    """
    from scipy.special import bdtr  # scipy.stats takes longer to import than a comparison

    hits = right.astype(np.float32)
    ahead = hits @ (1 - hits).T
    fewer, both = np.minimum(ahead, ahead.T), (ahead + ahead.T).astype(np.int64)
    p: NDArray[Any] = np.minimum(1.0, 2 * bdtr(fewer, both, 0.5))
    return p


def permutation(run: Measured, other: Measured, metric: str, permutations: int, seed: int) -> float:
    """Return the p-value of a paired permutation test of two runs (Pitman 1937).

    Under the null hypothesis the answers of the two to a row can be exchanged. The difference that was found counts as
    one of the permutations, so that no p-value is below 1 / (permutations + 1) (Phipson and Smyth 2010).

    Args:
        run: on the same rows as the other.
        other: on the same rows.
        metric: any but the area under the ROC curve, which is not a function of sums over rows.
        permutations: random ones.
        seed: of the permutations.
    """
    rows, classes = len(run.features), run.classes
    differences = run.features - other.features
    ours, theirs = (one.features.sum(0, dtype=np.float64) for one in (run, other))
    observed = abs(float(from_sums(ours, classes, [metric])[metric] - from_sums(theirs, classes, [metric])[metric]))
    reached, chance = 1, np.random.default_rng(seed)
    block = max(1, CELLS // rows)
    for start in range(0, permutations, block):
        swapped = chance.integers(0, 2, (min(block, permutations - start), rows)).astype(np.float32)
        moved = (swapped @ differences).astype(np.float64)
        gaps = from_sums(ours - moved, classes, [metric])[metric] - from_sums(theirs + moved, classes, [metric])[metric]
        reached += int(np.sum(np.abs(gaps) >= observed - TOLERANCE))
    return reached / (permutations + 1)


def correct(p: NDArray[Any], method: str) -> NDArray[Any]:
    """Return p-values corrected for their number: `holm` (Holm 1979) or `fdr_bh` (Benjamini and Hochberg 1995).

    Args:
        p: shape (comparisons,), or a symmetric matrix whose pairs are the comparisons.
        method: as statsmodels calls it, whose own function collects garbage at each Holm correction, which takes longer
            than all else here.
    """
    if p.ndim > 1:
        corrected = np.ones_like(p)
        upper = np.triu_indices(len(p), 1)
        corrected[upper] = correct(p[upper], method)
        return np.asarray(np.minimum(corrected, corrected.T))
    order = np.argsort(p, kind="stable")
    places = np.arange(len(p))
    corrected = np.empty_like(p)
    if method == "holm":
        corrected[order] = np.maximum.accumulate(p[order] * (len(p) - places))
    else:
        corrected[order] = np.minimum.accumulate((p[order] / ((places + 1) / len(p)))[::-1])[::-1]
    return np.asarray(np.minimum(1.0, corrected))


def ranks(values: NDArray[Any], corrected: NDArray[Any], higher: bool, alpha: float = ALPHA) -> NDArray[Any]:
    """Return the rank of each run, from 1; runs that do not differ significantly from the best of a rank share it.

    Where `corrected` bounds the chance of any error over all pairs (Holm's does), rank 1 holds the best run with a
    chance of at least 1 - alpha.

    Args:
        values: of the metric, shape (runs,).
        corrected: p-values for every two runs, shape (runs, runs).
        higher: whether more is better.
        alpha: below it a difference is significant.
    """
    ranked = np.zeros(len(values), np.int64)
    left = np.argsort(-values if higher else values, kind="stable")
    rank = 0
    while len(left):
        rank += 1
        tied = corrected[left[0], left] > alpha
        tied[0] = True
        ranked[left[tied]] = rank
        left = left[~tied]
    return ranked

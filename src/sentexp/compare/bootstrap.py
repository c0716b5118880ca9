"""Resamples of the test rows, the same for every run, and the intervals that follow from them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.metric_sums import Measured, resampled

CELLS = 1 << 24
"""Weights that are in memory at one time."""
TOGETHER = 16
"""Runs whose sums are computed at one time."""


class Interval(NamedTuple):
    """A value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def weights(rows: int, resamples: int, seed: int) -> Iterator[NDArray[Any]]:
    """Yield how often each row is in each resample, float32, in blocks of shape (some resamples, rows).

    Args:
        rows: that are drawn from, with replacement, as many as there are.
        resamples: in all blocks.
        seed: of the draws.
    """
    chance = np.random.default_rng(seed)
    block = max(1, CELLS // rows)
    for start in range(0, resamples, block):
        drawn = np.empty((min(block, resamples - start), rows), np.float32)
        for resample in drawn:
            resample[:] = np.bincount(chance.integers(0, rows, rows), minlength=rows)
        yield drawn


def replicate(runs: Sequence[Measured], rows: int, resamples: int, seed: int) -> dict[str, NDArray[Any]]:
    """Return every metric of every run on every resample, by name, shape (runs, resamples).

    The resamples are the same for all runs, so that differences between runs are paired (Efron and Tibshirani 1993,
    An Introduction to the Bootstrap, chapter 8).
    """
    batches = [runs[start : start + TOGETHER] for start in range(0, len(runs), TOGETHER)]
    blocks = [[resampled(batch, drawn) for batch in batches] for drawn in weights(rows, resamples, seed)]
    return {
        name: np.concatenate([np.concatenate([batch[name] for batch in block]) for block in blocks], axis=1)
        for name in runs[0].metrics
    }


def acceleration(without_each: NDArray[Any]) -> float:
    """Return how fast the standard error changes with the value, by the jackknife; NaN where it cannot be known.

    Args:
        without_each: the metric on the rows without one, shape (rows,).
    """
    left = without_each[np.isfinite(without_each)]
    if len(left) == 0:
        return float("nan")
    spread = left.mean() - left
    squares = spread * spread
    scale = squares.sum() ** 1.5
    return float(np.sum(squares * spread) / (6 * scale)) if scale > 0 else float("nan")


def bca(value: float, replicates: NDArray[Any], bend: float, confidence: float) -> Interval:
    """Return the bias-corrected and accelerated interval (Efron 1987, JASA 82; Efron and Tibshirani 1993, 14.3).

    Args:
        value: of the metric on all rows.
        replicates: on the resamples, shape (resamples,).
        bend: its `acceleration`; where that is not known the interval is between two quantiles.
        confidence: of the interval.
    """
    from scipy.special import ndtr, ndtri

    finite = replicates[np.isfinite(replicates)]
    if len(finite) == 0 or not np.isfinite(bend):
        return percentile(value, finite, confidence)
    # ties with the value count half, as the metrics are steps
    share = (np.sum(finite < value) + np.sum(finite <= value)) / (2 * len(finite))
    edge = 1 / (2 * len(finite))
    bias = ndtri(np.clip(share, edge, 1 - edge))
    tails = ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = ndtr(bias + (bias + tails) / (1 - bend * (bias + tails)))
    low, high = np.quantile(finite, levels)
    return Interval(value, float(low), float(high))


def percentile(value: float, replicates: NDArray[Any], confidence: float) -> Interval:
    """Return the interval between two quantiles of the replicates; the value itself where there are none."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) == 0:
        return Interval(value, value, value)
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))

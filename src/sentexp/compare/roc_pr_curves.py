"""ROC and precision-recall curves on a grid, with bands from the resamples that all runs share.

A curve of weighted rows is made of cumulative sums over the rows by falling score, so that all resamples of a block
are computed at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.bootstrap import weights

GRID = np.linspace(0, 1, 101)
"""Of the false positive rate, or of recall."""
SMALLEST = 1e-12
Curve = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""From counts of true and false positives at each threshold, shape (thresholds,), to a curve, shape (101,)."""


class Band(NamedTuple):
    """A curve on `GRID` and the ends of its pointwise interval, each of shape (101,)."""

    line: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]


def roc(true: NDArray[Any], false: NDArray[Any]) -> NDArray[Any]:
    """Return the true positive rate at each false positive rate; straight between thresholds."""
    if true[-1] == 0 or false[-1] == 0:
        return np.full(len(GRID), np.nan)
    return np.interp(GRID, np.r_[0, false / false[-1]], np.r_[0, true / true[-1]])


def precision_recall(true: NDArray[Any], false: NDArray[Any]) -> NDArray[Any]:
    """Return the precision at the first threshold that reaches each recall; at 0, at the first true positive.

    It is not interpolated: a straight line promises what no threshold gives (Davis and Goadrich 2006).
    """
    if true[-1] == 0:
        return np.full(len(GRID), np.nan)
    reached = np.searchsorted(true / true[-1], np.maximum(GRID, SMALLEST), side="left")
    return np.asarray(true[reached] / (true[reached] + false[reached]))


def band(
    curve: Curve,
    targets: NDArray[Any],
    runs: Sequence[NDArray[Any]],
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Band:
    """Return the curve of a configuration, a mean over its runs, and its band over resamples of the rows.

    With two classes the last is the positive one; with more the curve is a mean over those that have rows, each
    against the rest.

    Args:
        curve: `roc` or `precision_recall`.
        targets: class indices, shape (rows,).
        runs: the probabilities of each, shape (rows, classes).
        confidence: of the band, at each point by itself.
        resamples: of the rows.
        seed: of the resamples: the same for all configurations pairs them.
    """
    classes = positives(targets, runs[0].shape[1])
    cases = [(targets == label, run[:, label]) for run in runs for label in classes]
    line = np.mean([line_of(curve, positive, scores) for positive, scores in cases], 0)
    blocks = [
        _mean(np.stack([on_resamples(curve, positive, scores, drawn) for positive, scores in cases]))
        for drawn in weights(len(targets), resamples, seed)
    ]
    curves = np.concatenate(blocks)
    curves = curves[np.isfinite(curves).all(1)]
    if len(curves) == 0:
        return Band(line, line, line)
    low, high = np.quantile(curves, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Band(line, low, high)


def positives(targets: NDArray[Any], classes: int) -> list[int]:
    """Return the classes that are set against the rest: the last of two, else all that have rows."""
    return [1] if classes == 2 else [int(label) for label in np.unique(targets)]  # noqa: PLR2004


def line_of(curve: Curve, positive: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """Return a curve of the rows as they are, each once."""
    line: NDArray[Any] = on_resamples(curve, positive, scores, np.ones((1, len(scores)), np.float32))[0]
    return line


def on_resamples(curve: Curve, positive: NDArray[Any], scores: NDArray[Any], drawn: NDArray[Any]) -> NDArray[Any]:
    """Return a curve of each resample, shape (resamples, 101).

    Args:
        curve: of counts.
        positive: whether each row is, bool, shape (rows,).
        scores: shape (rows,); equal ones share a threshold.
        drawn: how often each row is in each resample, shape (resamples, rows).
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    ordered, ours = drawn[:, order], positive[order]
    # whole numbers, exact in float32 up to 16 million rows
    true = np.cumsum(ordered * ours, 1)[:, ends].astype(np.float64)
    false = np.cumsum(ordered * ~ours, 1)[:, ends].astype(np.float64)
    return np.stack([curve(*counts) for counts in zip(true, false, strict=True)])


def _mean(curves: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over cases of those that a resample has, shape (resamples, 101); not a number without any."""
    finite = np.isfinite(curves)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(finite, curves, 0).sum(0) / finite.sum(0))

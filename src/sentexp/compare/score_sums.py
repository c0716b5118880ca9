"""The metrics of scores on weighted rows: functions of sums over rows, as those of classes are."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray


def score_features(targets: NDArray[Any], predicted: NDArray[Any]) -> NDArray[Any]:
    """Return what each row adds to the sums, float32, shape (rows, 13).

    They are the rows, squared and absolute errors, and the moments of both sides: of values, then of ranks. Values and
    ranks are centred and scaled, which changes no correlation, so that float32 holds their squares. The ranks are those
    among all rows, also where a resample repeats some: Spearman's intervals leave out what that moves.

    Args:
        targets: true scores, shape (rows,).
        predicted: scores, shape (rows,).
    """
    import pandas as pd

    true, said = targets.astype(np.float64), predicted.astype(np.float64)
    errors = said - true
    columns = [np.ones(len(true)), errors**2, np.abs(errors)]
    ranked = [pd.Series(values).rank().to_numpy() for values in (true, said)]
    for pair in ((true, said), ranked):
        a, b = (_standard(values) for values in pair)
        columns += [a, b, a * a, b * b, a * b]
    return np.stack(columns, 1).astype(np.float32)


def from_score_sums(sums: NDArray[Any], metrics: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return metrics by name, shape (...).

    Args:
        sums: see `score_features`, weighted, shape (..., sums).
        metrics: that are wanted.
    """
    rows = sums[..., 0]
    made: dict[str, Callable[[], NDArray[Any]]] = {
        "rmse": lambda: np.sqrt(np.maximum(sums[..., 1], 0) / rows),
        "mae": lambda: sums[..., 2] / rows,
        "pearson": lambda: _correlation(sums[..., 3:8], rows),
        "spearman": lambda: _correlation(sums[..., 8:13], rows),
    }
    return {name: made[name]() for name in metrics}


def _standard(values: NDArray[Any]) -> NDArray[Any]:
    spread = values.std()
    standard: NDArray[Any] = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return standard


def _correlation(moments: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """Return Pearson's correlation; not a number where one side is constant."""
    a, b, aa, bb, ab = np.moveaxis(moments.astype(np.float64) / rows[..., None], -1, 0)
    spreads = (aa - a * a) * (bb - b * b)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[Any] = np.where(spreads > 1e-12, (ab - a * b) / np.sqrt(np.maximum(spreads, 0)), np.nan)  # noqa: PLR2004 (rounding)
    return found

"""Labels that are scores: numbers of the label column, as they are."""

import itertools
import math
from typing import Any

import numpy as np

from sentexp.config import DataConfig
from sentexp.config.metric_names import SCORE
from sentexp.data.labels import LabelEncoder
from sentexp.data.text_hash import Numbers
from sentexp.errors import require

BINS = 10
"""Strata of scores: tenths of the rows."""
MOST_VALUES = 10
"""Different scores that are counted each by itself; more are counted in ranges."""
RANGES = 5
EXACT_DIGITS = 17
"""Significant digits that tell any two numbers apart."""


class ScoreEncoder(LabelEncoder):
    """Turns raw rows into texts and scores.

    Args:
        data: what to do with rows that cannot be used.

    Raises:
        UserError: classes are configured.
    """

    dtype = np.float64

    def __init__(self, data: DataConfig) -> None:
        require(
            data.labels is None,
            f"data.labels={data.labels} makes classes of the column {getattr(data, 'label', 'label')}, and "
            "task.loss=regression learns its numbers: set data.labels=null.",
        )
        super().__init__(data, [SCORE])

    def _index(self, value: str | None) -> float:
        try:
            score = float((value or "").strip().replace("_", " "))
        except ValueError:
            return math.nan
        return score if math.isfinite(score) else math.nan

    def _unknown(self, labels: Any) -> Any:
        return np.isnan(labels)

    def _left_out(self, labels: Any) -> Any:
        return np.zeros(len(labels), bool)

    def _legal(self, word: str) -> str:
        del word
        return "not a number such as 3.5"


def quantile_bins(scores: Numbers) -> Numbers:
    """Return for each score which tenth of the rows it belongs to, shape (rows,): equal scores to the same one."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1])) if len(scores) else np.zeros(0)
    return np.searchsorted(edges, scores, side="left").astype(np.int64)


def score_counts(scores: "dict[str, Numbers]") -> dict[str, dict[str, int]]:
    """Return the rows of each score, or of each range where there are many, for each split.

    Args:
        scores: by split.
    """
    together = np.concatenate(list(scores.values()))
    values = np.unique(together)
    if len(values) <= MOST_VALUES:
        names = _distinct(values, 6)
        return {
            split: {name: int((mine == value).sum()) for name, value in zip(names, values, strict=True)}
            for split, mine in scores.items()
        }
    edges = np.linspace(values[0], values[-1], RANGES + 1)
    names = [f"{low} to {high}" for low, high in itertools.pairwise(_distinct(edges, 3))]
    return {
        split: dict(zip(names, np.histogram(mine, edges)[0].tolist(), strict=True)) for split, mine in scores.items()
    }


def _distinct(values: Numbers, digits: int) -> list[str]:
    """Return numbers as texts that differ where they do, with so many significant digits or as few more as it takes."""
    found: list[str] = []
    for count in range(digits, EXACT_DIGITS + 1):
        found = [f"{value:.{count}g}" for value in values]
        if len(set(found)) == len(values):
            break
    return found

"""The metrics of weighted rows: of every resample of the same rows at once.

Each metric is a function of sums over rows. So a matrix of weights, one row for each resample, times a matrix of what
each example adds gives the sums of all resamples in one product; the rest is arithmetic on small arrays.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sentexp.compare.areas import Pairs, areas, ratio
from sentexp.compare.label_set_sums import label_set_parts
from sentexp.compare.score_sums import from_score_sums, score_features
from sentexp.config.metric_names import BINS, METRICS

SMALLEST = 1e-30
"""Of a probability, before its logarithm."""
AREA = "auroc_macro"
SUMS = {
    "loss": ("loss",),
    "accuracy": ("right",),
    AREA: ("support", "sides"),
    "f1_macro": ("support", "said", "right"),
    "precision_macro": ("support", "said", "right"),
    "recall_macro": ("support", "right"),
    "ece": ("gaps",),
    "brier": ("brier",),
    "mae": ("distance",),
    "qwk": ("support", "said", "squared"),
    "within_one": ("near",),
    "f1_micro": ("support", "said", "right"),
    "subset_accuracy": ("exact",),
    "hamming": ("wrong",),
}
"""What each metric is made of, beside the number of rows."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """What the rows of a run add to its metrics.

    `features` are float32, shape (rows, sums); `pairs` hold the area's remainder for each class against the rest.
    The sums are, in order: the rows, the loss, the Brier score; for each class its rows, how often it was predicted,
    and how often rightly; for each class the two sides of its area; for each bin of the calibration error, confidence
    minus correctness; the distance of the answer in steps of classes, its square, and whether it is one at most; of
    sets of labels the share of wrong decisions, and whether there is none. Those that none of `metrics` needs are 0.
    """

    classes: int
    features: NDArray[Any]
    pairs: list[Pairs]
    metrics: tuple[str, ...] = METRICS

    def __call__(self, weights: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return every metric of every resample, by name, shape (resamples,).

        Args:
            weights: float32, shape (resamples, rows).
        """
        return {name: values[0] for name, values in resampled([self], weights).items()}

    def whole(self) -> dict[str, float]:
        """Return every metric of the rows as they are, in the order of `METRICS`."""
        values = from_sums(self.features.sum(0, dtype=np.float64), self.classes, self.metrics)
        return {name: float(values[name]) for name in self.metrics}

    def without_each(self) -> dict[str, NDArray[Any]]:
        """Return every metric of the rows without one of them, by name, shape (rows,): the jackknife."""
        left = np.subtract(self.features.sum(0, dtype=np.float64), self.features, order="F")
        return from_sums(left, self.classes, self.metrics)


def resampled(runs: Sequence[Measured], weights: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return every metric of runs on the same rows on every resample, by name, shape (runs, resamples).

    The sums of all runs are one product, without those to which no row adds: a wide product is faster than narrow ones.

    Args:
        runs: of the same metrics.
        weights: float32, shape (resamples, rows).
    """
    classes, width = runs[0].classes, runs[0].features.shape[1]
    used = np.flatnonzero(np.any([run.features.any(0) for run in runs], axis=0))
    features = np.concatenate([run.features[:, used] for run in runs], axis=1)
    sums = np.zeros((width, len(weights), len(runs)), np.float32)
    sums[used] = (weights @ features).reshape(len(weights), len(runs), len(used)).transpose(2, 0, 1)
    remainder = None
    if all(run.pairs for run in runs):
        each = [[pairs.remainder(weights) for pairs in run.pairs] for run in runs]
        remainder = np.asarray(each, np.float32).transpose(2, 0, 1)
    by_metric = from_sums(np.moveaxis(sums, 0, -1), classes, runs[0].metrics, remainder)
    return {name: values.T for name, values in by_metric.items()}


def measured(
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    metrics: Collection[str] = METRICS,
    thresholds: Sequence[float] | None = None,
) -> Measured:
    """Return what rows add to the metrics.

    Args:
        targets: class indices or scores, shape (rows,), or sets of labels, shape (rows, labels).
        probabilities: shape (rows, classes); of one class they are scores.
        metrics: that are wanted; others cost nothing.
        thresholds: from which each label holds, where a text has any number of them.
    """
    rows, classes = probabilities.shape
    if classes == 1:
        features = score_features(targets, probabilities[:, 0])
        return Measured(classes=1, features=features, pairs=[], metrics=tuple(metrics))
    members = targets > 0 if targets.ndim > 1 else targets[:, None] == np.arange(classes)
    sides, pairs = areas(members, probabilities) if AREA in metrics else (np.zeros((rows, 2 * classes)), [])
    nothing = {name: np.zeros((rows, width)) for name, width in _widths(classes).items()}
    if thresholds is None:
        parts = nothing | _class_parts(targets, probabilities) | {"sides": sides}
    else:
        parts = nothing | label_set_parts(members, probabilities, thresholds) | {"sides": sides}
    needed = set().union(*(SUMS[name] for name in metrics))
    kept = [parts[name] if name in needed else none for name, none in nothing.items()]
    return Measured(
        classes=classes,
        features=np.concatenate([np.ones((rows, 1)), *kept], 1, dtype=np.float32),
        pairs=pairs,
        metrics=tuple(metrics),
    )


def _widths(classes: int) -> dict[str, int]:
    """Return how many sums there are of each kind, in their order, the rows left out."""
    each = dict.fromkeys(("support", "said", "right"), classes)
    last = dict.fromkeys(("distance", "squared", "near", "wrong", "exact"), 1)
    return {"loss": 1, "brier": 1} | each | {"sides": 2 * classes, "gaps": BINS + 1} | last


def _class_parts(targets: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return what rows with one class each add, by kind of sum."""
    rows, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    right = predicted == targets
    each = np.arange(rows)
    truth, answered = np.zeros((2, rows, classes), np.float32)
    truth[each, targets], answered[each, predicted] = 1, 1
    confidence = probabilities[each, predicted]
    gaps = np.zeros((rows, BINS + 1), np.float32)
    edges = np.linspace(0, 1, BINS + 1, dtype=np.float32)
    gaps[each, np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1] = confidence - right
    distance = np.abs(predicted - targets)[:, None].astype(np.float32)
    return {
        "loss": -np.log(np.maximum(probabilities[each, targets], SMALLEST))[:, None],
        "brier": np.square(probabilities - truth).sum(1)[:, None],
        "support": truth,
        "said": answered,
        "right": truth * right[:, None],
        "gaps": gaps,
        "distance": distance,
        "squared": distance**2,
        "near": distance <= 1,
    }


def from_sums(
    sums: NDArray[Any], classes: int, metrics: Collection[str] = METRICS, remainder: NDArray[Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Return metrics by name, shape (...).

    The macro averages are over the classes that have rows (law 5); a class that was never predicted has precision 0,
    and one without a rest has no area.

    Args:
        sums: see `Measured`, weighted, shape (..., sums); fastest where the rows of each sum lie side by side.
        classes: how many.
        metrics: that are wanted.
        remainder: of the areas, shape (..., classes).
    """
    if classes == 1:
        return from_score_sums(sums, metrics)
    rows, loss, brier = sums[..., 0], sums[..., 1], sums[..., 2]
    support, answered, right, ours, theirs = (sums[..., 3 + n * classes : 3 + (n + 1) * classes] for n in range(5))
    gaps = sums[..., 3 + 5 * classes : 4 + 5 * classes + BINS]
    distance, squared, near, wrong, exact = (sums[..., 4 + 5 * classes + BINS + place] for place in range(5))
    rest = rows[..., None] - support

    def area() -> NDArray[Any]:
        means = ratio(ours, support) + ratio(theirs, rest)
        return _mean(means if remainder is None else means + remainder, (support > 0) & (rest > 0))

    made: dict[str, Callable[[], NDArray[Any]]] = {
        "loss": lambda: loss / rows,
        "accuracy": lambda: right.sum(-1) / rows,
        AREA: area,
        "f1_macro": lambda: _mean(ratio(2 * right, support + answered), support > 0),
        "precision_macro": lambda: _mean(ratio(right, answered), support > 0),
        "recall_macro": lambda: _mean(ratio(right, support), support > 0),
        "ece": lambda: np.abs(gaps).sum(-1) / rows,
        "brier": lambda: brier / rows,
        "mae": lambda: distance / rows,
        "qwk": lambda: _weighted_kappa(support, answered, squared, rows),
        "within_one": lambda: near / rows,
        "f1_micro": lambda: ratio(2 * right.sum(-1), (support + answered).sum(-1)),
        "subset_accuracy": lambda: exact / rows,
        "hamming": lambda: wrong / rows,
    }
    return {name: made[name]() for name in metrics}


def _weighted_kappa(
    support: NDArray[Any], answered: NDArray[Any], squared: NDArray[Any], rows: NDArray[Any]
) -> NDArray[Any]:
    """Return 1 less the squared distances over those that chance has, with as many rows and answers of each class."""
    steps = np.arange(support.shape[-1], dtype=np.float64)
    means = (support @ steps) * (answered @ steps) / rows
    chance = support @ steps**2 + answered @ steps**2 - 2 * means
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: NDArray[Any] = np.where(chance > 0, 1 - squared / chance, np.nan)
    return kappa


def _mean(values: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over the classes that count; not a number where none does."""
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = np.where(counts, values, 0).sum(-1) / counts.sum(-1)
    return mean
